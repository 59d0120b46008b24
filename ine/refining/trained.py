"""The conversation that an adapter was trained with, which it wants when it is used."""

from pathlib import Path
from typing import Any

from ine.files import user_path
from ine.observers.adapters import is_adapter, read_about
from ine.refining.settings import RefineSettings, preset

ASKED = ("system", "user", "picture")
"""Fields of `RefineSettings` that decide what a model is sent."""


def asked_of(settings: RefineSettings) -> dict[str, Any]:
    """Return what a model is sent as plain values, under the names of `ASKED`."""
    return {name: getattr(settings, name) for name in ASKED}


def trained_with(spec: str) -> dict[str, Any]:
    """Return what the adapter of a rewriter's name was trained with, nothing where it is unknown.

    Args:
        spec: See `ine.refining.table`; nothing is loaded or fetched.

    Raises:
        CheckpointError: The adapter's `training.json` is damaged.
    """
    kind, _, what = spec.partition(":")
    folder = user_path(what) if what else Path()
    if kind != "vlm" or not what or not is_adapter(folder):
        return {}
    said = (read_about(folder) or {}).get("asked") or {}
    return {name: said[name] for name in ASKED if name in said}


def settings_for(observer: str, protocol: str = "ine", **changes: Any) -> RefineSettings:
    """Return the settings of a preset for who looks: an adapter is asked as it was trained.

    Args:
        observer: See `ine.refining.table`.
        protocol: A name of `ine.refining.settings.PRESETS`.
        changes: Fields of `RefineSettings`, which come first; None changes nothing.

    Raises:
        CheckpointError: The adapter's `training.json` is damaged.
        RecipeError: The preset is unknown.
    """
    given = {name: value for name, value in changes.items() if value is not None}
    return preset(protocol, **{**trained_with(observer), **given})
