"""A user's folder of concept pictures: which files are read, and with which captions."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ine.errors import PicturesError
from ine.files import user_path
from ine.inversion.captions import read_captions
from ine.inversion.images import ConceptPictures, encode_pictures
from ine.models.parts import DiffusionParts
from ine.pictures import AVIF, read_picture

log = logging.getLogger(__name__)

SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jfif", ".jpe", ".webp", ".bmp", ".gif"),
    *((".avif",) if AVIF else ()),
)
UNREAD = (
    *(".tif", ".tiff", ".heic", ".heif", ".jxl", ".jp2", ".svg", ".psd", ".tga"),
    *(".dng", ".cr2", ".nef", ".arw"),
    *(() if AVIF else (".avif",)),
)
"""Endings of pictures that are not read; a warning says so."""


def list_pictures(folder: Path | str) -> list[Path]:
    """Return the picture files right in a folder, sorted by name; hidden ones are ignored.

    Raises:
        PicturesError: The folder is missing, is a file, or holds no picture.
    """
    place = user_path(folder)
    if not os.path.exists(place):
        raise PicturesError(f"{place}: no such folder; give a folder of pictures")
    if not place.is_dir():
        raise PicturesError(f"{place}: is a file; give the folder that holds the pictures")
    found = picture_files(place)
    if not found:
        unread = unread_pictures(place)
        advice = f"; it holds {listed(unread)}, convert them to PNG or JPEG" if unread else ""
        raise PicturesError(f"{place}: no pictures found; looked for {' '.join(SUFFIXES)}{advice}")
    return found


def picture_files(folder: Path) -> list[Path]:
    """Return the picture files right in a folder, sorted by name; hidden ones are ignored."""
    return _files_of(folder, SUFFIXES)


def unread_pictures(folder: Path | str) -> list[str]:
    """Return the names of files that are pictures of a kind that is not read, sorted."""
    return [path.name for path in _files_of(Path(folder), UNREAD)]


def _files_of(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    found = (p for p in folder.iterdir() if p.suffix.lower() in suffixes)
    whole = (p for p in found if not p.name.startswith(".") and p.is_file())
    return sorted(whole, key=lambda path: path.name)


def subfolders(folder: Path) -> list[Path]:
    """Return all folders below a folder, sorted; hidden ones and links are ignored."""
    found = []
    for place, names, _ in os.walk(folder):
        names[:] = [name for name in names if not name.startswith(".")]
        found += [Path(place, name) for name in names if not os.path.islink(Path(place, name))]
    return sorted(found)


def listed(names: Sequence[str], most: int = 5) -> str:
    """Return names as one text, no more than `most` of them."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def read_folder(
    parts: DiffusionParts, folder: Path | str, skip_bad: bool = False, batch: int = 8
) -> ConceptPictures:
    """Return the moments of a folder's pictures, with captions where there are any.

    Captions come from one place: `NAME.txt` or `NAME.caption` beside each picture `NAME.png`, or
    a table `captions.csv`, `metadata.csv` or `metadata.jsonl` with `file_name` and `text` (or
    `caption`, or `prompt`).

    Pictures of a kind that is not read are passed over with a logged warning.

    Args:
        parts: The base model, whose VAE encodes.
        folder: The user's pictures; subfolders are not looked into.
        skip_bad: Leave out pictures that cannot be read, with a logged warning each.
        batch: Pictures per run of the VAE.

    Raises:
        PicturesError: No picture is found or left; pictures cannot be read (all are named);
            captions are broken, come from two places, or are there for some pictures only.
    """
    paths = list_pictures(folder)
    if unread := unread_pictures(paths[0].parent):
        log.warning(
            "%s: passed over %s; to use them, convert them to PNG or JPEG", folder, listed(unread)
        )
    below = sum(len(picture_files(place)) for place in subfolders(paths[0].parent))
    if below:
        log.warning("%s: %d pictures in its sub-folders are not used", folder, below)
    good, arrays, bad = [], [], []
    for path in paths:
        try:
            arrays.append(read_picture(path, parts.picture_size))
            good.append(path)
        except PicturesError as error:
            bad.append(str(error))
    if bad and not skip_bad:
        raise PicturesError(
            f"{folder}: {len(bad)} of {len(paths)} pictures cannot be used; mend or remove "
            "them, or give --skip-bad to leave them out:\n  " + "\n  ".join(bad)
        )
    for reason in bad:
        log.warning("skipped %s", reason)
    if not good:
        raise PicturesError(
            f"{folder}: none of {len(paths)} pictures can be used:\n  " + "\n  ".join(bad)
        )
    names = tuple(path.name for path in good)
    return encode_pictures(parts, np.stack(arrays), read_captions(good), names, batch)
