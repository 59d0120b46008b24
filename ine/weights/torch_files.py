"""Torch files, checked by their bytes for what they would call and allocate, then loaded.

`torch.load(weights_only=True)` runs no foreign code, but calls the functions that it allows: a
file of a hundred bytes can ask it for `bytearray(10**12)`, for a storage of a terabyte, or for
the hash of a tuple that holds itself sixty times over. Files of weights need none of that. Here
the pickle is followed with stand-ins (`ine.weights.torch_pickles`), and anything but names,
numbers and stored tensors is refused; then torch reads it, with its own limits on top.
"""

import io
import os
import struct
import threading
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch.overrides import TorchFunctionMode

from ine.weights import numpy_pickles
from ine.weights.pickles import List, walk
from ine.weights.torch_pickles import STORAGES, Stored, torch_rules

PICKLE_LIMIT = 50_000_000
"""Bytes of one text in a pickle, and of the pickle in a zip; 200 per tensor are usual."""

DIRECTORY_LIMIT = 16_000_000
"""Bytes of a zip directory; 100 per tensor are usual."""

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
"""First value of a torch file from before 1.6."""


def load_torch_file(path: str | Path, mapped: bool = False) -> Any:
    """Return what `torch.save` was given, after `check_torch_file`; no code runs.

    Args:
        path: The file; if it is mapped, torch looks at its extension.
        mapped: Map tensors instead of reading them, which only the zip format allows.

    Raises:
        pickle.UnpicklingError: As for `check_torch_file`, or torch itself refuses it.
        Exception: Of nearly any kind, for damaged bytes.
    """
    check_torch_file(path)
    known = known_to_torch(*numpy_pickles.torch_globals())
    with known, OnTheCpu(), warnings.catch_warnings(), open(path, "rb") as file:
        # torch warns of pickle protocols and old storages; it is enough to know whether it loads.
        warnings.simplefilter("ignore")
        if mapped and file.read(2) == b"PK":
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        file.seek(0)
        return torch.load(file, map_location="cpu", weights_only=True)


class OnTheCpu(TorchFunctionMode):
    """Keeps tensors on the CPU that a file sends to the device it was written on.

    `map_location` does not affect tensors that torch made from numpy's arrays in older files.
    """

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.to and "device" in kwargs:
            kwargs["device"] = "cpu"
        return func(*args, **kwargs)


REGISTERING = threading.RLock()
"""Held while torch allows more names, since its list is shared by all threads."""


@contextmanager
def known_to_torch(*things: object) -> Iterator[None]:
    """Allow torch's restricted unpickler some classes and functions within a `with` block."""
    with REGISTERING:
        before = torch.serialization.get_safe_globals()
        torch.serialization.add_safe_globals(list(things))
        try:
            yield
        finally:
            torch.serialization.clear_safe_globals()
            torch.serialization.add_safe_globals(before)


def check_torch_file(path: str | Path) -> None:
    """Raise unless a torch file is plain: names, numbers, and tensors that it really stores.

    Raises:
        pickle.UnpicklingError: It names code, after the word GLOBAL, or needs instructions that
            plain weights do not.
        ValueError: It is damaged, or claims more than the file holds.
        OSError: It cannot be read.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"
        file.seek(0)
        try:
            _check_zip(file, size) if is_zip else _check_legacy(_Bounded(file, size), size)
        except (zipfile.BadZipFile, NotImplementedError, struct.error, LookupError) as error:
            raise ValueError(str(error) or type(error).__name__) from error


class _Bounded:
    """A file that never reads past its end, since a read reserves the memory it asks for."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.size = file, size
        self.tell = file.tell

    def read(self, count: int) -> bytes:
        if count > PICKLE_LIMIT:
            raise ValueError(f"its pickle claims a text of {count} bytes")
        return self.file.read(max(0, min(count, self.size - self.file.tell())))

    def readline(self) -> bytes:
        return self.file.readline(1000)

    def read_at(self, place: int, count: int) -> bytes:
        self.file.seek(place)
        return self.read(count)


