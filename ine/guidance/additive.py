"""Guidance towards the prompt and away from a negative, each with a strength of its own.

    eps = eps_0 + w (eps_pos - eps_0) - s (eps_neg - eps_0)

The form of composable diffusion (Liu et al. 2022, eq. 11, with a negated concept) and of
VL-DNP's update. In plain guidance the negative's strength is tied to w; here it is free, which
a comparison at equal preservation needs. Three predictions a step.
"""

import math
from contextlib import contextmanager
from dataclasses import dataclass, field

from ine.errors import IneError
from ine.guidance.cfg import check_guided
from ine.guidance.negative import Negative
from ine.guidance.protocol import Wanted


def additive(empty, positive, negative, scale, strength):
    """Return eps_0 + w (eps_pos - eps_0) - s (eps_neg - eps_0); all (B, C, H, W)."""
    return empty + scale * (positive - empty) - strength * (negative - empty)


def suggested_strength(embeddings):
    """Return the largest strength that embeddings state in their headers; None if none does."""
    stated = [e.metadata.get("ine.strength") for e in embeddings]
    try:
        return max((float(s) for s in stated if s), default=None)
    except ValueError:
        return None


@dataclass(frozen=True)
class Additive:
    """Additive guidance."""

    negative: Negative = field(default_factory=Negative)
    strength: float | None = None
    """s, in units of w. None is w - 1, the strength that a negative has in plain guidance."""

    def __post_init__(self):
        """Raise `IneError` where the strength makes no sense."""
        if self.strength is not None and not (math.isfinite(self.strength) and self.strength >= 0):
            raise IneError(
                f"additive: strength is {self.strength}; give a finite number of 0 or more"
            )

    @contextmanager
    def begin(self, prompts):
        """Encode prompts, negative and the empty text once.

        Raises:
            IneError: No strength is given, and w - 1 is none.
        """
        if self.strength is None:
            check_guided(prompts.scale, self.negative, "additive without a strength")
        yield _Session(
            positive=prompts.positive(),
            empty=prompts.empty(),
            slot=self.negative.begin(prompts),
            scale=prompts.scale,
            strength=prompts.scale - 1 if self.strength is None else self.strength,
        )


@dataclass(frozen=True, kw_only=True)
class _Session:
    positive: object
    empty: object
    slot: object
    scale: float
    strength: float

    def predict(self, step, ask, pictures=None):
        out = ask(
            [
                Wanted.of("empty", self.empty, pictures),
                Wanted.of("positive", self.positive, pictures),
                *self.slot.wanted(step, pictures),
            ]
        )
        negative = self.slot.settle(step, pictures, out)
        return additive(out["empty"], out["positive"], negative, self.scale, self.strength)

    def notes(self):
        return self.slot.notes()
