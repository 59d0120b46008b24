"""Find, read, override, check and write concept recipes."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from ine.errors import RecipeError, did_you_mean
from ine.files import shipped, user_path
from ine.recipe.concept import ConceptRecipe
from ine.yaml_files import (
    Places,
    YamlFile,
    load_yaml,
    place_of,
    read_yaml,
    validated,
)


def list_recipes() -> dict[str, Path]:
    """Return {name: path} of the shipped concept recipes."""
    return {p.stem: p for p in sorted(shipped("recipes").glob("*.yaml"))}


def load_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> ConceptRecipe:
    """Return a checked recipe.

    Args:
        name_or_path: A shipped recipe's name, or a YAML file.
        overrides: "section.key=value" strings, values parsed as YAML.

    Raises:
        RecipeError: Unknown name, unreadable file, or wrong fields, all listed at once.
    """
    file = with_overrides(load_yaml(find_recipe(name_or_path)), overrides)
    return check_recipe(file.data, file.path, file.places)


def with_overrides(file: YamlFile, overrides: Sequence[str]) -> YamlFile:
    """Return a file with values replaced, in its data, its text and its places.

    Args:
        file: As it was read; its data are changed.
        overrides: Texts "section.key=value", values parsed as YAML.

    Raises:
        RecipeError: One has another form, goes through a value that is no section, or is not YAML.
    """
    if not overrides:
        return file
    places = file.places
    for override in overrides:
        path = apply_override(file.data, override)
        # The file's lines of a value that was replaced say nothing about the new one.
        places = {key: line for key, line in places.items() if key[: len(path)] != path}
        for end in range(1, len(path) + 1):
            places.setdefault(path[:end], f"--set {'.'.join(path)}")
    return replace(file, text=yaml_text(file.data), places=places)


def find_recipe(name_or_path: str | Path) -> Path:
    """Return the path of a recipe, shipped or a user's file.

    Raises:
        RecipeError: There is no such recipe.
    """
    known = list_recipes()
    if str(name_or_path) in known:
        return known[str(name_or_path)]
    path = user_path(name_or_path)
    if os.path.isfile(path):
        return path
    if path.suffix in {".yaml", ".yml"}:
        raise RecipeError(f"{path}: no such recipe file")
    hint = did_you_mean(name_or_path, known)
    raise RecipeError(
        f"concept {str(name_or_path)!r} is unknown{hint}; shipped: {', '.join(known)}; "
        "or give a recipe file"
    )


def apply_override(data: dict[str, Any], override: str) -> tuple[str, ...]:
    """Set `section.key=value` in the data of a recipe; return the key path.

    Raises:
        RecipeError: It has another form, goes through a value that is no section, or its value is
            not YAML.
    """
    key, equals, value = override.partition("=")
    if not equals or not key.strip():
        raise RecipeError(f"--set {override}: expected section.key=value")
    path = tuple(key.strip().split("."))
    for parent in path[:-1]:
        data = data.setdefault(parent, {})
        if not isinstance(data, dict):
            raise RecipeError(f"--set {override}: {parent!r} is not a section")
    try:
        data[path[-1]] = read_yaml(value)
    except ValueError as error:
        raise RecipeError(f"--set {override}: the value is not YAML ({error})") from error
    return path


def check_recipe(data: Any, where: str | Path, places: Places | None = None) -> ConceptRecipe:
    """Return the recipe in plain values.

    Args:
        data: A mapping of sections.
        where: What an error calls the file.
        places: Where each value is written, if known.

    Raises:
        RecipeError: Fields are wrong; it names each with its key path.
    """
    recipe = validated(ConceptRecipe, data, where, places)
    erase = recipe.erase
    if erase and len(erase.concepts) != len(erase.targets):
        raise RecipeError(
            f"{where}: {place_of(('erase', 'targets'), places)}erase.concepts has "
            f"{len(erase.concepts)} templates and erase.targets {len(erase.targets)}; they are "
            "pairs, so give the same number"
        )
    return recipe


def recipe_yaml(recipe: ConceptRecipe) -> str:
    """Return the resolved recipe as YAML that loads to an equal value."""
    return yaml_text(recipe.model_dump(mode="json"))


def yaml_text(data: dict[str, Any]) -> str:
    """Return plain values as YAML, in their order."""
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=100)
