"""Which pictures are restarted, and with which attempt: shared by every loop that restarts any."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ine.guidance.protocol import Again


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

    def rows(self, number: int) -> list[int]:
        """Return the pictures that are due for an attempt."""
        return [i for i, wanted in self.attempts.items() if wanted == number]

    def found(self, pictures: Sequence[int]) -> tuple[frozenset[str], ...]:
        """Return what earlier attempts found in pictures."""
        return tuple(self.known[i] for i in pictures)

    def took(self, number: int, rows: Sequence[int], again: Mapping[int, Again]) -> None:
        """Note what an attempt says: `again` names places in `rows` that are restarted further."""
        for place, i in enumerate(rows):
            if place in again:
                self.attempts[i] = number + again[place].further
                self.known[i] = self.known.get(i, frozenset()) | again[place].found
