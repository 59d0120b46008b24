"""Prompts for erasers: with the concept, the same without it, and those to preserve."""

from dataclasses import dataclass

from ine.errors import RecipeError
from ine.recipe import ConceptRecipe, Erase, pairs


@dataclass(frozen=True, kw_only=True)
class EraseTexts:
    """Prompts of a recipe's `erase` section, nouns filled in."""

    concepts: tuple[str, ...]
    targets: tuple[str, ...]
    """`targets[i]` is what `concepts[i]` becomes."""

    preserve: tuple[str, ...]


def erase_section(recipe: ConceptRecipe) -> Erase:
    """Return a recipe's erase section.

    Raises:
        RecipeError: It has none.
    """
    if recipe.erase is None:
        raise RecipeError(f"recipe {recipe.name}: has no erase section; `ine unlearn` needs one")
    return recipe.erase


def erase_texts(recipe: ConceptRecipe) -> EraseTexts:
    """Return the prompts that an eraser needs from a recipe.

    Raises:
        RecipeError: The recipe has no erase section.
    """
    spec = erase_section(recipe)
    both = [
        (recipe.fill(concept, noun), recipe.fill(target, noun))
        for concept, target in zip(spec.concepts, spec.targets, strict=True)
        for noun in spec.nouns
    ]
    preserve = [recipe.fill(t, n) for t, n in pairs(spec.preserve, spec.preserve_nouns)]
    return EraseTexts(
        concepts=tuple(c for c, _ in both),
        targets=tuple(t for _, t in both),
        preserve=tuple(dict.fromkeys(preserve)),
    )


def pair_prompts(recipe: ConceptRecipe) -> list[tuple[str, str]]:
    """Return [(prompt with the concept, prompt without it)] to generate pictures from.

    If any templates have a place for a noun, only these are used: in a recipe with people the
    nouns say that they are adults.
    """
    spec = erase_section(recipe)
    both = list(zip(spec.concepts, spec.targets, strict=True))
    named = [(concept, target) for concept, target in both if "{}" in concept] or both
    filled = [(recipe.fill(c, n), recipe.fill(t, n)) for c, t in named for n in spec.nouns]
    return list(dict.fromkeys(filled))
