"""One process at a time per output: locks that the operating system releases with a process."""

import json
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, SoftFileLock, Timeout

from ine.errors import OutputError
from ine.files import cannot_be_written, why_refused, write_json

LOCK = ".ine.lock"
"""Name of the lock in a folder; beside a file FILE it is `.FILE.lock`."""


@contextmanager
def held(path: Path) -> Iterator[bool]:
    """Yield whether this process got a lock file, without waiting for it.

    The operating system holds the lock, so a killed process does not keep it. The file is created
    with its folder, and removed at the end.

    Raises:
        OSError: The file cannot be created, or its file system has no such locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about soft locks, which are refused below
            lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    except NotImplementedError as error:
        raise OSError(str(error)) from error
    try:
        if isinstance(lock, SoftFileLock):
            # filelock's fallback where the system has no locks: a kill would leave it locked.
            raise OSError("the file system has no locks")
        yield True
    finally:
        # A process that opened the file before its removal finds the work done, or repeats it.
        _remove(path)
        lock.release()


@contextmanager
def sole_writer(out: Path, command: str, *, folder: bool) -> Iterator[None]:
    """Lock an output while a command writes it, so that no second run mixes its files in.

    Args:
        out: The folder or file to write. Missing parent folders are created, and removed again if
            they are empty at the end.
        command: Name of the running command for the other run's error: "ine generate".
        folder: Whether `out` is a folder.

    Raises:
        OutputError: Another process has the lock, or `out` cannot be written or locked.
    """
    place = out if folder else out.parent
    path = place / (LOCK if folder else f".{out.name}.lock")
    about = path.with_name(path.name + ".json")
    if folder:
        _check_folder(out)
    made = [p for p in (place, *place.parents) if not os.path.exists(p)]
    with ExitStack() as stack:
        stack.callback(_remove_empty, made)
        try:
            alone = stack.enter_context(held(path))
        except OSError as error:
            raise _cannot_be_held(out, error) from error
        if not alone:
            raise OutputError(
                f"{out}: {_holder(about)} is writing it; wait until that has ended, or choose "
                "another --out"
            )
        stack.callback(_remove, about)
        write_json(about, _ourselves(command))
        yield


@contextmanager
def one_of_many(folder: Path, work: str) -> Iterator[tuple[str, ...]]:
    """Join the processes that share a folder; yield descriptions of those that do other work there.

    Each process locks a file in `folder/locks` whose name has its work, host and process.

    Args:
        folder: The folder; it is created.
        work: What this process works on, as hex digits.

    Raises:
        OutputError: The folder cannot be written or locked.
    """
    _check_folder(folder)
    path = folder / "locks" / f"run-{work}-{socket.gethostname()}-{os.getpid()}.lock"
    with ExitStack() as stack:
        try:
            stack.enter_context(held(path))
            there = set(path.parent.glob("run-*.lock"))
            same = set(path.parent.glob(f"run-{work}-*.lock"))
            others = [p for p in there - same if _is_held(p)]
        except OSError as error:
            raise _cannot_be_held(folder, error) from error
        yield tuple(map(_described, sorted(others)))


def _is_held(path: Path) -> bool:
    """Return whether a process has a lock; the file of a killed process is removed."""
    with held(path) as free:
        return not free


def _described(path: Path) -> str:
    """Return a description of the process that a file of `one_of_many` belongs to."""
    _, _, host_and_process = path.stem.removeprefix("run-").partition("-")
    host, _, process = host_and_process.rpartition("-")
    where = "" if host == socket.gethostname() else f" on {host}"
    try:
        since = datetime.fromtimestamp(path.stat().st_mtime).astimezone()
    except OSError:  # the process has just ended
        return f"process {process}{where}"
    return f"process {process}{where}, started {since.isoformat(sep=' ', timespec='seconds')}"


def _check_folder(out: Path) -> None:
    if os.path.exists(out) and not out.is_dir():
        raise OutputError(f"{out}: is not a folder; choose another --out")


def _cannot_be_held(out: Path, error: OSError) -> OutputError:
    if error.filename is not None:  # the error is about a file, not about locking
        return cannot_be_written(out, error)
    return OutputError(
        f"{out}: cannot be locked ({why_refused(error)}), so that a second run could mix its files "
        "with those of this one; choose an --out on a file system with locks"
    )


def _ourselves(command: str) -> dict[str, str | int]:
    started = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    host = socket.gethostname()
    return {"command": command, "process": os.getpid(), "started": started, "host": host}


def _holder(about: Path) -> str:
    """Return a description of the lock's holder, which it may not have written yet."""
    try:
        said = json.loads(about.read_bytes())
        where = "" if said["host"] == socket.gethostname() else f" on {said['host']}"
        process = f"process {said['process']}{where}, started {said['started']}"
        return f"another `{said['command']}` ({process})"
    except (OSError, ValueError, LookupError, TypeError):
        return "another process"


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink()


def _remove_empty(folders: list[Path]) -> None:
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()
