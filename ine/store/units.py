"""Resumable units: what a run makes is kept under keys, so that a killed run repeats little.

- A key is a hash of everything that the content depends on: `key_of`.
- A file is written whole or not at all (`ine.files`), with the same bytes whoever writes it.
- Reading it (`reading`) gives the unit or raises `Missing`: there is no file, it has another key
  (`OtherKey`), or it is not what was written (`Damaged`).

What is missing is made. What is damaged is an error that names the file, since under a name that a
user chose may be a file of the user's own. Only the store of a grid, where a file's name is its
key, makes a damaged unit again, with a warning.

Units are kept in two formats. `ine.store.pictures` keeps PNGs in an archive: a fifth of the size
of their pixels, read one at a time, opened by any viewer. `ine.store.tensors` keeps safetensors,
exact to the last bit in every dtype. Either would be the worse choice for the other.
"""

import json
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ine.errors import PicturesError
from ine.files import sha256_of

DAMAGE = (
    *(SafetensorError, OSError, LookupError, TypeError, ValueError, RuntimeError, EOFError),
    *(zipfile.BadZipFile, zlib.error, PicturesError),
)
"""What reading a damaged file raises; JSON that is too deep raises RecursionError, which is a
RuntimeError, and so does a dtype that this torch does not have."""


class Missing(Exception):
    """A unit is not there, or not as it should be."""


class OtherKey(Missing):
    """There is a unit of another key, format or setting."""


class Damaged(Missing):
    """The file is not what was written."""


def key_of(**about: Any) -> str:
    """Return 64 hex digits that depend on every value and its name; values are those of JSON."""
    return sha256_of(json.dumps(about, sort_keys=True).encode())


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Raise `Missing` for whatever is wrong with a file that is read inside."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise Missing(f"{path}: is not there") from error
    except DAMAGE as error:
        raise Damaged(f"{path}: is broken ({error})") from error
