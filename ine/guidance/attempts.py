"""Which pictures are restarted, and with which attempt: shared by every loop that restarts any."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ine.guidance.protocol import Again, Guidance


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


def all_again(again: Mapping[int, Again], count: int, left: int) -> bool:
    """Return whether every picture is to be restarted and can be: nothing of a run is kept.

    Args:
        again: The pictures to restart.
        count: Pictures of the run.
        left: Attempts that may follow.
    """
    return len(again) == count and all(one.further <= left for one in again.values())
