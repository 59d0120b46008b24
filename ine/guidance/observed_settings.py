"""What a user gives for dynamic negatives, as options, as settings of a grid or in Python.

observer    judge:RULE, vlm:FOLDER_OR_ID, openai:URL#MODEL
concept     what it watches for: names or files of recipes, with commas; by default the
            concepts of the embeddings
steer       words, embedding or both; by default what is given: text and embeddings both
look        steps, fractions of the run, "ahead", with commas
on_unknown  hold, steer or abort
strength    s
timeout, parallel, cache    see `ine.observers.table.ObserverSettings`
phrases     a file with the negative of the static baseline, a phrase a line
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ine.errors import IneError, RecipeError, did_you_mean
from ine.files import user_path
from ine.guidance.looks import read_looks
from ine.guidance.method import SettingValue
from ine.guidance.negative import Negative
from ine.guidance.strength import suggested_strength
from ine.observers.table import ObserverSettings
from ine.observers.watching import Watcher, watcher_of
from ine.recipe import ConceptRecipe, load_recipe

SETTINGS = (
    *("strength", "observer", "concept", "steer", "look", "on_unknown"),
    *("timeout", "parallel", "cache", "phrases"),
)
PRESETS = ("as-described", "as-released", "static")
RUNNING = ("timeout", "parallel", "cache")
"""Settings of how an observer runs."""

OF_OBSERVERS = ("observer", "concept", "look", "on_unknown", *RUNNING)
"""Settings that mean nothing to the static baseline."""


def fields_of(
    negative: Negative, preset: str, settings: Mapping[str, SettingValue]
) -> dict[str, Any]:
    """Return the fields of `ine.guidance.vl_dnp.VlDnp`.

    Args:
        negative: Text and embeddings of the user.
        preset: A name of `PRESETS`.
        settings: {name of `SETTINGS`: value}.

    Raises:
        IneError: The preset is unknown, or settings do not go together.
        RecipeError: A concept is unknown.
    """
    if preset not in PRESETS:
        hint = did_you_mean(preset, PRESETS)
        raise IneError(f"vl-dnp: preset {preset!r} is unknown{hint}; known: {', '.join(PRESETS)}")
    found: dict[str, Any] = {"given": negative}
    stated = None if settings.get("steer") == "words" else suggested_strength(negative.embeddings)
    if "strength" in settings:
        found["strength"] = _number(settings, "strength")
    elif stated is not None:
        found["strength"] = stated
    if preset == "static":
        return found | _static(negative, settings)
    if "phrases" in settings:
        raise IneError("vl-dnp: phrases are those of the preset static; leave them out")
    released = preset == "as-released"
    found |= {"watcher": _watcher(negative, settings, released), "as_released": released}
    found["steer"] = settings.get("steer") or _steer(negative)
    if found["steer"] == "embedding" and negative.text.strip():
        raise IneError(
            "vl-dnp: steer embedding has no place for the negative text; leave the text out, or "
            "steer both"
        )
    if "look" in settings:
        found["looks_at"] = read_looks(str(settings["look"]).split(","))
    if "on_unknown" in settings:
        found["on_unknown"] = settings["on_unknown"]
    return found


def _steer(negative: Negative) -> str:
    """Return what is given: words, embedding or both."""
    if not negative.embeddings:
        return "words"
    return "both" if negative.text.strip() else "embedding"


def _watcher(negative: Negative, settings: Mapping[str, SettingValue], released: bool) -> Watcher:
    if not settings.get("observer"):
        raise IneError(
            "vl-dnp: no observer looks at the pictures; name an observer, judge:RULE, "
            "vlm:FOLDER_OR_ID or openai:URL#MODEL (docs/observers.md)"
        )
    chosen = ObserverSettings()
    if "timeout" in settings:
        chosen = replace(chosen, timeout=_number(settings, "timeout", above=0))
    if "parallel" in settings:
        count = int(_number(settings, "parallel", above=0))
        chosen = replace(chosen, parallel=count, batch=count)
    if "cache" in settings:
        chosen = replace(chosen, cache=Path(str(settings["cache"])))
    recipes = _recipes(negative, str(settings.get("concept", "")))
    return watcher_of(str(settings["observer"]), recipes, chosen, plain=released)


def _recipes(negative: Negative, text: str) -> list[ConceptRecipe]:
    """Return the recipes of the concepts that are watched for."""
    named = [part.strip() for part in text.split(",") if part.strip()]
    if not named:
        try:
            recipes = [load_recipe(name) for name in _concepts(negative)]
        except RecipeError as error:
            raise RecipeError(
                f"{error}; give the file of its recipe as what to look for"
            ) from error
        if not recipes:
            raise IneError(
                "vl-dnp: nothing says what to look for; name a concept, or give an embedding, "
                "whose concept is looked for"
            )
        return recipes
    found = {recipe.name: recipe for recipe in map(load_recipe, named)}
    return list(found.values())


def _concepts(negative: Negative) -> tuple[str, ...]:
    return tuple(dict.fromkeys(embedding.concept for embedding in negative.embeddings))


def _static(negative: Negative, settings: Mapping[str, SettingValue]) -> dict[str, Any]:
    """Return the fields of the static baseline: words, embeddings, or both, always on."""
    if given := [name for name in OF_OBSERVERS if name in settings]:
        raise IneError(
            f"vl-dnp static: no observer looks, so that {', '.join(given)} mean nothing; leave "
            "them out, or the preset static"
        )
    steer = settings.get("steer")
    if "phrases" in settings:
        text = ", ".join(filter(None, (negative.text.strip(), _phrases(str(settings["phrases"])))))
        negative = replace(negative, text=text)
    if steer == "embedding":
        negative = replace(negative, text="")
    if steer == "words":
        negative = replace(negative, embeddings=())
    return {"given": negative, "watcher": None}


def _phrases(file: str) -> str:
    """Return the lines of a text file, with commas between them."""
    try:
        lines = user_path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise IneError(f"phrases {file}: cannot be read ({error}); give a text file") from error
    found = [line.strip().rstrip(",") for line in lines]
    text = ", ".join(line for line in found if line and not line.startswith("#"))
    if not text:
        raise IneError(f"phrases {file}: holds no phrase; give one a line")
    return text


def _number(settings: Mapping[str, SettingValue], name: str, above: float | None = None) -> float:
    value = settings[name]
    good = isinstance(value, int | float) and not isinstance(value, bool)
    if not good or (above is not None and not float(value) > above):
        more = "" if above is None else f" above {above:g}"
        raise IneError(f"vl-dnp: {name} is {value!r}; give a number{more}")
    return float(value)
