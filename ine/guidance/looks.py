"""At which steps of a run an observer looks.

A step counts from 0. What a user gives as whole numbers are steps of the run, and a run without
such a step is refused. Fractions, as the published steps are meant, hold for runs of any length:
the first step at or after each.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ine.errors import IneError
from ine.guidance.gates import query_steps

PUBLISHED = tuple(step / 50 for step in (5, 6, 7, 9, 12, 16, 21, 27, 34, 42))
"""Steps of a run of 50 (README of VL-DNP, arXiv 2510.26052), as fractions of the run."""

AHEAD = "ahead"
"""Word for a look before the first step."""


@dataclass(frozen=True, kw_only=True)
class Looks:
    """When an observer looks at the picture so far."""

    parts: tuple[float, ...] = PUBLISHED
    """Fractions of the run, in [0, 1)."""

    steps: tuple[int, ...] = ()
    """Steps of the run, from 0."""

    ahead: bool = False
    """Whether it looks before the first step too, at a coarse run from the picture's start."""

    def __post_init__(self) -> None:
        """Raise `IneError` for looks that are in no run, or none at all."""
        if not (self.parts or self.steps or self.ahead):
            raise IneError(f"look: no step is given; give steps such as 5,10, or {AHEAD}")
        if not all(0 <= part < 1 for part in self.parts):
            raise IneError(f"look: a fraction is outside the run ({self.parts}); give 0 <= x < 1")
        if any(step < 0 for step in self.steps):
            raise IneError(f"look: step {min(self.steps)} is outside the run; give 0 or more")

    def of(self, count: int) -> tuple[int, ...]:
        """Return the steps of a run of `count` steps at which the observer looks, rising.

        Raises:
            IneError: The run has no such step.
        """
        outside = [step for step in self.steps if step >= count]
        if outside:
            raise IneError(
                f"look: step {outside[0]} is outside the run, whose {count} steps are 0 to "
                f"{count - 1}; give other steps, or fractions of the run such as 0.1"
            )
        return tuple(sorted({*self.steps, *query_steps(self.parts, count)}))


def read_looks(texts: Sequence[str]) -> Looks:
    """Return the looks of texts such as "5", "0.1" or "ahead".

    Raises:
        IneError: A text is neither, or outside every run.
    """
    steps, parts, ahead = [], [], False
    for text in (part.strip() for part in texts):
        try:
            if text == AHEAD:
                ahead = True
            elif text.lstrip("-").isdecimal():
                steps.append(int(text))
            else:
                parts.append(float(text))
        except ValueError:
            raise IneError(
                f"look {text!r}: expected steps such as 5,10, fractions of the run such as "
                f"0.1,0.2, or {AHEAD}"
            ) from None
    return Looks(steps=tuple(steps), parts=tuple(parts), ahead=ahead)
