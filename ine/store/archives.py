"""Units of pictures, each an archive of PNGs and of what is known about them.

Shape letters: B pictures of a unit, H W pixels.
"""

import io
import json
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ine.files import write_bytes
from ine.finite import REDONE
from ine.pictures import blank_line, is_blank, png_bytes, png_picture
from ine.store.units import Missing, OtherKey, reading

ABOUT = "about.json"
LONG_AGO = (1980, 1, 1, 0, 0, 0)
"""Date of every file in an archive: the same pictures make the same bytes."""


@dataclass(frozen=True, kw_only=True)
class StoredUnit:
    """What is known about the pictures of a unit."""

    notes: tuple[dict[str, Any], ...]
    """What the guidance logged, one per picture."""

    unet_calls: tuple[int, ...]
    """U-Net evaluations, one number per picture."""

    made: dict[str, Any]
    """What may move the last bits: device, threads, versions."""

    blank: tuple[bool, ...]
    """Whether a picture is wholly one colour; all numbers behind it were finite."""

    @property
    def redone(self) -> tuple[bool, ...]:
        """Return which pictures were made again in float32, see `ine.finite`."""
        return tuple(bool(note.get(REDONE)) for note in self.notes)

    @property
    def count(self) -> int:
        """Return the number of pictures, B."""
        return len(self.unet_calls)


class Doubtful(Missing):
    """A unit with blank pictures, of a version that did not look for NaN behind them."""


def write_archive(
    path: Path,
    key: str,
    pictures: np.ndarray,
    notes: Sequence[dict[str, Any]],
    unet_calls: Iterable[int],
    made: dict[str, Any],
) -> None:
    """Write a unit, see `ine.store.pictures.Store.write_unit`."""
    about = {
        "key": key,
        "notes": notes,
        "unet_calls": list(unet_calls),
        "made": made,
        "blank": is_blank(pictures).tolist(),
    }
    files = {ABOUT: json.dumps(about, sort_keys=True).encode()}
    files |= {f"{i:03d}.png": png_bytes(picture) for i, picture in enumerate(pictures)}
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name, LONG_AGO), content)
    write_bytes(path, data.getvalue())


def read_about(path: Path, key: str) -> StoredUnit:
    """Return what is known about a unit's pictures; none is decoded.

    Raises:
        Missing: It is not there or broken.
    """
    with reading(path), zipfile.ZipFile(path) as archive:
        about = json.loads(archive.read(ABOUT))
        found = StoredUnit(
            notes=tuple(about["notes"]),
            unet_calls=tuple(map(int, about["unet_calls"])),
            made=dict(about["made"]),
            blank=tuple(map(bool, about.get("blank", [False] * len(about["notes"])))),
        )
        names = {f"{i:03d}.png" for i in range(found.count)} | {ABOUT}
        if about["key"] != key or set(archive.namelist()) != names:
            raise OtherKey(f"{path}: is another unit than its name says")
        if "blank" not in about:
            _check_not_blank(path, archive)
        return found


def read_pictures(path: Path, only: Iterable[int] | None = None) -> np.ndarray:
    """Return pictures of a unit, uint8 (B, H, W, 3); all, or those at some positions.

    Raises:
        Missing: It is not there or broken.
    """
    with reading(path), zipfile.ZipFile(path) as archive:
        names = sorted(name for name in archive.namelist() if name != ABOUT)
        chosen = names if only is None else [names[i] for i in only]
        return np.stack([png_picture(archive.read(name)) for name in chosen])


def _check_not_blank(path: Path, archive: zipfile.ZipFile) -> None:
    """Raise `Doubtful` where pictures of an archive are blank; few have to be decoded for that."""
    names = [name for name in archive.namelist() if name != ABOUT]
    # A picture of one colour is packed to about a thousandth; a hundredth is never reached by it.
    small = []
    for name in names:
        with archive.open(name) as file:
            head = file.read(24)
        pixels = int.from_bytes(head[16:20]) * int.from_bytes(head[20:24])
        if archive.getinfo(name).file_size < 200 + 3 * pixels / 100:
            small.append(name)
    blank = sum(bool(is_blank(png_picture(archive.read(name))[None])[0]) for name in small)
    if blank:
        raise Doubtful(
            f"{path}: {blank_line(blank, len(names))}, of a version of ine that did not look for "
            "NaN behind them"
        )