def _check_legacy(file: _Bounded, size: int) -> None:
    """Check the five pickles of a file from before torch 1.6."""
    stored: dict[str, Stored] = {}
    left = size

    def store(kind: str, key: str, _: object, numel: int, view: object = None) -> Stored:
        nonlocal left
        if view is not None:
            raise ValueError("a storage is a view of another one")
        if key not in stored:
            stored[key] = Stored(numel * STORAGES[kind], numel)
            left -= stored[key].nbytes
        if left < 0:
            raise ValueError(f"its tensors claim over {size - left} bytes, the file has {size}")
        return stored[key]

    if walk(file, torch_rules()) != LEGACY_MAGIC:
        raise ValueError("it is a pickle, but not one that torch.save wrote")
    for _ in ("protocol", "system"):
        walk(file, torch_rules())
    walk(file, torch_rules(store))
    keys = walk(file, torch_rules())
    if not isinstance(keys, List) or not all(isinstance(key, str) for key in keys.items):
        raise ValueError("its list of storages is damaged")
    if len(keys.items) != len(stored) or set(keys.items) != stored.keys():
        raise ValueError("its list of storages is not that of its tensors")
    at = file.tell()
    for key in keys.items:
        numel = int.from_bytes(file.read_at(at, 8), "little")
        at += 8 + stored[key].nbytes
        # torch reserves as much memory as this number says.
        if numel != stored[key].numel or at > size:
            raise ValueError(f"storage {key[:80]} is cut short or of another size")


def _check_zip(file: BinaryIO, size: int) -> None:
    """Check the members and the pickle of a file since torch 1.6."""
    _check_directory(file, size)
    prefix, records = _members(file, size)

    def store(kind: str, key: str, _: object, numel: int) -> Stored:
        nbytes = numel * STORAGES[kind]
        member = records.get(f"{prefix}/data/{key}".lower())
        found = member.file_size if member else 0
        if nbytes != found:
            raise ValueError(f"storage {key[:80]} claims {nbytes} bytes, the file has {found}")
        return Stored(nbytes, numel)

    member = records[f"{prefix}/data.pkl".lower()]
    if member.file_size > PICKLE_LIMIT:
        raise ValueError(f"its pickle has {member.file_size} bytes")
    file.seek(member.header_offset)
    head = file.read(30)
    if head[:4] != b"PK\x03\x04":
        raise ValueError("its zip directory points to nothing")
    file.seek(sum(struct.unpack("<HH", head[26:30])), os.SEEK_CUR)
    walk(io.BytesIO(file.read(member.file_size)), torch_rules(store))


def _members(file: BinaryIO, size: int) -> tuple[str, dict[str, zipfile.ZipInfo]]:
    """Return the folder of a zip's members, and {name in lower case: member}.

    Raises:
        ValueError: They are not those that `torch.save` writes.
    """
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
    prefix = members[0].filename.split("/")[0] if members else ""
    records: dict[str, zipfile.ZipInfo] = {}
    for member in members:
        name = member.filename
        # torch ignores case when it looks for records, so names must differ by more than case.
        if name.lower() in records:
            raise ValueError(f"member {name[:80]!r} is there twice")
        if not name.startswith(f"{prefix}/") or ".." in name.split("/") or "\\" in name:
            raise ValueError(f"member {name[:80]!r} is outside of the folder {prefix[:80]!r}")
        if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
            raise ValueError(f"member {name[:80]!r} is compressed, which torch.save never does")
        records[name.lower()] = member
    if sum(member.file_size for member in members) > size:
        raise ValueError("its members claim more bytes than the file has")
    if f"{prefix}/data.pkl".lower() not in records:
        raise ValueError("it is a zip archive, but not one that torch.save wrote")
    return prefix, records


def _check_directory(file: BinaryIO, size: int) -> None:
    """Refuse a zip directory that two readers of zip files could understand differently."""
    file.seek(max(0, size - 22))
    end = file.read(22)
    if len(end) < 22 or end[:4] != b"PK\x05\x06" or end[20:] != b"\0\0":
        raise ValueError("it has no zip directory at its end")
    length, start = struct.unpack("<II", end[12:20])
    at = size - 22
    if length == 0xFFFFFFFF or length > DIRECTORY_LIMIT:
        raise ValueError(f"its zip directory claims {length} bytes")
    file.seek(max(0, size - 22 - 20))
    if file.read(4) == b"PK\x06\x07":  # files over 4 GB have a second, wider end record
        at -= 20 + 56
        file.seek(max(0, at))
        wide = file.read(56)
        if wide[:4] != b"PK\x06\x06":
            raise ValueError("its zip directory is damaged")
        length, start = struct.unpack("<QQ", wide[40:56])
    if start + length != at:
        raise ValueError("its zip directory is not where it says")
    file.seek(0)
