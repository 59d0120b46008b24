"""The run folder of `ine invert`: whether it is ours, and what of it may be gone on with."""

import re
import shutil
from pathlib import Path

from ine.errors import IneError, OutputError, PicturesError
from ine.inversion.concept import picture_keys
from ine.inversion.images import load_pictures
from ine.inversion.invert import read_state

STATES = "state*.safetensors"
CLUSTERS = "clusters.json"
SUMMARY = "run.json"
CACHE = "pictures.safetensors"
UNITS = "pictures"
IMAGES = "images"

OURS = (
    re.compile(rf"state(-[a-z]-of-\d+)?\.safetensors|{re.escape(SUMMARY)}|{re.escape(CACHE)}"),
    re.compile(re.escape(CLUSTERS)),
    re.compile(rf"{UNITS}(/unit-\d+\.safetensors)?"),
    re.compile(rf"{IMAGES}(/\d+\.png)?"),
    # What a kill leaves of an atomic write, and what file browsers leave.
    re.compile(r"(.*/)?(\..+\.part|\.DS_Store)"),
)
"""Patterns of all that a run puts into its folder, as paths relative to it."""


def check_ours(folder):
    """Raise `OutputError` if a run folder holds anything that no run puts there."""
    folder = Path(folder)
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise OutputError(
            f"{folder}: is not a folder, expected the run's own; move it or choose another --out"
        )
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))
    strange = [name for name in names if not any(o.fullmatch(name) for o in OURS)]
    if strange:
        raise OutputError(
            f"{folder}: holds {strange[0]}, which is not of a run of `ine invert`, so nothing in "
            "it is removed; move it away or choose another --out"
        )


def remove_folder(folder):
    """Remove a run folder, if it is ours."""
    check_ours(folder)
    shutil.rmtree(folder)


def drop_others(folder, picture_key, state_keys):
    """Remove what another run has left in a run folder; what has these keys may be resumed.

    Raises:
        OutputError: The folder is not ours.
    """
    folder = Path(folder)
    check_ours(folder)
    for state in folder.glob(STATES):
        if not any(_state_has(state, key) for key in state_keys):
            state.unlink()
            (folder / SUMMARY).unlink(missing_ok=True)
    caches = [folder / CACHE, *folder.glob(f"{UNITS}/unit-*.safetensors")]
    if not all(_pictures_have(cache, picture_keys(picture_key)) for cache in caches):
        for name in (CACHE, CLUSTERS):
            (folder / name).unlink(missing_ok=True)
        for name in (UNITS, IMAGES):
            shutil.rmtree(folder / name, ignore_errors=True)


def _state_has(path, key):
    try:
        return read_state(path, key) is not None
    except IneError:
        return False


def _pictures_have(path, keys):
    """Return whether a cache has one of the keys; one that is not there is in nobody's way."""
    try:
        return not path.exists() or any(load_pictures(path, key) for key in keys)
    except PicturesError:
        return False
