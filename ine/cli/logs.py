"""The `ine` logger on stderr while a command runs."""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

log = logging.getLogger("ine")


class LevelFormatter(logging.Formatter):
    """Plain text for progress, "Warning: ..." and "Error: ..." for higher levels."""

    def __init__(self, fit: Callable[[str], str]) -> None:
        """Take the function that fits a message to the command that runs."""
        super().__init__()
        self.fit = fit

    def format(self, record: logging.LogRecord) -> str:
        """Return the line for a record."""
        prefix = f"{record.levelname.capitalize()}: " if record.levelno > logging.INFO else ""
        return prefix + self.fit(super().format(record))


@contextmanager
def logging_to_stderr(
    verbosity: int = 0, fit: Callable[[str], str] = lambda text: text
) -> Iterator[None]:
    """Send the `ine` logger to stderr while a command runs.

    Args:
        verbosity: 0 shows progress, 1 and more also details, -1 warnings, -2 and less errors.
        fit: Function that every message passes through.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LevelFormatter(fit))
    levels = {1: logging.DEBUG, 0: logging.INFO, -1: logging.WARNING, -2: logging.ERROR}
    before = log.level
    log.addHandler(handler)
    log.setLevel(levels[max(-2, min(1, verbosity))])
    try:
        yield
    finally:
        log.setLevel(before)
        log.removeHandler(handler)
