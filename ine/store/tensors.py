"""Units of tensors and plain values, each a safetensors file.

The one entry of its metadata is JSON that holds the unit's key and its plain values.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import save

from ine.errors import IneError, PicturesError
from ine.files import write_bytes
from ine.store.units import Damaged, Missing, OtherKey, reading

T = TypeVar("T")
Tensors = dict[str, torch.Tensor]
Notes = dict[str, Any]
"""Plain values that JSON can hold."""


def write_tensors(path: Path, tensors: Tensors, entry: str, notes: Notes) -> None:
    """Write tensors and plain values to a safetensors file; the same input gives the same bytes.

    Args:
        path: The file.
        tensors: On any device, in any memory order.
        entry: Name of the one metadata entry; safetensors does not promise the order of several.
        notes: The values of that entry.

    Raises:
        OutputError: The file cannot be written.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_bytes(path, save(plain, metadata={entry: json.dumps(notes, ensure_ascii=False)}))


def read_tensors(path: Path, entry: str, expected: Notes) -> tuple[Tensors, Notes]:
    """Return what `write_tensors` wrote; to be called within `reading`.

    Args:
        path: The file.
        entry: Name of the metadata entry.
        expected: Values that the notes must hold, such as a key; no tensor is read otherwise.

    Raises:
        OtherKey: The notes differ from the expected ones.
    """
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        # Earlier versions kept the examples of a probe with their key as the only entry.
        old = entry not in metadata and metadata.keys() == {"key"}
        notes = dict(metadata) if old else json.loads(metadata[entry])
        if any(notes[name] != value for name, value in expected.items()):
            raise OtherKey(f"{path}: is of another key or format")
        return {name: file.get_tensor(name) for name in file.keys()}, notes  # noqa: SIM118


@dataclass(frozen=True, kw_only=True)
class UnitFiles(Generic[T]):
    """How units of one kind become files, and values again."""

    what: str
    """The kind, for messages: "a cache of pictures"."""

    entry: str
    """Name of the metadata entry."""

    pack: Callable[[T], tuple[Tensors, Notes]]
    unpack: Callable[[Tensors, Notes], T]
    """The reverse of `pack`; raises `ValueError`, `LookupError` or `TypeError` where the pieces do
    not belong together."""

    format: str | None = None
    """Name of the file format; a file of another one counts as missing."""

    error: type[IneError] = PicturesError

    def write(self, value: T, path: Path, key: str) -> None:
        """Write a unit.

        Args:
            value: The unit.
            path: A `.safetensors` file.
            key: What the unit depends on, such as a hash of recipe and weights.

        Raises:
            OutputError: The file cannot be written.
        """
        tensors, notes = self.pack(value)
        write_tensors(path, tensors, self.entry, {**self._marks(key), **notes})

    def read(self, path: Path, key: str) -> T | None:
        """Return a unit, or None if there is no file or it has another key.

        Raises:
            IneError: Of the class `error`, if the file is damaged or of another kind.
        """
        try:
            with reading(path):
                return self.unpack(*read_tensors(path, self.entry, self._marks(key)))
        except Damaged as error:
            raise self.error(
                f"{path}: is not {self.what}, or is damaged; delete it and run again"
            ) from error
        except Missing:
            return None

    def get(self, path: Path | None, key: str, make: Callable[[], T]) -> T:
        """Return a unit from its file, or make it and write the file; None keeps no file."""
        found = self.read(path, key) if path else None
        if found is None:
            found = make()
            if path:
                self.write(found, path, key)
        return found

    def _marks(self, key: str) -> Notes:
        return {"key": key} if self.format is None else {"format": self.format, "key": key}
