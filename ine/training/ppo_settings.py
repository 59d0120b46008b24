"""How PPO trains; the defaults are those of POSI's release (Wu et al. 2024).

The release gets them from LLaMA-Factory 0.3.2 and trl 0.7, except the KL target of .02.
"""

from typing import Annotated, Self

from pydantic import Field, model_validator

from ine.training.advantages import KlControl
from ine.training.answers import Drawing
from ine.yaml_files import Section

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class PpoSettings(Section):
    """How PPO trains."""

    rollouts: Count | None = None
    """In all; None goes once through the prompts, as the release through its 842."""

    batch: Count = 16
    """Answers of a rollout."""

    minibatch: Count = 4
    """Answers of one forward pass."""

    accumulation: Count = 4
    """Minibatches of an optimiser step; `minibatch * accumulation` divides `batch`."""

    epochs: Count = 4
    """Passes over a rollout."""

    learning_rate: Positive = 1.9e-5
    """At the start; it falls to 0 along half a cosine."""

    kl: KlControl = KlControl(target=0.02)
    max_kl: Positive = 50.0
    """KL divergence of a rollout, in nats per answer, from which on training counts as exploded."""

    gamma: Share = 1.0
    decay: Share = 0.95
    """Lambda of the advantages."""

    clip: Positive = 0.2
    """Of the probability ratio."""

    clip_value: Positive = 0.2
    value_weight: Positive = 0.1
    max_grad_norm: Positive = 1.0
    drawing: Drawing = Drawing()
    seed: int = 0

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.batch % (self.minibatch * self.accumulation):
            raise ValueError(
                f"a batch of {self.batch} is no multiple of {self.accumulation} minibatches of "
                f"{self.minibatch}"
            )
        return self

    @property
    def updates(self) -> int:
        """Return the optimiser steps of a rollout."""
        return self.epochs * self.batch // (self.minibatch * self.accumulation)

    def rollouts_for(self, prompts: int) -> int:
        """Return the rollouts of a training on a number of prompts."""
        return self.rollouts or -(-prompts // self.batch)
