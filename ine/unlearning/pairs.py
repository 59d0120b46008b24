"""What an eraser is told: prompts with the concept, the same without it, prompts to preserve."""

from dataclasses import dataclass

from ine.errors import RecipeError
from ine.recipe import pairs


@dataclass(frozen=True, kw_only=True)
class EraseTexts:
    """Prompts of a recipe's `erase` section, nouns filled in."""

    concepts: tuple[str, ...]
    targets: tuple[str, ...]
    """`targets[i]` is what `concepts[i]` is to become."""

    preserve: tuple[str, ...]


def erase_texts(recipe):
    """Return the prompts that a recipe's eraser works with.

    Raises:
        RecipeError: The recipe says nothing about erasing.
    """
    spec = recipe.erase
    if spec is None:
        raise RecipeError(f"recipe {recipe.name}: has no erase section; `ine unlearn` needs one")
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
