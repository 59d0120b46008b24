"""Cases of an experiment: prompts with their subjects and seeds, chosen from a recipe's sets."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ine.errors import RecipeError, did_you_mean
from ine.evaluation.grid import GridPrompts
from ine.files import write_text
from ine.inversion.preview import choose, reviving_prompts
from ine.recipe import ConceptRecipe, pairs
from ine.runtime import seed_for

TUNING, IMPLYING, BENIGN = "implying_tuning", "implying_test", "benign"
"""Prompt sets of recipes."""

Expects = Literal["harmful", "benign", "neighbour"]

_NO_NOUNS: tuple[str, ...] = ("",)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One prompt of a set."""

    prompt: str
    noun: str
    """The subject, "" where the prompt names none of its own."""

    phrase: str
    """The template; phrase and noun together are what an interval resamples."""

    seed: int


def cases_of(
    recipe: ConceptRecipe, name: str, count: int, nouns: Sequence[str], seed: int = 0
) -> tuple[Case, ...]:
    """Return `count` cases of a recipe's prompt set, phrases and nouns spread evenly.

    The same (phrase, noun) comes again, with another seed, only when all have come once.
    """
    templates = recipe.prompt_sets[name]
    with_noun = any("{}" in t for t in templates)
    options = pairs(templates, nouns if with_noun else ("",))
    return cases_from(recipe, name, options, count, seed)


def cases_from(
    recipe: ConceptRecipe,
    name: str,
    options: Sequence[tuple[str, str]],
    count: int,
    seed: int = 0,
) -> tuple[Case, ...]:
    """Return `count` cases of (phrase, noun) pairs; `name` is part of their seeds."""
    chosen = choose(options, count, seed, "cases", name)
    return tuple(
        Case(
            prompt=recipe.fill(phrase, noun),
            noun=noun,
            phrase=phrase,
            seed=seed_for(seed, name, i) % 2**32,
        )
        for i, (phrase, noun) in enumerate(chosen)
    )


def set_cases(
    recipe: ConceptRecipe, given: str | Sequence[str], count: int, seed: int
) -> tuple[Case, ...]:
    """Return `count` cases of a named prompt set of a recipe, or of prompts.

    A prompt without a noun counts as a subject of its own. The recipe's tuning prompts stand in
    for `TUNING` where it has no such set.

    Raises:
        RecipeError: The recipe has no such set.
    """
    if not isinstance(given, str):
        recipe = recipe.model_copy(update={"prompt_sets": {"given": tuple(given)}})
        name, nouns = "given", _NO_NOUNS
    else:
        name, nouns = given, recipe.prompt_nouns
        sets = dict(recipe.prompt_sets)
        if recipe.tuning and TUNING not in sets:
            sets[TUNING] = recipe.tuning.prompts
        if name not in sets:
            known = ", ".join(sets) or "none"
            raise RecipeError(
                f"recipe {recipe.name} has no prompt set {name!r}{did_you_mean(name, sets)}; it "
                f"has {known}; or give a text file of prompts"
            )
        if not any(nouns):
            nouns = recipe.tuning.nouns if recipe.tuning else recipe.pictures.nouns
        recipe = recipe.model_copy(update={"prompt_sets": sets})
    cases = cases_of(recipe, name, count, nouns, seed)
    return tuple(replace(c, noun=c.noun or c.prompt) for c in cases)


def attack_cases(recipe: ConceptRecipe, trigger: str, count: int, seed: int) -> tuple[Case, ...]:
    """Return the prompts by which an embedding is used to bring its concept back."""
    found = reviving_prompts(recipe, trigger, count, seed)
    return tuple(
        Case(prompt=text, noun=noun, phrase="", seed=seed_for(seed, "attack", i) % 2**32)
        for i, (text, noun) in enumerate(found)
    )


def prompts_of(
    cases: Sequence[Case],
    file: Path,
    role: Literal["tune", "test"],
    expects: Expects,
    embeddings: Sequence[str] = (),
) -> GridPrompts:
    """Write cases as a prompt file and return the grid entry that makes a picture of each.

    Args:
        cases: The prompts.
        file: Where they go, beside the grid file; its name without ending is the entry's.
        role: "tune" or "test".
        expects: "harmful", "benign" or "neighbour".
        embeddings: Files of embeddings whose triggers stand in the prompts.

    Raises:
        OutputError: The file cannot be written.
    """
    rows = [
        {"id": str(n), "prompt": c.prompt, "seed": c.seed, "phrase": c.phrase, "noun": c.noun}
        for n, c in enumerate(cases)
    ]
    write_text(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return GridPrompts(
        name=file.stem,
        source=file.name,
        role=role,
        expects=expects,
        use_rows=True,
        embeddings=tuple(embeddings),
    )
