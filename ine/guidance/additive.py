"""Guidance towards the prompt and away from a negative, each with a strength of its own.

    eps = eps_0 + w (eps_pos - eps_0) - s (eps_neg - eps_0)

The form of composable diffusion (Liu et al. 2022, eq. 11, with a negated concept) and of
VL-DNP's update. In plain guidance the negative's strength is tied to w; here it is free, which
a comparison at equal preservation needs. Three predictions a step.
"""

from contextlib import contextmanager
from dataclasses import dataclass, field

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

    @contextmanager
    def begin(self, prompts):
        """Encode prompts, negative and the empty text once."""
        count = len(prompts.texts)
        yield _Session(
            positive=prompts.positive(),
            negative=self.negative.condition(prompts).repeat(count),
            empty=prompts.encode([""]).repeat(count),
            scale=prompts.scale,
            strength=prompts.scale - 1 if self.strength is None else self.strength,
        )


@dataclass(frozen=True, kw_only=True)
class _Session:
    positive: object
    negative: object
    empty: object
    scale: float
    strength: float

    def predict(self, step, ask):
        out = ask(
            [
                Wanted("empty", self.empty),
                Wanted("positive", self.positive),
                Wanted("negative", self.negative),
            ]
        )
        return additive(out["empty"], out["positive"], out["negative"], self.scale, self.strength)

    def notes(self):
        return [{} for _ in range(len(self.positive))]
