"""Guidance away from what the negative would add to the very picture of the prompt.

    Delta = tau_neg - tau_none
    d     = (eps(tau_pos + a Delta) - eps_pos) / a
    eps   = eps_0 + w (eps_pos - eps_0) - s d

with tau the text states. `additive` steers along eps_neg - eps_0, in which the concept comes with
whatever object and place the model draws for the negative alone; at the strength that a defence
needs, that replaces the prompt's own. Here the states of the prompt are moved a little towards the
negative's, and the difference that makes is what the concept adds to this prompt: for small a the
derivative of the prediction along Delta. Directions in the space of text states are known to act on
single attributes of a subject (Baumann et al. 2024, arXiv 2403.17064); the use of one as a negative
is ours. Where the U-Net were linear in the states, d would be eps_neg - eps(tau_empty), that of
`additive`, for every a.

It needs no prompt as text, only its states, and takes three predictions per step.

Shape letters: B pictures, C latent channels, H W latent size, L tokens, D text width.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch

from ine.errors import IneError
from ine.guidance.method import MethodSession
from ine.guidance.negative import Negative
from ine.guidance.protocol import Prompts, QueryUNet, Session, Step, UNetQuery
from ine.guidance.strength import OwnStrength
from ine.text.condition import Condition

MOVED = "positive-moved"
"""Name among queries; what a pipeline passes for a prompt's rows goes with it."""


def contextual(
    empty: torch.Tensor,
    positive: torch.Tensor,
    moved: torch.Tensor,
    scale: float,
    strength: float,
    shift: float,
) -> torch.Tensor:
    """Return eps_0 + w (eps_pos - eps_0) - s (eps_moved - eps_pos) / a; all (B, C, H, W)."""
    return empty + scale * (positive - empty) - strength / shift * (moved - positive)


def direction_to(negative: Negative, prompts: Prompts) -> Condition:
    """Return what sets a negative apart from the empty text, one row; zeros for an empty one."""
    # Not from `prompts.nothing()`, which is zeros where a model was trained so: what all texts have
    # in common shall drop out of the difference.
    blank = prompts.encode([""])
    own = negative.condition(prompts) if negative.prompt() else blank
    pooled = None
    if own.pooled is not None and blank.pooled is not None:
        pooled = own.pooled - blank.pooled
    return Condition(states=own.states - blank.states, pooled=pooled)


@dataclass(frozen=True)
class Contextual(OwnStrength):
    """Contextual guidance."""

    shift: float = 0.25
    """a, how far the states are moved towards the negative's, in (0, 1]. Smaller keeps more of the
    subject; in float16 the difference of two predictions becomes rounding below .1."""

    called: ClassVar[str] = "contextual"

    def __post_init__(self) -> None:
        """Raise `IneError` for a strength below 0, or a shift outside (0, 1]."""
        super().__post_init__()
        if not 0 < self.shift <= 1:
            raise IneError(f"contextual: shift is {self.shift}; give a number in (0, 1]")

    @contextmanager
    def begin(self, prompts: Prompts) -> Iterator[Session]:
        """Encode prompts, negative and the empty text once.

        Raises:
            IneError: No strength is given, and w - 1 is not above zero.
        """
        strength = self.strength_for(prompts)
        positive = prompts.positive()
        offset = direction_to(self.negative, prompts).times(self.shift)
        yield _Session(
            positive=positive,
            empty=prompts.empty(),
            moved=positive.moved(offset),
            offset=offset,
            scale=prompts.scale,
            strength=strength,
            shift=self.shift,
        )


@dataclass(frozen=True, kw_only=True)
class _Session(MethodSession):
    positive: Condition
    empty: Condition
    moved: Condition
    offset: Condition
    scale: float
    strength: float
    shift: float

    def predict(
        self, step: Step, query_unet: QueryUNet, pictures: tuple[int, ...] | None = None
    ) -> torch.Tensor:
        out = query_unet(
            [
                UNetQuery.of("empty", self.empty, pictures),
                UNetQuery.of("positive", self.positive, pictures),
                UNetQuery.of(MOVED, self.moved, pictures, offset=self.offset),
            ]
        )
        predictions = out["empty"], out["positive"], out[MOVED]
        return contextual(*predictions, self.scale, self.strength, self.shift)
