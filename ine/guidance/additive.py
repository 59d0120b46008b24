"""Guidance towards the prompt and away from a negative, each with a strength of its own.

    eps = eps_0 + w (eps_pos - eps_0) - s (eps_neg - eps_0)

The form of composable diffusion (Liu et al. 2022, eq. 11, with a negated concept) and of
VL-DNP's update. In plain guidance the negative's strength is tied to w; here it is free, so that
methods can be compared at equal preservation. Three predictions per step.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Self

import torch

from ine.embeddings.embedding import ConceptEmbedding
from ine.errors import IneError
from ine.guidance.cfg import check_guided
from ine.guidance.method import Method, MethodSession
from ine.guidance.negative import Negative
from ine.guidance.protocol import (
    Prompts,
    QueryUNet,
    Session,
    Step,
    UNetQuery,
)
from ine.text.condition import Condition


def additive(
    empty: torch.Tensor,
    positive: torch.Tensor,
    negative: torch.Tensor,
    scale: float,
    strength: float,
) -> torch.Tensor:
    """Return eps_0 + w (eps_pos - eps_0) - s (eps_neg - eps_0); all (B, C, H, W)."""
    return empty + scale * (positive - empty) - strength * (negative - empty)


def suggested_strength(embeddings: Sequence[ConceptEmbedding]) -> float | None:
    """Return the largest strength that embeddings state in their headers, None without any."""
    stated = [e.metadata.get("ine.strength") for e in embeddings]
    try:
        return max((float(s) for s in stated if s), default=None)
    except ValueError:
        return None


@dataclass(frozen=True)
class Additive(Method):
    """Additive guidance."""

    negative: Negative = field(default_factory=Negative)
    strength: float | None = None
    """s, in units of w. None is w - 1, the strength that a negative has in plain guidance."""

    def __post_init__(self) -> None:
        """Raise `IneError` for a strength that is negative or not finite."""
        if self.strength is not None and not (math.isfinite(self.strength) and self.strength >= 0):
            raise IneError(
                f"additive: strength is {self.strength}; give a finite number of 0 or more"
            )

    @classmethod
    def stated_strength(cls, embeddings: Sequence[ConceptEmbedding]) -> float | None:
        """Return the largest strength that embeddings state; see `suggested_strength`."""
        return suggested_strength(embeddings)

    def with_fixed_strength(self, scale: float) -> Self:
        """Return it with w - 1 written out where no strength is given."""
        return self if self.strength is not None else replace(self, strength=scale - 1)

    @contextmanager
    def begin(self, prompts: Prompts) -> Iterator[Session]:
        """Encode prompts, negative and the empty text once.

        Raises:
            IneError: No strength is given, and w - 1 is not above zero.
        """
        if self.strength is None:
            check_guided(prompts.scale, self.negative, "additive without a strength")
        yield _Session(
            positive=prompts.positive(),
            empty=prompts.empty(),
            negative=self.negative.condition(prompts),
            scale=prompts.scale,
            strength=prompts.scale - 1 if self.strength is None else self.strength,
        )


@dataclass(frozen=True, kw_only=True)
class _Session(MethodSession):
    positive: Condition
    empty: Condition
    negative: Condition
    scale: float
    strength: float

    def predict(
        self, step: Step, query_unet: QueryUNet, pictures: tuple[int, ...] | None = None
    ) -> torch.Tensor:
        out = query_unet(
            [
                UNetQuery.of("empty", self.empty, pictures),
                UNetQuery.of("positive", self.positive, pictures),
                UNetQuery.of("negative", self.negative, pictures),
            ]
        )
        predictions = out["empty"], out["positive"], out["negative"]
        return additive(*predictions, self.scale, self.strength)
