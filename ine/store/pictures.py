"""Pictures of a grid, kept by what made them, and what was seen in them.

    units/ab/KEY.zip              the pictures of a unit as PNG, with the guidance's notes
    readings/ab/KEY-NAME.json     raw output of a detector on that unit
    readings/ab/KEY-NAME.npz      numbers per picture of it: features, likeness

KEY is a hash of everything that can change the pixels, so any grid may share a store, and of two
processes that make one unit twice neither does harm.

Shape letters: B pictures of a unit, H W pixels.
"""

import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ine.detectors.base import CUT, Detection, from_json, looks_through_clip, to_json
from ine.errors import OutputError
from ine.files import sha256_of, why_refused, write_bytes
from ine.locks import held
from ine.store.archives import StoredUnit, read_about, read_pictures, write_archive
from ine.store.units import Missing, OtherKey, reading


@dataclass(frozen=True)
class Store:
    """A folder of units and their readings; processes may share it."""

    folder: Path

    def unit_path(self, key: str) -> Path:
        """Return the file of a unit."""
        return Path(self.folder) / "units" / key[:2] / f"{key}.zip"

    def has_unit(self, key: str) -> bool:
        """Return whether a unit's file is there; see `sound`."""
        # Unlike Path.is_file, which raises where one may not look.
        return os.path.isfile(self.unit_path(key))

    def sound(self, key: str) -> bool:
        """Return whether a unit is there and whole, as far as its table of contents shows."""
        try:
            self.about(key)
        except Missing:
            return False
        return True

    def write_unit(
        self,
        key: str,
        pictures: np.ndarray,
        notes: Sequence[dict[str, Any]],
        unet_calls: Iterable[int],
        made: dict[str, Any],
    ) -> None:
        """Write a unit.

        Args:
            key: Its key.
            pictures: uint8 (B, H, W, 3).
            notes: One dict per picture.
            unet_calls: One number per picture.
            made: Plain values.

        Raises:
            OutputError: It cannot be written.
        """
        write_archive(self.unit_path(key), key, pictures, notes, unet_calls, made)

    def about(self, key: str) -> StoredUnit:
        """Return what is known about a unit's pictures; none is decoded.

        Raises:
            Missing: It is not there or broken.
        """
        return read_about(self.unit_path(key), key)

    def pictures(self, key: str, only: Iterable[int] | None = None) -> np.ndarray:
        """Return pictures of a unit, uint8 (B, H, W, 3).

        Args:
            key: Its key.
            only: Positions; all by default.

        Raises:
            Missing: It is not there or broken.
        """
        return read_pictures(self.unit_path(key), only)

    def forget(self, key: str) -> None:
        """Remove a unit that turned out broken, with all its readings.

        Raises:
            OutputError: A file cannot be removed.
        """
        for path in (self.unit_path(key), *self._readings(key).glob(f"{key}-*")):
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise OutputError(
                    f"{path}: cannot be removed ({why_refused(error)}), and what it belongs to is "
                    "broken; remove it, or choose another --out or --store"
                ) from error

    def _readings(self, key: str) -> Path:
        return Path(self.folder) / "readings" / key[:2]

    def reading_path(self, key: str, name: str, suffix: str) -> Path:
        """Return the file of what `name` read in a unit."""
        # CLIP's readings of earlier versions, which cut pictures first, are not found under it.
        about = f"{name}|{CUT}" if looks_through_clip(name) else name
        return self._readings(key) / f"{key}-{sha256_of(about.encode())[:12]}{suffix}"

    def write_look(
        self,
        key: str,
        detector: str,
        settings: dict[str, Any],
        found: Iterable[Sequence[Detection]],
    ) -> None:
        """Write a detector's raw output, tuples of `Detection`, one per picture."""
        rows = [to_json(detections) for detections in found]
        look = {"unit": key, "detector": detector, "settings": settings, "found": rows}
        data = json.dumps(look, sort_keys=True, separators=(",", ":"))
        write_bytes(self.reading_path(key, detector, ".json"), data.encode())

    def look(
        self, key: str, detector: str, settings: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], list[tuple[Detection, ...]]]:
        """Return (the detector's settings, its raw output, a tuple of `Detection` per picture).

        Args:
            key: The unit.
            detector: The name.
            settings: Those that it must have had; by default any.

        Raises:
            Missing: It did not look, looked with other settings, or the file is broken.
        """
        path = self.reading_path(key, detector, ".json")
        with reading(path):
            look = json.loads(path.read_bytes())
            if look["unit"] != key or look["detector"] != detector:
                raise ValueError("it is of another unit")
            rows = [from_json(row) for row in look["found"]]
            if settings is not None and look["settings"] != json.loads(json.dumps(settings)):
                raise OtherKey(f"{path}: {detector} was set otherwise")
            return look["settings"], rows

    def write_numbers(self, key: str, name: str, values: ArrayLike) -> None:
        """Write an array of numbers, one row per picture."""
        data = io.BytesIO()
        np.savez(data, values=np.asarray(values))
        write_bytes(self.reading_path(key, name, ".npz"), data.getvalue())

    def numbers(self, key: str, name: str) -> np.ndarray:
        """Return what `write_numbers` wrote.

        Raises:
            Missing: It is not there or broken.
        """
        path = self.reading_path(key, name, ".npz")
        # Opened here: given a name, numpy leaves a broken archive open.
        with reading(path), path.open("rb") as file, np.load(file, allow_pickle=False) as data:
            return data["values"]

    def get_numbers(self, key: str, name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        """Return numbers of a unit from their file, or make them and write the file."""
        try:
            return self.numbers(key, name)
        except Missing:
            values = make()
            self.write_numbers(key, name, values)
            return values

    @contextmanager
    def claim(self, key: str) -> Iterator[bool]:
        """Yield whether this process alone may make a unit now.

        The lock is the operating system's, so one of a process that died is free.

        Raises:
            OutputError: The folder cannot be written.
        """
        path = Path(self.folder) / "locks" / f"{key}.lock"
        with ExitStack() as stack:
            try:
                alone = stack.enter_context(held(path))
            except OSError as error:
                raise OutputError(
                    f"{path}: cannot be locked ({why_refused(error)}); choose another --out, or a "
                    "--store on a file system with locks"
                ) from error
            yield alone
