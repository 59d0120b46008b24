"""Writing that cannot be half done, hashing, and finding what ships with the package."""

import errno
import hashlib
import json
import os
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path

from ine.errors import OutputError

JSON_LIMIT = 10_000_000
"""Bytes of JSON that are parsed; in memory it takes up to 25 times as much."""


@contextmanager
def atomic_path(path):
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
        raise _output_error(path, error) from error
    os.close(handle)
    part = Path(name)
    try:
        yield part
        with part.open("rb") as file:
            os.fsync(file.fileno())
        # mkstemp makes 0600; an ordinary file has what the umask leaves.
        umask = os.umask(0)
        os.umask(umask)
        part.chmod(0o666 & ~umask)
        part.replace(path)
    except OSError as error:
        raise _output_error(path, error) from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _output_error(path, error):
    what = why_refused(error)
    return OutputError(f"{path}: cannot be written ({what}); choose another --out or free space")


def why_refused(error):
    """Return in words why the operating system refused, from its `OSError`."""
    full = error.errno == errno.ENOSPC
    return "the disk is full" if full else error.strerror or str(error)


def is_lfs_pointer(start):
    """Return whether a file that begins with these bytes stands for one that git-lfs has."""
    return start.startswith(b"version https://git-lfs")


def is_web_page(start):
    """Return whether a file that begins with these bytes is HTML, what a failed download leaves."""
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    return text.startswith((b"<!doctype", b"<html", b"<?xml"))


def write_bytes(path, data):
    """Write bytes atomically."""
    with atomic_path(path) as part:
        part.write_bytes(data)


def write_text(path, text):
    """Write UTF-8 text atomically."""
    write_bytes(path, text.encode())


def write_json(path, value):
    """Write JSON atomically, indented, with a final newline."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_within(path, limit):
    """Return a UTF-8 text that may come from a stranger, reading no more than is allowed.

    Raises:
        OSError: It cannot be read.
        ValueError: It is no UTF-8, or has more than `limit` bytes.
    """
    with Path(path).open("rb") as file:
        raw = file.read(limit + 1)
    if len(raw) > limit:
        raise ValueError(f"it has over {limit:,} bytes, which none of its kind needs")
    return raw.decode()


def parse_json(text):
    """Return what JSON from a stranger says.

    Raises:
        ValueError: It is not JSON, or has half a character in it (a lone surrogate), which could
            be neither written nor shown.
        RecursionError: It is too deep.
    """
    found = json.loads(text)
    if b"\\ud" in (text if isinstance(text, bytes) else text.encode()).lower():
        json.dumps(found, ensure_ascii=False).encode()
    return found


def user_path(typed):
    """Return a path that a user typed, with `~` filled in where there is such a user."""
    path = Path(typed)
    try:
        return path.expanduser()
    except (RuntimeError, ValueError):  # "~name" of nobody here; a NUL
        return path


def check_free(path, force=False):
    """Raise `OutputError` if `path` exists and may not be replaced."""
    path = Path(path)
    if path.exists() and not force:
        raise OutputError(f"{path}: exists already; give --force to replace it, or another --out")


def check_suffix(path, suffix=".safetensors"):
    """Raise `OutputError` if an embedding's path has another extension than UIs look for."""
    path = Path(path)
    if path.suffix != suffix:
        raise OutputError(
            f"{path}: embeddings are written as {suffix}, by which UIs know them; use "
            f"{path.stem or 'NAME'}{suffix}"
        )


def sha256_of(*chunks):
    """Return the SHA-256 of byte strings, as 64 hex digits."""
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()


def shipped(kind):
    """Return the folder of shipped files: `kind` is "recipes" or "embeddings".

    An installed wheel has them in `ine/shipped/`; a checkout (also an editable install) at
    its top level, where an import mapping would not find them.
    """
    package = Path(__file__).parent
    for folder in (package / "shipped" / kind, package.parent / kind):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"shipped {kind} are missing from this installation of ine")
