"""Running one reader on one file under the limits of docs/reliability.md.

Linux only: what a process reserves and uses is read from /proc.
"""

import ctypes
import gc
import os
import resource
import signal
import traceback
from contextlib import suppress
from pathlib import Path

from ine.errors import IneError

SECONDS = 5
"""Processor time of one file."""

EXTRA_BYTES = 256 * 2**20
"""Memory of one file beyond twice its size."""

PAGE = os.sysconf("SC_PAGE_SIZE")
NO_MEMORY = ("can't allocate memory", "cannot allocate memory", "bad_alloc")


class Hang(BaseException):
    """Time is up; no Exception, so that no reader takes it for a damaged file."""


def settle():
    """Give back memory that earlier work left free, which an action could take unseen."""
    gc.collect()
    with suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def _late(*_):
    raise Hang


def _reserved_and_used():
    reserved, used = Path("/proc/self/statm").read_text().split()[:2]
    return int(reserved) * PAGE, int(used) * PAGE


def _most_used():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) * 1024


def watched(action, size, canary):
    """Return (outcome, detail) of reading one file.

    Args:
        action: Reads it.
        size: Of the file in bytes.
        canary: A path that exists once foreign code has run.

    Returns:
        "loaded" or "refused", or a finding: "exception", "hang", "memory", "ran", "wrong"; the
        detail says where, so that equal findings have equal details.
    """
    allowance = 2 * size + EXTRA_BYTES
    reserved, used = _reserved_and_used()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # forget the most that was used
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    signal.signal(signal.SIGPROF, _late)
    outcome, detail = "loaded", ""
    resource.setrlimit(resource.RLIMIT_AS, (reserved + allowance, hard))
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        try:
            action()
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
    except Hang as error:
        outcome, detail = "hang", _where(error)
    except MemoryError as error:
        outcome, detail = "memory", f"MemoryError {_where(error)}"
    except IneError as error:
        # A reader may take a refused reservation for a damaged file, which it is not.
        denied = _denied(error)
        outcome, detail = (
            ("memory", f"reserved too much {_where(denied)}") if denied else ("refused", "")
        )
    except AssertionError as error:
        outcome, detail = "wrong", f"{str(error)[:80]} {_where(error)}"
    except Exception as error:
        kind = "memory" if _denied(error) else "exception"
        outcome, detail = kind, f"{type(error).__name__} {_where(error)}"
    if outcome in ("loaded", "refused") and _most_used() - used > allowance:
        outcome, detail = "memory", "used too much"
    if canary.exists():
        canary.unlink()
        outcome, detail = "ran", "foreign code ran"
    return outcome, detail


def _denied(error):
    """Return the error in a chain that speaks of memory that was not given, or None."""
    while error is not None:
        text = str(error).lower()
        if isinstance(error, MemoryError) or any(words in text for words in NO_MEMORY):
            return error
        error = error.__cause__ or error.__context__
    return None


def _where(error):
    """Return the innermost line of ine, and the innermost of all."""
    frames = traceback.extract_tb(error.__traceback__)
    spots = [f"{Path(f.filename).name}:{f.name}" for f in frames]
    mine = [s for s, f in zip(spots, frames, strict=True) if "/ine/" in f.filename]
    return " in ".join(dict.fromkeys([*mine[-1:], *spots[-1:]]))
