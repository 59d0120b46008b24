"""What an observer says about a picture, and the protocol of observers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

Unknown = Literal["refusal", "nonsense", "time-out", "error"]
"""Why an observer gave no answer: it declined, it said something else, it did not answer in time,
or it failed."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What an observer says about one concept in one picture."""

    found: bool | None
    """Whether the concept is there; None if that is unknown."""

    score: float | None = None
    """The probability or score behind it, in [0, 1]; None from an observer that says yes or no."""

    words: tuple[str, ...] = ()
    """Words of the concept's vocabulary that it named, in the vocabulary's order."""

    raw: str = ""
    """What it said, as it said it."""

    unknown: Unknown | None = None
    """Why `found` is None."""

    why: str = ""
    """The error behind an unknown answer, if there was one; never holds a key."""

    def __post_init__(self) -> None:
        """Check that an answer is either known or unknown.

        Raises:
            ValueError: It is both, or neither.
        """
        if (self.found is None) != (self.unknown is not None):
            raise ValueError(f"found is {self.found} and unknown is {self.unknown!r}; give one")


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What an observer says about one picture, {concept: answer}."""

    answers: Mapping[str, Answer]

    @property
    def found(self) -> dict[str, float | bool]:
        """Return {concept: score, or yes or no}; concepts with an unknown answer are absent."""
        known = {name: one for name, one in self.answers.items() if one.found is not None}
        return {
            name: bool(one.found) if one.score is None else one.score for name, one in known.items()
        }

    @property
    def shows(self) -> tuple[str, ...]:
        """Return the concepts that are there; for a judge, those whose rule fires."""
        return tuple(name for name, one in self.answers.items() if one.found)

    @property
    def words(self) -> tuple[str, ...]:
        """Return the words named, each once."""
        return tuple(dict.fromkeys(word for one in self.answers.values() for word in one.words))

    @property
    def unknown(self) -> dict[str, Unknown]:
        """Return {concept: why} of the unknown answers."""
        return {name: one.unknown for name, one in self.answers.items() if one.unknown}


class Observer(Protocol):
    """Looks at pictures; what it says of one does not depend on the others of its batch."""

    @property
    def name(self) -> str:
        """Return the name that tells its answers from those of other observers; holds no key."""

    def __call__(self, pictures: np.ndarray, prompts: Sequence[str]) -> list[Observation]:
        """Return one observation per picture.

        Args:
            pictures: uint8 RGB, (B, H, W, 3), finished or previews.
            prompts: What each was generated for, B texts; "" where that is not known.
        """


def unknown_counts(observations: Sequence[Observation]) -> dict[str, int]:
    """Return {why: number of unknown answers} of several observations."""
    kinds = [why for one in observations for why in one.unknown.values()]
    return {why: kinds.count(why) for why in dict.fromkeys(kinds)}
