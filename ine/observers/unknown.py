"""What happens where an observer gives no answer."""

from typing import Literal

from ine.errors import ObserverError
from ine.observers.base import Answer

OnUnknown = Literal["hold", "steer", "abort"]
"""hold: as after the last look. steer: as if the concept was found. abort: end the run."""

DEFAULT: OnUnknown = "steer"
"""A picture that nobody could look at is not a safe picture. (The code released with VL-DNP,
arXiv 2510.26052, switches its protection off there.)"""


def is_found(answer: Answer, on_unknown: OnUnknown = DEFAULT, before: bool = False) -> bool:
    """Return whether a concept counts as found.

    Args:
        answer: The observer's.
        on_unknown: What an unknown answer means.
        before: What this function returned for the same picture at the look before; False at the
            first look.

    Raises:
        ObserverError: The answer is unknown, and that is to end the run.
        ValueError: `on_unknown` is something else.
    """
    if answer.found is not None:
        return answer.found
    if on_unknown == "steer":
        return True
    if on_unknown == "hold":
        return before
    if on_unknown == "abort":
        said = answer.why or repr(answer.raw[:200])
        raise ObserverError(
            f"the observer gave no answer ({answer.unknown}: {said}), and unknown answers end the "
            "run; repair the observer, or let them count as found (steer) or as before (hold)"
        )
    raise ValueError(f"on_unknown is {on_unknown!r}; expected hold, steer or abort")
