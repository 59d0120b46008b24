"""Atomic writes, hashes, and the files that ship with the package."""

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ine.errors import OutputError

JSON_LIMIT = 10_000_000
"""Largest size in bytes of JSON that is parsed; in memory it takes up to 25 times as much."""


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the target's folder; on success it replaces the target.

    The file is flushed to disk before the rename, so a kill or a power cut leaves the old file
    or the new one. On an exception the temporary file is removed and the old file stays.

    Raises:
        OutputError: The folder cannot be written, or the disk is full.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    except OSError as error:
        raise cannot_be_written(path, error) from error
    os.close(handle)
    part = Path(name)
    try:
        yield part
        with part.open("rb") as file:
            os.fsync(file.fileno())
        # mkstemp creates mode 0600; an ordinary file has what the umask allows.
        umask = os.umask(0)
        os.umask(umask)
        part.chmod(0o666 & ~umask)
        part.replace(path)
    except OSError as error:
        raise cannot_be_written(path, error) from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def cannot_be_written(path: Path, error: OSError) -> OutputError:
    """Return the error for a file that cannot be written."""
    what = why_refused(error)
    return OutputError(f"{path}: cannot be written ({what}); choose another --out or free space")


def why_refused(error: OSError) -> str:
    """Return the operating system's reason for an error, in words."""
    full = error.errno == errno.ENOSPC
    return "the disk is full" if full else error.strerror or str(error)


def is_lfs_pointer(start: bytes) -> bool:
    """Return whether a file that starts with these bytes is a git-lfs pointer."""
    return start.startswith(b"version https://git-lfs")


def is_web_page(start: bytes) -> bool:
    """Return whether a file that starts with these bytes is HTML, as after a failed download."""
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    return text.startswith((b"<!doctype", b"<html", b"<?xml"))


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write bytes atomically."""
    with atomic_path(path) as part:
        part.write_bytes(data)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    write_bytes(path, text.encode())


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON atomically, indented, with a final newline."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def append_text(path: Path, text: str) -> None:
    """Add UTF-8 text to the end of a file and flush it to disk.

    A kill leaves all of the text or nothing; a full disk or a power cut may leave its start, which
    `whole_lines` recognises.

    Raises:
        OutputError: The file cannot be written, or the disk is full.
    """
    try:
        with Path(path).open("ab") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise cannot_be_written(path, error) from error


def whole_lines(data: bytes) -> tuple[list[str], bool]:
    """Return the lines of JSON-lines bytes from `append_text`, and whether the last was incomplete.

    A last line without its newline is kept if it is JSON (an editor may have removed the newline),
    otherwise it is incomplete and left out, unless it is the only one. Only a newline ends a line:
    other characters at which `str.splitlines` splits may be inside.

    Raises:
        ValueError: The lines are not UTF-8.
    """
    lines = data.removesuffix(b"\n").split(b"\n")
    torn = not data.endswith(b"\n") and len(lines) > 1 and not _is_json(lines[-1])
    return [line.decode() for line in (lines[:-1] if torn else lines)], torn


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def read_within(path: str | Path, limit: int) -> str:
    """Return a UTF-8 file that may come from a stranger, reading at most `limit` bytes.

    Raises:
        OSError: It cannot be read.
        ValueError: It is not UTF-8, or has more than `limit` bytes.
    """
    with Path(path).open("rb") as file:
        raw = file.read(limit + 1)
    if len(raw) > limit:
        raise ValueError(f"it has over {limit:,} bytes, which none of its kind needs")
    return raw.decode()


def parse_json(text: str | bytes) -> Any:
    """Return the value of JSON from a stranger.

    Raises:
        ValueError: It is not JSON, or contains half a character (a lone surrogate), which cannot be
            written or shown.
        RecursionError: It is too deep.
    """
    found = json.loads(text)
    if b"\\ud" in (text if isinstance(text, bytes) else text.encode()).lower():
        json.dumps(found, ensure_ascii=False).encode()
    return found


def user_path(typed: str | Path) -> Path:
    """Return a path that a user typed, with `~` expanded if that user exists."""
    path = Path(typed)
    try:
        return path.expanduser()
    except (RuntimeError, ValueError):  # an unknown "~name"; a NUL
        return path


def check_free(path: Path | str, force: bool = False) -> None:
    """Raise `OutputError` if `path` is a folder, or exists and `force` is not given."""
    path = Path(path)
    if path.is_dir():
        raise OutputError(f"{path}: is a folder, expected the name of a file; choose another --out")
    if path.exists() and not force:
        raise OutputError(f"{path}: exists already; give --force to replace it, or another --out")


def check_suffix(path: str | Path, suffix: str = ".safetensors") -> None:
    """Raise `OutputError` if an embedding's path lacks the extension that UIs expect."""
    path = Path(path)
    if path.suffix != suffix:
        raise OutputError(
            f"{path}: embeddings are written as {suffix}, which UIs expect; use "
            f"{path.stem or 'NAME'}{suffix}"
        )


def sha256_of(*chunks: bytes) -> str:
    """Return the SHA-256 of byte strings, as 64 hex digits."""
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()


def shipped(kind: str) -> Path:
    """Return the folder of shipped files: `kind` is "recipes" or "embeddings".

    An installed wheel has them in `ine/shipped/`; a checkout (also an editable install) at
    its top level, where an import mapping would not find them.
    """
    package = Path(__file__).parent
    for folder in (package / "shipped" / kind, package.parent / kind):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"shipped {kind} are missing from this installation of ine")
