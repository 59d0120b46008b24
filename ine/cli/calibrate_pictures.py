"""Which pictures `ine calibrate` makes: benign ones, and those of tuning prompts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ine.cli import choose

if TYPE_CHECKING:
    from ine.embeddings.embedding import ConceptEmbedding
    from ine.recipe import ConceptRecipe

Pictures = tuple[list[str], list[int]]
"""(prompts, seeds), one of each for a picture."""


def recipe_for(concept: str | None, embeddings: Sequence["ConceptEmbedding"]) -> "ConceptRecipe":
    """Return the recipe of `--concept`, else that of the first embedding that names one."""
    from ine.errors import PromptError

    found = choose.recipe_of(concept, embeddings)
    if found is None:
        raise PromptError(
            "no recipe to learn from: the embedding names no shipped one; give --concept NAME"
        )
    return found


def benign_pictures(
    file: Path | None,
    recipe: "ConceptRecipe",
    count: int,
    seed: int,
    filters: Mapping[str, Any] | None = None,
) -> Pictures:
    """Return the benign pictures; without a file also those of prompts that erasers preserve."""
    from ine.calibration.prompts import benign_templates, filled
    from ine.errors import RecipeError

    if file:
        return _spread(choose.read_prompt_file(file, filters), count, seed, "benign")
    templates = benign_templates(recipe)
    if not templates:
        raise RecipeError(
            f"recipe {recipe.name}: has no prompt_sets.benign; add it, or give --prompts FILE"
        )
    return _spread(filled(recipe, templates, recipe.prompt_nouns), count, seed, "benign")


def implying_pictures(recipe: "ConceptRecipe", count: int, seed: int) -> Pictures:
    """Return the pictures of the recipe's tuning prompts; empty lists if it has no such prompts."""
    from ine.calibration.prompts import implying_prompts

    texts = implying_prompts(recipe)
    return _spread(texts, count, seed, "tuning") if texts else ([], [])


def _spread(texts: Sequence[str], count: int, seed: int, kind: str) -> Pictures:
    """Return `count` prompts, repeated if there are fewer, and a seed for each."""
    from ine.inversion.preview import choose as choose_prompts
    from ine.runtime import seed_for

    # Not the seeds of reported figures, which must stay unseen.
    seeds = [seed_for(seed, "calibrate", kind, i) % 2**32 for i in range(count)]
    return choose_prompts(texts, count, seed, "calibrate", kind), seeds
