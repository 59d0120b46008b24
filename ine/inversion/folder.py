"""The run folder of `ine invert`: check that a run created it, and which files can be resumed."""

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from ine.errors import IneError, OutputError, PicturesError
from ine.inversion.concept import picture_keys
from ine.inversion.history import read_state
from ine.inversion.images import PICTURES

STATES = "state*.safetensors"
SUMMARY = "run.json"
CACHE = "pictures.safetensors"
UNITS = "pictures"
IMAGES = "images"

OURS = (
    re.compile(
        rf"state(-run-\d+|-[a-z]-of-\d+)?\.safetensors|{re.escape(SUMMARY)}|{re.escape(CACHE)}"
    ),
    # What `ine invert --clusters` of earlier versions left.
    re.compile(r"clusters\.json"),
    re.compile(rf"{UNITS}(/unit-\d+\.safetensors)?"),
    re.compile(rf"{IMAGES}(/\d+\.png)?"),
    # What a kill leaves of an atomic write, and what file browsers leave.
    re.compile(r"(.*/)?(\..+\.part|\.DS_Store)"),
)
"""Patterns of the files that a run puts into its folder, as paths relative to it."""


def check_ours(folder: Path) -> None:
    """Raise `OutputError` if a run folder holds a file that no run puts there."""
    folder = Path(folder)
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise OutputError(
            f"{folder}: is not a folder, expected the run's folder; move it or choose another --out"
        )
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))
    strange = [name for name in names if not any(o.fullmatch(name) for o in OURS)]
    if strange:
        raise OutputError(
            f"{folder}: holds {strange[0]}, which `ine invert` did not write, so nothing in it is "
            "removed; move it away or choose another --out"
        )


def remove_folder(folder: Path) -> None:
    """Remove a run folder; `OutputError` if it holds a file that no run puts there."""
    check_ours(folder)
    shutil.rmtree(folder)


def drop_others(folder: Path, picture_key: str, state_keys: Sequence[str]) -> None:
    """Remove the files of other runs from a run folder; those with these keys can be resumed.

    Raises:
        OutputError: The folder holds a file that no run puts there.
    """
    folder = Path(folder)
    check_ours(folder)
    for state in folder.glob(STATES):
        if not any(_state_has(state, key) for key in state_keys):
            state.unlink()
            (folder / SUMMARY).unlink(missing_ok=True)
    caches = [folder / CACHE, *folder.glob(f"{UNITS}/unit-*.safetensors")]
    if not all(_pictures_have(cache, picture_keys(picture_key)) for cache in caches):
        (folder / CACHE).unlink(missing_ok=True)
        for name in (UNITS, IMAGES):
            shutil.rmtree(folder / name, ignore_errors=True)


def _state_has(path: Path, key: str) -> bool:
    try:
        return read_state(path, key) is not None
    except IneError:
        return False


def _pictures_have(path: Path, keys: Sequence[str]) -> bool:
    """Return whether a cache has one of the keys, or is missing, which is fine too."""
    try:
        return not path.exists() or any(PICTURES.read(path, key) for key in keys)
    except PicturesError:
        return False
