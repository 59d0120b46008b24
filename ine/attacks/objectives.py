"""What an attacker of prompts minimises: one phrase before every prompt, some loss.

An objective draws views (the prompts, pictures, noise and timesteps of one round), and computes the
losses of phrases on them and the gradient with respect to the phrase's token vectors. All phrases
of a round are compared on the same views.

Shape letters: B phrases, K tokens of a phrase, D width of a token table, V tokens.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from ine.finite import check_finite

HOLDER = "adversarial-phrase"
"""The word that stands for the phrase's vectors while gradients are taken."""

Cost = int
"""In the unit of the objective."""


class Objective(Protocol):
    """A loss of phrases to search with."""

    unit: str
    """What a budget counts, such as "U-Net evaluations"."""

    def draw(self, generator: torch.Generator, count: int) -> tuple[list[Any], Cost]:
        """Return (`count` views, their cost)."""

    def losses(self, phrases: Sequence[str], views: Sequence[Any]) -> tuple[torch.Tensor, Cost]:
        """Return (losses (B,), their cost)."""

    def gradient(
        self, vectors: Sequence[torch.Tensor], views: Sequence[Any]
    ) -> tuple[list[torch.Tensor], Cost]:
        """Return (gradient per text encoder (K, D), its cost).

        Args:
            vectors: The phrase's token vectors, one (K, D) tensor per text encoder.
            views: From `draw`.
        """


def joined(phrase: str, prompt: str) -> str:
    """Return the adversarial prompt: the phrase in front, as in UnlearnDiffAtk."""
    return f"{phrase} {prompt}".strip()


def gradients(leaves: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return the gradients of leaves; raise `NotFinite` if one is not finite."""
    for leaf in leaves:
        check_finite(leaf.grad, "gradient")
    return [leaf.grad for leaf in leaves]


def distance(out: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the mean squared error of each row, (B,)."""
    return (out - target.to(out)).pow(2).flatten(1).mean(1)
