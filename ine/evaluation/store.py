"""Pictures kept by what made them, and what was seen in them.

    units/ab/KEY.zip              the pictures of a unit as PNG, with the guidance's notes
    readings/ab/KEY-NAME.json     raw output of a detector on that unit
    readings/ab/KEY-NAME.npz      numbers per picture of it: features, likeness

KEY is a hash of everything that can change the pixels, so any grid may share a store. All files
are written atomically and are the same bytes whoever writes them, so that of two processes that
make one unit twice neither does harm.

Shape letters: B pictures of a unit, H W pixels.
"""

import io
import json
import os
import zipfile
import zlib
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from ine.errors import OutputError, PicturesError
from ine.files import sha256_of, why_refused, write_bytes
from ine.judging.detection import from_json, to_json
from ine.pictures import png_bytes, png_picture

ABOUT = "about.json"
LONG_AGO = (1980, 1, 1, 0, 0, 0)
"""Date of every file in an archive: the same pictures make the same bytes."""


@dataclass(frozen=True, kw_only=True)
class StoredUnit:
    """What is known about the pictures of a unit."""

    notes: tuple[dict, ...]
    """What the guidance logged, one per picture."""

    unet_calls: tuple[int, ...]
    """U-Net evaluations, one number per picture."""

    made: dict
    """What may move the last bits: device, threads, versions."""

    @property
    def count(self):
        """Return the number of pictures, B."""
        return len(self.unet_calls)


class Missing(Exception):
    """A file of the store is not there, or is broken."""


@dataclass(frozen=True)
class Store:
    """A folder of units and readings; processes may share it."""

    folder: Path

    # --- units

    def unit_path(self, key):
        """Return the file of a unit."""
        return Path(self.folder) / "units" / key[:2] / f"{key}.zip"

    def has_unit(self, key):
        """Return whether a unit's file is there; see `sound`."""
        # Unlike Path.is_file, which raises where one may not look.
        return os.path.isfile(self.unit_path(key))

    def sound(self, key):
        """Return whether a unit is there and whole, as far as its table of contents tells."""
        try:
            self.about(key)
        except Missing:
            return False
        return True

    def write_unit(self, key, pictures, notes, unet_calls, made):
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
        about = {"key": key, "notes": notes, "unet_calls": list(unet_calls), "made": made}
        files = {ABOUT: json.dumps(about, sort_keys=True).encode()}
        files |= {f"{i:03d}.png": png_bytes(picture) for i, picture in enumerate(pictures)}
        data = io.BytesIO()
        with zipfile.ZipFile(data, "w") as archive:
            for name, content in files.items():
                archive.writestr(zipfile.ZipInfo(name, LONG_AGO), content)
        write_bytes(self.unit_path(key), data.getvalue())

    def about(self, key):
        """Return the `StoredUnit` of a key; no picture is decoded.

        Raises:
            Missing: It is not there or broken.
        """
        path = self.unit_path(key)
        with _opened(path) as archive:
            about = json.loads(archive.read(ABOUT))
            found = StoredUnit(
                notes=tuple(about["notes"]),
                unet_calls=tuple(map(int, about["unet_calls"])),
                made=dict(about["made"]),
            )
            names = {f"{i:03d}.png" for i in range(found.count)} | {ABOUT}
            if about["key"] != key or set(archive.namelist()) != names:
                raise Missing(f"{path}: is another unit than its name says")
        return found

    def pictures(self, key, only=None):
        """Return pictures of a unit, uint8 (B, H, W, 3).

        Args:
            key: Its key.
            only: Positions; all by default.

        Raises:
            Missing: It is not there or broken.
        """
        with _opened(self.unit_path(key)) as archive:
            names = sorted(name for name in archive.namelist() if name != ABOUT)
            chosen = names if only is None else [names[i] for i in only]
            return np.stack([png_picture(archive.read(name)) for name in chosen])

    def forget(self, key):
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

    # --- readings

    def _readings(self, key):
        return Path(self.folder) / "readings" / key[:2]

    def reading_path(self, key, name, suffix):
        """Return the file of what `name` read in a unit."""
        return self._readings(key) / f"{key}-{sha256_of(name.encode())[:12]}{suffix}"

    def write_look(self, key, detector, settings, found):
        """Write a detector's raw output, tuples of `Detection`, one per picture."""
        rows = [to_json(detections) for detections in found]
        look = {"unit": key, "detector": detector, "settings": settings, "found": rows}
        data = json.dumps(look, sort_keys=True, separators=(",", ":"))
        write_bytes(self.reading_path(key, detector, ".json"), data.encode())

    def look(self, key, detector, settings=None):
        """Return (the detector's settings, its raw output, a tuple of `Detection` per picture).

        Args:
            key: The unit.
            detector: The name.
            settings: Those that it must have had; by default any.

        Raises:
            Missing: It did not look, looked with other settings, or the file is broken.
        """
        path = self.reading_path(key, detector, ".json")
        try:
            look = json.loads(path.read_bytes())
            if look["unit"] != key or look["detector"] != detector:
                raise ValueError("it is of another unit")
            rows = [from_json(row) for row in look["found"]]
        except FileNotFoundError as error:
            raise Missing(f"{path}: is not there") from error
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise Missing(f"{path}: is broken ({error})") from error
        if settings is not None and look["settings"] != json.loads(json.dumps(settings)):
            raise Missing(f"{path}: {detector} was set otherwise")
        return look["settings"], rows

    def write_numbers(self, key, name, values):
        """Write an array of numbers, one row per picture."""
        data = io.BytesIO()
        np.savez(data, values=np.asarray(values))
        write_bytes(self.reading_path(key, name, ".npz"), data.getvalue())

    def numbers(self, key, name):
        """Return what `write_numbers` wrote.

        Raises:
            Missing: It is not there or broken.
        """
        path = self.reading_path(key, name, ".npz")
        try:
            # Opened here: given a name, numpy leaves a broken archive open.
            with path.open("rb") as file, np.load(file, allow_pickle=False) as data:
                return data["values"]
        except FileNotFoundError as error:
            raise Missing(f"{path}: is not there") from error
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise Missing(f"{path}: is broken ({error})") from error

    # --- locks

    @contextmanager
    def claim(self, key):
        """Yield whether this process alone may make a unit now.

        The lock is the operating system's, so one of a process that died is free.

        Raises:
            OutputError: The folder cannot be written.
        """
        path = Path(self.folder) / "locks" / f"{key}.lock"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(path)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                yield False
                return
        except OSError as error:
            raise OutputError(
                f"{path}: cannot be locked ({why_refused(error)}); choose another --out, or a "
                "--store on a file system with locks"
            ) from error
        try:
            yield True
        finally:
            # Whoever opened the file before it goes finds the unit made, or makes the same again.
            with suppress(OSError):
                path.unlink(missing_ok=True)
            lock.release()


@contextmanager
def _opened(path):
    """Open an archive of the store; whatever is wrong with it is `Missing`."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except FileNotFoundError as error:
        raise Missing(f"{path}: is not there") from error
    # A damaged archive raises nearly anything, zlib's errors among it.
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        EOFError,
        IndexError,
        NotImplementedError,
        RuntimeError,
        zipfile.BadZipFile,
        zlib.error,
        PicturesError,
    ) as error:
        raise Missing(f"{path}: is broken ({error})") from error
