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
        yield _Session(
            positive=prompts.positive(),
            empty=prompts.empty() if len(self.negative.candidates()) > 1 else None,
            slot=self.negative.begin(prompts),
            scale=prompts.scale,
        )


@dataclass(frozen=True, kw_only=True)
class _Session:
    positive: object
    empty: object
    slot: object
    scale: float

    def predict(self, step, ask, pictures=None):
        # Negative first: the order in which diffusers' pipelines batch, so results are equal.
        wanted = self.slot.wanted(step, pictures)
        wanted.append(Wanted.of("positive", self.positive, pictures))
        if self.slot.needs_empty(step):
            wanted.append(Wanted.of("empty", self.empty, pictures))
        out = ask(wanted)
        negative = self.slot.settle(step, pictures, out)
        return classifier_free(negative, out["positive"], self.scale)

    def notes(self):
        return self.slot.notes()
