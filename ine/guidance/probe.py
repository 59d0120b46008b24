"""A gate that recognises the concept in the picture that forms, whatever the prompt says.

An unlearned U-Net no longer follows the concept's words, but while it draws the concept, its
activations still show it. Linear probes (Alain and Bengio 2016) read them off the bottleneck and
the first decoder block, where Kwon et al. 2023 (arXiv 2210.10960) found what a picture is about.
At a query step the U-Net runs once more on the empty text; of the activations h_l (C_l, h, w) of
each block l

    f = [mean_hw h_l, max_hw h_l, std_hw h_l]_l        F = 3 * sum of C_l
    score = weight . f + bias                          log-odds for two classes of equal size

Probes are fitted on pictures with and without the concept, noised to the level of the query
(`ine.calibration.teach`); they never see a prompt.

A late score is more certain, but then the picture is almost done. With
`ine.guidance.restart.Restart` the gate may look late, because the picture is then restarted.

Shape letters: B pictures, C channels of a block, F features.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ine.errors import IneError
from ine.files import sha256_of
from ine.guidance.gates import (
    Window,
    check_probing,
    decide,
    gate_notes,
    query_steps,
)
from ine.guidance.protocol import Cost, Prompts, QueryUNet, Step, UNetQuery
from ine.runtime import uncompiled
from ine.text.condition import Condition

QUERIES = (0.5,)
"""Where in the run to look. On the bundled model an earlier look recognises less, and a later one
hardly more."""


def blocks_of(unet: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Return the modules that probes read: the bottleneck and the first decoder block."""
    return unet.mid_block, unet.up_blocks[0]


def features_of(outputs: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the features of activations: [(B, C, h, w), ...] -> (B, F) float32.

    Raises:
        IneError: A block was never called.
    """
    if any(output is None for output in outputs):
        raise IneError(
            "the U-Net does not call its blocks, so nothing can be recognised in them; if "
            "something traced, exported or cached it, load it again without that"
        )
    found = []
    for output in outputs:
        flat = output.float().flatten(2)
        found += [flat.mean(2), flat.amax(2), flat.std(2)]
    return torch.cat(found, dim=1)


@contextmanager
def listening(unet: nn.Module) -> Iterator[list]:
    """Yield a list that holds the blocks' outputs after every call of the U-Net.

    A compiled U-Net runs uncompiled meanwhile.
    """
    blocks = blocks_of(unet)
    heard: list = [None] * len(blocks)

    def hook(place: int) -> Callable[..., None]:
        def keep(_module: nn.Module, _given: tuple, output: Any) -> None:
            heard[place] = output[0] if isinstance(output, tuple) else output

        return keep

    handles = [block.register_forward_hook(hook(i)) for i, block in enumerate(blocks)]
    try:
        with uncompiled():
            yield heard
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True, eq=False)
class Probe:
    """A linear probe for one noise level."""

    weight: torch.Tensor
    """(F,) float32, on raw features."""

    bias: float

    def __post_init__(self) -> None:
        """Raise `IneError` for a number that is not finite."""
        if not (torch.isfinite(self.weight).all() and math.isfinite(self.bias)):
            raise IneError("a probe holds a number that is not finite; calibrate again")

    @property
    def digest(self) -> str:
        """16 hex digits of the numbers."""
        numbers = [*self.weight.tolist(), self.bias]
        return sha256_of(repr(numbers).encode())[:16]

    def __eq__(self, other: object) -> bool:
        """Return whether the numbers are the same."""
        return isinstance(other, Probe) and self.digest == other.digest

    def __hash__(self) -> int:
        """Return a hash of the numbers."""
        return hash(self.digest)

    def scores(self, features: torch.Tensor) -> torch.Tensor:
        """Return log-odds, (B, F) -> (B,).

        Raises:
            IneError: The features are those of another U-Net.
        """
        if features.shape[1] != len(self.weight):
            raise IneError(
                f"the gate's probe reads {len(self.weight)} features, this U-Net has "
                f"{features.shape[1]}; it was calibrated on another kind of model"
            )
        weight = self.weight.to(features.device)
        # Elementwise, then summed: a matrix product's last bits depend on the batch.
        return (features * weight).sum(1) + self.bias


@dataclass(frozen=True)
class ProbeGate:
    """Opens for a picture in which a probe recognises the concept, and then stays open.

    It stays open because the negative, once it acts, removes what the probe recognises.
    """

    threshold: float
    probes: tuple[Probe, ...] = ()
    """One per query, in the same order."""

    queries: tuple[float, ...] = QUERIES
    """Where in the run to look, fractions in [0, 1): at the first step at or after each."""

    concept: str = "concept"
    """The concept's name in logs."""

    window: Window = field(default_factory=Window)

    def __post_init__(self) -> None:
        """Raise `IneError` for settings that do not fit together."""
        check_probing(self.queries, self.window, self.threshold)
        if len(self.probes) != len(self.queries):
            raise IneError(
                f"a recognition gate has {len(self.probes)} probes for {len(self.queries)} "
                "queries; make it with: ine calibrate EMBEDDING"
            )

    def cost(self, inner: Cost, steps: int) -> Cost:
        """Return the mean of a picture that is never steered and one that always is."""
        return Cost((2 * steps + inner.nfe) / 2, exact=False)

    def begin(self, prompts: Prompts) -> "_ProbeGateSession":
        """Encode the empty text once."""
        count = len(prompts.texts)
        return _ProbeGateSession(
            gate=self,
            unet=prompts.parts.unet,
            empty=prompts.empty(),
            opened=[None] * count,
            scores=[[] for _ in range(count)],
        )


@dataclass(frozen=True, kw_only=True)
class _ProbeGateSession:
    gate: ProbeGate
    unet: nn.Module
    empty: Condition
    opened: list[list | None]
    scores: list[list[list]]

    @property
    def named(self) -> None:
        """A probe knows no words."""

    @property
    def found(self) -> tuple[frozenset[str], ...]:
        """The concept, in pictures whose gate has opened."""
        concept = frozenset({self.gate.concept})
        return tuple(concept if one else frozenset() for one in self.opened)

    def open(self, step: Step, query_unet: QueryUNet) -> tuple[int, ...]:
        gate = self.gate
        if not gate.window.holds(step):
            return ()
        for query, probe in zip(gate.queries, gate.probes, strict=True):
            if step.index in query_steps((query,), step.count):
                self._look(step, query_unet, probe)
        return tuple(i for i, one in enumerate(self.opened) if one)

    def _look(self, step: Step, query_unet: QueryUNet, probe: Probe) -> None:
        undecided = tuple(i for i, one in enumerate(self.opened) if not one)
        if not undecided:
            return
        everyone = None if len(undecided) == len(self.opened) else undecided
        with listening(self.unet) as heard:
            # Under a name of its own: the gate did not see activations of earlier queries.
            query_unet([UNetQuery.of(f"look:{step.index}", self.empty, everyone)])
            scores = probe.scores(features_of(heard)).tolist()
        for i, score in zip(undecided, scores, strict=True):
            self.scores[i].append([step.index, self.gate.concept, round(score, 4)])
        decide(self.opened, self.scores, undecided, step, self.gate.threshold)

    def notes(self) -> list[dict[str, Any]]:
        return gate_notes(self.opened, self.scores)
