"""Classifier-free guidance with a negative where the unconditional text was.

    eps = eps_neg + w (eps_pos - eps_neg)

Ho and Salimans 2022, eq. 6, with the empty text replaced by the negative, as every UI does.
Two predictions a step, exactly those of plain guidance.
"""

from contextlib import contextmanager
from dataclasses import dataclass, field

from ine.guidance.negative import Negative
from ine.guidance.protocol import Wanted


def classifier_free(negative, positive, scale):
    """Return eps_neg + w (eps_pos - eps_neg); all (B, C, H, W)."""
    return negative + scale * (positive - negative)


@dataclass(frozen=True)
class ClassifierFree:
    """Plain guidance; with an empty `negative` it is the undefended model."""

    negative: Negative = field(default_factory=Negative)

    @contextmanager
    def begin(self, prompts):
        """Encode prompts and negative once."""
        count = len(prompts.texts)
        yield _Session(
            prompts.positive(), self.negative.condition(prompts).repeat(count), prompts.scale
        )


@dataclass(frozen=True)
class _Session:
    positive: object
    negative: object
    scale: float

    def predict(self, step, ask):
        # Negative first: the order in which diffusers' pipelines batch, so results are equal.
        out = ask([Wanted("negative", self.negative), Wanted("positive", self.positive)])
        return classifier_free(out["negative"], out["positive"], self.scale)

    def notes(self):
        return [{} for _ in range(len(self.positive))]
