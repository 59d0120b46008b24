"""Which pictures are restarted, with which attempt and from which noise: shared by all loops.

The first restart of a picture is from its own noise, so that it stays what it is where that
suffices. Where the concept shows again, that noise is bound to draw it, and more strength costs the
subject before it costs the concept (docs/guidance.md). So every later restart begins with another
noise, made of the picture's own: negated or mirrored it is as good a sample of a unit Gaussian, and
no generator of the user's is touched.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ine.guidance.protocol import Again, Guidance

NOISES: tuple[tuple[int, tuple[int, ...]], ...] = (
    (1, ()),
    (-1, ()),
    (-1, (-1,)),
    (1, (-1,)),
    (-1, (-2,)),
    (1, (-2,)),
    (-1, (-1, -2)),
    (1, (-1, -2)),
)
"""(sign, mirrored axes) of a picture's noises: its own, and those made of it. The negated ones come
first: where a noise draws the concept, its opposite seldom does."""


def noise_of(own: torch.Tensor, number: int) -> torch.Tensor:
    """Return the noise that a run begins with.

    Args:
        own: The pictures' own noise, (B, C, H, W).
        number: A place in `NOISES`, see `Guidance.noise`.
    """
    sign, axes = NOISES[number]
    return sign * own.flip(axes) if number else own


@dataclass(frozen=True)
class Due:
    """The attempt that every picture is due for, and what earlier ones found in it."""

    attempts: dict[int, int] = field(default_factory=dict)
    """{picture: number among `Guidance.attempts`}."""

    known: dict[int, frozenset[str]] = field(default_factory=dict)
    """{picture: concepts}."""

    @classmethod
    def first(cls, pictures: Iterable[int]) -> "Due":
        """Return pictures that are all due for the first attempt."""
        due = dict.fromkeys(pictures, 0)
        return cls(due, dict.fromkeys(due, frozenset()))

    def turns(
        self, attempts: Sequence[Guidance], first: int = 0
    ) -> Iterator[tuple[int, Guidance, list[int]]]:
        """Yield (number, attempt, pictures that are due for it) of those that have any.

        Args:
            attempts: Those of the guidance.
            first: Number of the first; `took` is to be called with what each says.
        """
        for number, attempt in list(enumerate(attempts))[first:]:
            if rows := [i for i, wanted in self.attempts.items() if wanted == number]:
                yield number, attempt, rows

    def found(self, pictures: Sequence[int]) -> tuple[frozenset[str], ...]:
        """Return what earlier attempts found in pictures."""
        return tuple(self.known[i] for i in pictures)

    def took(self, number: int, rows: Sequence[int], again: Mapping[int, Again]) -> None:
        """Note what an attempt says: `again` names places in `rows` that are restarted further."""
        for place, i in enumerate(rows):
            if place in again:
                self.attempts[i] = number + again[place].further
                self.known[i] = self.known.get(i, frozenset()) | again[place].found


def left_in(notes: Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
    """Return the places of the pictures whose gate opened in their last attempt too."""
    return tuple(i for i, note in enumerate(notes) if note.get("left"))


def all_again(again: Mapping[int, Again], count: int, left: int) -> bool:
    """Return whether every picture is to be restarted and can be: nothing of a run is kept.

    Args:
        again: The pictures to restart.
        count: Pictures of the run.
        left: Attempts that may follow.
    """
    return len(again) == count and all(one.further <= left for one in again.values())
