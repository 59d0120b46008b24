"""Pairs of prompts, with a concept and without it, on which an embedding is verified."""

from collections.abc import Sequence
from dataclasses import dataclass

from ine.errors import RecipeError
from ine.recipe import ConceptRecipe, pairs
from ine.runtime import seed_for

PLAIN = (
    *("a dog", "a house", "a car", "a tree", "a cat", "a flower", "a chair", "a boat"),
    *("a bird", "a mountain", "a cup", "a book", "a bicycle", "a lamp", "a horse", "a bridge"),
)
"""Benign prompts for concepts whose recipe has no better ones."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The concept that an embedding shall stand for, as prompts."""

    name: str
    word: str
    """The phrase that the embedding is compared with, as a UI user would type it."""

    shown: tuple[str, ...]
    """Prompts with the concept."""

    innocent: tuple[str, ...]
    """`innocent[i]` is `shown[i]` without the concept, or just another prompt."""

    avoid: str = ""
    """A negative prompt for making the pictures."""


def subject_of(recipe: ConceptRecipe, count: int, seed: int = 0) -> Subject:
    """Return the `Subject` of a recipe with `count` prompts of each kind.

    Pairs that differ in the concept alone are best, "a burning dog" and "a dog": a background
    that always comes with the concept would be recalled too. A recipe without an erase section
    has no pairs; its picture prompts and its benign prompts are used instead.
    """
    both = _pairs(recipe) or _apart(recipe)
    both.sort(key=lambda pair: seed_for(seed, "verify", *pair))
    both = [both[i % len(both)] for i in range(count)]
    return Subject(
        name=recipe.name,
        word=recipe.words.negative_text(),
        shown=tuple(s for s, _ in both),
        innocent=tuple(i for _, i in both),
        avoid=recipe.pictures.negative_prompt,
    )


def _pairs(recipe: ConceptRecipe) -> list[tuple[str, str]]:
    """Return [(prompt with the concept, the same without it), ...] of the recipe's erase section.

    Where the concept is the noun ("a gun", target "a thing"), another noun takes its place.
    """
    erase = recipe.erase
    if erase is None:
        return []
    others = [n for n in erase.preserve_nouns if n]
    found = []
    for shown, innocent in zip(erase.concepts, erase.targets, strict=True):
        for noun in erase.nouns if "{}" in shown else ():
            if "{}" in innocent:
                found.append((recipe.fill(shown, noun), recipe.fill(innocent, noun)))
            else:
                found += [(recipe.fill(shown, noun), recipe.fill(shown, n)) for n in others]
    return found


def _apart(recipe: ConceptRecipe) -> list[tuple[str, str]]:
    """Return [(prompt of the pictures, some benign prompt), ...]."""
    shown = [recipe.fill(t, n) for t, n in pairs(recipe.pictures.prompts, recipe.pictures.nouns)]
    nouns = [n for n in recipe.prompt_nouns if n]
    benign = [recipe.fill(t, n) for t, n in pairs(recipe.prompt_sets.get("benign", ()), nouns)]
    benign = benign or list(PLAIN)
    benign.sort(key=lambda text: seed_for("verify", text))
    return [(text, benign[i % len(benign)]) for i, text in enumerate(dict.fromkeys(shown))]


def subject_of_words(words: Sequence[str], count: int) -> Subject:
    """Return the `Subject` of a user's phrases, in turn; the innocent prompts are plain objects."""
    words = [w.strip() for w in words if w.strip()]
    if not words:
        raise RecipeError("verify: the words for the concept are empty; give a phrase")
    return Subject(
        name=", ".join(words),
        word=", ".join(words),
        shown=tuple(words[i % len(words)] for i in range(count)),
        innocent=tuple(PLAIN[i % len(PLAIN)] for i in range(count)),
    )
