"""Concept recipes: YAML in, frozen checked values out.

A recipe says what a concept is: its words, how pictures of it are made and recognised, how it is
inverted and erased, and on which prompts choices are tuned. Nothing in a recipe is code.
"""

from ine.recipe.concept import ConceptRecipe, fill, pairs
from ine.recipe.loading import (
    apply_override,
    check_recipe,
    find_recipe,
    list_recipes,
    load_recipe,
    recipe_yaml,
)
from ine.recipe.sections import (
    ConceptWords,
    DefenceSearch,
    Demonstration,
    Erase,
    InversionSettings,
    Observe,
    PictureSettings,
    Tuning,
)

__all__ = [
    "ConceptRecipe",
    "ConceptWords",
    "DefenceSearch",
    "Demonstration",
    "Erase",
    "InversionSettings",
    "Observe",
    "PictureSettings",
    "Tuning",
    "apply_override",
    "check_recipe",
    "fill",
    "find_recipe",
    "list_recipes",
    "load_recipe",
    "pairs",
    "recipe_yaml",
]
