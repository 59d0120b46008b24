"""Classifier-free guidance with a negative in place of the unconditional text.

    eps = eps_neg + w (eps_pos - eps_neg)

Ho and Salimans 2022, eq. 6, with the empty text replaced by the negative, as every UI does.
Two predictions per step, exactly those of plain guidance. With w = 1 the negative's term is
zero; models of few steps are sampled so, and a negative is refused there.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from ine.errors import IneError
from ine.guidance.method import Method, MethodSession
from ine.guidance.negative import Negative
from ine.guidance.protocol import (
    Cost,
    Prompts,
    QueryUNet,
    Session,
    Step,
    UNetQuery,
)
from ine.text.condition import Condition


def classifier_free(negative: torch.Tensor, positive: torch.Tensor, scale: float) -> torch.Tensor:
    """Return eps_neg + w (eps_pos - eps_neg); all (B, C, H, W)."""
    return negative + scale * (positive - negative)


def undefended(
    query_unet: QueryUNet,
    empty: Condition,
    positive: Condition,
    scale: float,
    pictures: tuple[int, ...] | None = None,
) -> torch.Tensor:
    """Return what plain guidance without a negative predicts, (pictures, C, H, W).

    Both conditions are asked in one call and in this order, as the undefended run asks them, so
    that its outputs are the same to the last bit.
    """
    out = query_unet(
        [
            UNetQuery.of("empty", empty, pictures),
            UNetQuery.of("positive", positive, pictures),
        ]
    )
    return classifier_free(out["empty"], out["positive"], scale)


def check_guided(scale: float, negative: Negative, who: str) -> None:
    """Raise `IneError` if the negative is in a term whose weight is not above zero.

    Args:
        scale: Classifier-free guidance scale w.
        negative: A `Negative`.
        who: The method, for the error.
    """
    if scale <= 1 and negative.prompt():
        raise IneError(
            f"{who}: with a guidance scale of {scale:g} the negative {negative.name!r} is in "
            "no term of the prediction and steers nothing; what works is additive with a strength "
            "(--guidance additive --negative-strength 1) or sld, or a scale above 1 where the "
            "model was made for guidance"
        )


@dataclass(frozen=True)
class ClassifierFree(Method):
    """Classifier-free guidance; with an empty `negative` it is the undefended model."""

    needs_negative: ClassVar[bool] = False

    negative: Negative = field(default_factory=Negative)

    def cost(self, scale: float, steps: int) -> Cost:
        """Return two evaluations per step, one without guidance."""
        return Cost((1 if scale == 1 else 2) * steps)

    @contextmanager
    def begin(self, prompts: Prompts) -> Iterator[Session]:
        """Encode prompts and negative once.

        Raises:
            IneError: There is a negative, and the guidance scale leaves it without effect.
        """
        check_guided(prompts.scale, self.negative, "cfg")
        yield _Session(
            positive=prompts.positive(),
            negative=self.negative.condition(prompts) if prompts.scale != 1 else None,
            scale=prompts.scale,
        )


@dataclass(frozen=True, kw_only=True)
class _Session(MethodSession):
    positive: Condition
    negative: Condition | None
    """None at a guidance scale of 1, where nothing is guided."""

    scale: float

    def predict(
        self, step: Step, query_unet: QueryUNet, pictures: tuple[int, ...] | None = None
    ) -> torch.Tensor:
        positive = UNetQuery.of("positive", self.positive, pictures)
        if self.negative is None:
            return query_unet([positive])["positive"]
        # Negative first: the order in which diffusers' pipelines batch, so results are equal.
        out = query_unet([UNetQuery.of("negative", self.negative, pictures), positive])
        return classifier_free(out["negative"], out["positive"], self.scale)
