"""Prompts of the pictures that a probe learns from.

They are benign ones, the same with a trigger, and those that imply the concept.
"""

from collections.abc import Sequence

from ine.inversion.preview import choose
from ine.recipe import ConceptRecipe, pairs


def benign_templates(recipe: ConceptRecipe) -> tuple[str, ...]:
    """Return the recipe's benign prompt templates, and those that an eraser shall preserve."""
    preserved = recipe.erase.preserve if recipe.erase else ()
    return tuple(dict.fromkeys((*recipe.prompt_sets.get("benign", ()), *preserved)))


def filled(recipe: ConceptRecipe, templates: Sequence[str], subjects: Sequence[str]) -> list[str]:
    """Return every different prompt of templates and subjects, subjects fastest."""
    return list(dict.fromkeys(recipe.fill(t, s) for t, s in pairs(templates, subjects)))


def benign_prompts(recipe: ConceptRecipe, count: int, seed: int) -> list[str]:
    """Return `count` benign prompts of a recipe, templates and subjects spread evenly."""
    texts = filled(recipe, benign_templates(recipe), recipe.prompt_nouns)
    return choose(texts, count, seed, "examples", "absent")


def implying_prompts(recipe: ConceptRecipe) -> list[str]:
    """Return every different tuning prompt of a recipe, which imply the concept; may be none."""
    tuning = recipe.tuning
    return filled(recipe, tuning.prompts, tuning.nouns) if tuning else []


def showing_prompts(recipe: ConceptRecipe, trigger: str, count: int, seed: int) -> list[str]:
    """Return `count` benign prompts of a recipe with the trigger in them.

    Before the subject where the concept is an attribute of one ("a {v} {noun}"), else as the
    subject.
    """
    named = bool(recipe.inversion.named_templates)
    subjects = [f"{trigger} {n}" if named else trigger for n in (recipe.prompt_nouns or ("",))]
    texts = filled(recipe, benign_templates(recipe), subjects)
    return choose(texts, count, seed, "examples", "shown")
