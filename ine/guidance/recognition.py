"""A gate that recognises the concept in the picture that forms, not in what the prompt says.

An unlearned U-Net no longer follows the concept's words, but on the way to a picture that shows
the concept its inner activations still tell: linear probes (Alain and Bengio 2016) read them off
the bottleneck and the first decoder block, the place that Kwon et al. 2023 (arXiv 2210.10960)
found to hold what a picture is about. At a query step the U-Net is asked once more, about the
empty text, and of the activations h_l (C_l, h, w) of each block l

    f = [mean_hw h_l, max_hw h_l, std_hw h_l]_l        F = 3 * sum of C_l
    score = weight . f + bias                          log-odds, with evenly many of both kinds

Probes are fitted on pictures with and without the concept, noised to the level of the query, and
never see a prompt (`ine.inversion.examples`).

Late in a run the score is sure and the picture is done; early it is open what will come. Behind
`ine.guidance.rewind.Rewind` the gate may look late, since its picture is begun anew.

Shape letters: B pictures, C channels of a block, F features, N training rows.
"""

import math
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from ine.errors import IneError
from ine.files import sha256_of
from ine.guidance.gates import (
    Window,
    check_probing,
    decide,
    gate_notes,
    query_steps,
)
from ine.guidance.protocol import Wanted

QUERIES = (0.5,)
"""Where in the run to look; before the middle less is seen, after it hardly more."""


def blocks_of(unet):
    """Return the modules whose outputs are read: the bottleneck and the first decoder block."""
    return unet.mid_block, unet.up_blocks[0]


def features_of(outputs):
    """Return what a probe reads of activations: [(B, C, h, w), ...] -> (B, F) float32."""
    found = []
    for output in outputs:
        flat = output.float().flatten(2)
        found += [flat.mean(2), flat.amax(2), flat.std(2)]
    return torch.cat(found, dim=1)


@contextmanager
def listening(unet):
    """Yield a list that holds the blocks' outputs after every call of the U-Net."""
    blocks = blocks_of(unet)
    heard = [None] * len(blocks)

    def hook(place):
        def keep(_module, _given, output):
            heard[place] = output[0] if isinstance(output, tuple) else output

        return keep

    handles = [block.register_forward_hook(hook(i)) for i, block in enumerate(blocks)]
    try:
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

    def __post_init__(self):
        """Raise `IneError` where the numbers are none."""
        if not (torch.isfinite(self.weight).all() and math.isfinite(self.bias)):
            raise IneError("a probe holds a number that is not finite; calibrate again")

    @property
    def digest(self):
        """16 hex digits of the numbers."""
        numbers = [*self.weight.tolist(), self.bias]
        return sha256_of(repr(numbers).encode())[:16]

    def __eq__(self, other):
        """Return whether the numbers are the same."""
        return isinstance(other, Probe) and self.digest == other.digest

    def __hash__(self):
        """Return a hash of the numbers."""
        return hash(self.digest)

    def scores(self, features):
        """Return log-odds, (B, F) -> (B,).

        Raises:
            IneError: The features are of another U-Net.
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
class Recognition:
    """Open where a probe recognises the concept.

    The best score so far decides, and an open gate stays open: the negative that a gate lets act
    is to change what is recognised.
    """

    threshold: float
    probes: tuple[Probe, ...] = ()
    """One per query, in the same order."""

    queries: tuple[float, ...] = QUERIES
    """Where in the run to look, fractions in [0, 1): at the first step there or after."""

    concept: str = "concept"
    """What the log calls it."""

    window: Window = field(default_factory=Window)

    def __post_init__(self):
        """Raise `IneError` where a setting makes no sense."""
        check_probing(self.queries, self.window, self.threshold)
        if len(self.probes) != len(self.queries):
            raise IneError(
                f"a recognition gate has {len(self.probes)} probes for {len(self.queries)} "
                "queries; make it with: ine calibrate EMBEDDING --gate recognition"
            )

    def begin(self, prompts, negatives):
        """Encode the empty text once; the negatives do not matter."""
        count = len(prompts.texts)
        return _RecognitionSession(
            gate=self,
            unet=prompts.parts.unet,
            empty=prompts.empty(),
            opened=[None] * count,
            scores=[[] for _ in range(count)],
        )


@dataclass(frozen=True, kw_only=True)
class _RecognitionSession:
    gate: Recognition
    unet: object
    empty: object
    opened: list
    scores: list

    def open(self, step, ask, plain):
        gate = self.gate
        if not gate.window.holds(step):
            return ()
        for query, probe in zip(gate.queries, gate.probes, strict=True):
            if step.index in query_steps((query,), step.count):
                self._look(step, ask, probe)
        return tuple(i for i, one in enumerate(self.opened) if one)

    def _look(self, step, ask, probe):
        undecided = tuple(i for i, one in enumerate(self.opened) if not one)
        if not undecided:
            return
        everyone = None if len(undecided) == len(self.opened) else undecided
        with listening(self.unet) as heard:
            # A name of its own: what was answered before was not listened to.
            ask([Wanted.of(f"look:{step.index}", self.empty, everyone)])
            scores = probe.scores(features_of(heard)).tolist()
        for i, score in zip(undecided, scores, strict=True):
            self.scores[i].append([step.index, self.gate.concept, round(score, 4)])
        decide(self.opened, self.scores, undecided, step, self.gate.threshold)

    def notes(self):
        return gate_notes(self.opened, self.scores)


def fit_probe(features, labels, ridge=0.03):
    """Return the `Probe` that tells features with the concept from those without.

    Logistic regression on standardised features, both kinds weighing alike, with a squared
    penalty; found by L-BFGS, which is deterministic.

    Args:
        features: (N, F).
        labels: (N,) bool, whether the concept is there.
        ridge: Weight of the penalty, more than 0.

    Raises:
        IneError: One of the kinds is missing.
    """
    labels = labels.bool()
    if labels.all() or not labels.any():
        kind = "without" if labels.any() else "with"
        raise IneError(f"a probe needs pictures of both kinds; there is none {kind} the concept")
    target = labels.double()
    mean, scale = features.double().mean(0), features.double().std(0).clamp_min(1e-6)
    standard = (features.double() - mean) / scale
    share = target.mean()
    each = torch.where(labels, 0.5 / share, 0.5 / (1 - share))
    weight = torch.zeros(features.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros((), dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS([weight, bias], max_iter=300, line_search_fn="strong_wolfe")
    loss_of = torch.nn.functional.binary_cross_entropy_with_logits

    def closure():
        solver.zero_grad()
        loss = (loss_of(standard @ weight + bias, target, reduction="none") * each).mean()
        loss = loss + ridge * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        solver.step(closure)
    raw = weight.detach() / scale
    return Probe(raw.float(), float(bias.detach() - (raw * mean).sum()))
