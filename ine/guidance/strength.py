"""What methods share whose negative has a strength of its own, in units of the guidance scale w."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

from ine.embeddings.embedding import ConceptEmbedding
from ine.errors import IneError
from ine.guidance.cfg import check_guided
from ine.guidance.method import Method
from ine.guidance.negative import Negative
from ine.guidance.prompts import Prompts


def suggested_strength(embeddings: Sequence[ConceptEmbedding]) -> float | None:
    """Return the largest strength that embeddings state in their headers, None without any."""
    stated = [e.metadata.get("ine.strength") for e in embeddings]
    try:
        return max((float(s) for s in stated if s), default=None)
    except ValueError:
        return None


@dataclass(frozen=True)
class OwnStrength(Method):
    """A method with a negative and a strength that is free of w."""

    negative: Negative = field(default_factory=Negative)
    strength: float | None = None
    """s, in units of w. None is w - 1, the strength that a negative has in plain guidance."""

    called: ClassVar[str] = ""
    """The method's name, for messages."""

    def __post_init__(self) -> None:
        """Raise `IneError` for a strength that is negative or not finite."""
        if self.strength is not None and not (math.isfinite(self.strength) and self.strength >= 0):
            raise IneError(
                f"{self.called}: strength is {self.strength}; give a finite number of 0 or more"
            )

    @classmethod
    def stated_strength(cls, embeddings: Sequence[ConceptEmbedding]) -> float | None:
        """Return the largest strength that embeddings state; see `suggested_strength`."""
        return suggested_strength(embeddings)

    def strength_for(self, prompts: Prompts) -> float:
        """Return s for a batch.

        Raises:
            IneError: No strength is given, and w - 1 is not above zero.
        """
        if self.strength is not None:
            return self.strength
        check_guided(prompts.scale, self.negative, f"{self.called} without a strength")
        return prompts.scale - 1

    def with_fixed_strength(self, scale: float) -> Self:
        """Return it with w - 1 written out where no strength is given."""
        return self if self.strength is not None else replace(self, strength=scale - 1)
