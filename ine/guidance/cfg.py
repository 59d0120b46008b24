"""Classifier-free guidance with a negative where the unconditional text was.

    eps = eps_neg + w (eps_pos - eps_neg)

Ho and Salimans 2022, eq. 6, with the empty text replaced by the negative, as every UI does.
Two predictions a step, exactly those of plain guidance. With w = 1 the negative's term is
zero: that is how models of few steps are sampled, and a negative is refused there.
"""

from contextlib import contextmanager
from dataclasses import dataclass, field

from ine.errors import IneError
from ine.guidance.negative import Negative
from ine.guidance.protocol import Wanted


def classifier_free(negative, positive, scale):
    """Return eps_neg + w (eps_pos - eps_neg); all (B, C, H, W)."""
    return negative + scale * (positive - negative)


def check_guided(scale, negative, who):
    """Raise `IneError` where a negative would stand in a term whose weight is not above zero.

    Args:
        scale: Classifier-free guidance scale w.
        negative: A `Negative` or `Matched`.
        who: The method, for the error.
    """
    if scale <= 1 and negative.prompt():
        raise IneError(
            f"{who}: with a guidance scale of {scale:g} the negative {negative.name!r} stands in "
            "no term of the prediction and steers nothing; what works is additive with a strength "
            "(--guidance additive --negative-strength 1) or sld, or a scale above 1 where the "
            "model was made for guidance"
        )


@dataclass(frozen=True)
class ClassifierFree:
    """Plain guidance; with an empty `negative` it is the undefended model."""

    negative: Negative = field(default_factory=Negative)

    @contextmanager
    def begin(self, prompts):
        """Encode prompts and negative once.

        Raises:
            IneError: There is a negative, and no guidance in which it could stand.
        """
        check_guided(prompts.scale, self.negative, "cfg")
        yield _Session(
            positive=prompts.positive(),
            empty=prompts.empty() if len(self.negative.candidates()) > 1 else None,
            slot=self.negative.begin(prompts) if prompts.scale != 1 else None,
            scale=prompts.scale,
            count=len(prompts.texts),
        )


@dataclass(frozen=True, kw_only=True)
class _Session:
    positive: object
    empty: object
    slot: object
    """None where there is no guidance."""

    scale: float
    count: int

    def predict(self, step, ask, pictures=None):
        if self.slot is None:
            return ask([Wanted.of("positive", self.positive, pictures)])["positive"]
        # Negative first: the order in which diffusers' pipelines batch, so results are equal.
        wanted = self.slot.wanted(step, pictures)
        wanted.append(Wanted.of("positive", self.positive, pictures))
        if self.slot.needs_empty(step):
            wanted.append(Wanted.of("empty", self.empty, pictures))
        out = ask(wanted)
        negative = self.slot.settle(step, pictures, out)
        return classifier_free(negative, out["positive"], self.scale)

    def notes(self):
        return self.slot.notes() if self.slot else [{} for _ in range(self.count)]
