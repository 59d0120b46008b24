"""Guidance towards the prompt and away from a negative, each with a strength of its own.

    eps = eps_0 + w (eps_pos - eps_0) - s (eps_neg - eps_0)

The form of composable diffusion (Liu et al. 2022, eq. 11, with a negated concept) and of
VL-DNP's update. In plain guidance the negative's strength is tied to w; here it is free, so that
methods can be compared at equal preservation. Three predictions per step.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch

from ine.guidance.method import MethodSession
from ine.guidance.protocol import (
    Prompts,
    QueryUNet,
    Session,
    Step,
    UNetQuery,
)
from ine.guidance.strength import OwnStrength
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


@dataclass(frozen=True)
class Additive(OwnStrength):
    """Additive guidance."""

    called: ClassVar[str] = "additive"

    @contextmanager
    def begin(self, prompts: Prompts) -> Iterator[Session]:
        """Encode prompts, negative and the empty text once.

        Raises:
            IneError: No strength is given, and w - 1 is not above zero.
        """
        strength = self.strength_for(prompts)
        yield _Session(
            positive=prompts.positive(),
            empty=prompts.empty(),
            negative=self.negative.condition(prompts),
            scale=prompts.scale,
            strength=strength,
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
