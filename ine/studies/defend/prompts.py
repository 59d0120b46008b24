"""The prompts of `ine defend`: those on which it chooses, and those held back for its report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ine.errors import RecipeError
from ine.recipe import ConceptRecipe, pairs
from ine.studies.cases import Case, cases_from

IMPLYING, BENIGN = "implying", "benign"
TUNED = "tuning-"
"""Start of the names of the prompt sets on which choices are made."""

NEIGHBOURS = ("twins_test", "snow", "flowers")
"""Sets of innocent neighbours that are reported where a recipe has them."""

Pairs = list[tuple[str, str]]
"""(template, noun), see `ine.recipe.pairs`."""


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """All prompts of one defence."""

    tuning: Mapping[str, tuple[Case, ...]]
    """{`IMPLYING`: cases, `BENIGN`: cases}: choices are made on them."""

    held_back: Mapping[str, tuple[Case, ...]]
    """{set: cases}: `IMPLYING`, `BENIGN` and neighbours."""

    sources: Mapping[str, str]
    """{`IMPLYING` or `BENIGN`: which prompts are held back, in words}."""


def prompts_for(recipe: ConceptRecipe, seed: int) -> Prompts:
    """Return the prompts of a recipe.

    Choices are made on the recipe's tuning prompts, benign ones among them. Held back are its sets
    `implying_test` and `benign`. Where there is only one kind of either, half of it is held back.

    Raises:
        RecipeError: The recipe has no tuning prompts, or no benign ones.
    """
    search = recipe.defence
    implying, implying_test, implied = _implying(recipe)
    benign, benign_test, harmless = _benign(recipe)
    sets = {name: _named(recipe, name) for name in NEIGHBOURS if name in recipe.prompt_sets}

    def cases(name: str, options: Pairs, count: int) -> tuple[Case, ...]:
        return _cases(recipe, name, options, count, seed)

    return Prompts(
        tuning={
            IMPLYING: cases(TUNED + IMPLYING, implying, search.pictures),
            BENIGN: cases(TUNED + BENIGN, benign, search.benign),
        },
        held_back={
            name: cases(f"held-back-{name}", options, search.reported)
            for name, options in {
                IMPLYING: implying_test,
                BENIGN: benign_test,
                **sets,
            }.items()
        },
        sources={IMPLYING: implied, BENIGN: harmless},
    )


def _cases(
    recipe: ConceptRecipe, name: str, options: Pairs, count: int, seed: int
) -> tuple[Case, ...]:
    found = cases_from(recipe, name, options, count, seed)
    return tuple(
        # A prompt without a noun is a subject of its own.
        case if case.noun else Case(**{**vars(case), "noun": case.prompt})
        for case in found
    )


def _implying(recipe: ConceptRecipe) -> tuple[Pairs, Pairs, str]:
    """Return (pairs to choose on, pairs held back, what the latter are)."""
    if recipe.tuning is None:
        raise RecipeError(
            f"recipe {recipe.name}: has no tuning prompts, on which a defence is chosen; add "
            "tuning.prompts, which imply the concept without naming it"
        )
    tuning = _paired(recipe.tuning.prompts, recipe.tuning.nouns)
    if "implying_test" in recipe.prompt_sets:
        return tuning, _named(recipe, "implying_test"), "prompt_sets.implying_test"
    kept, held = _halves(tuning, recipe, "tuning prompts")
    return kept, held, "half of the tuning prompts (the recipe has no prompt_sets.implying_test)"


def implying_tuning(recipe: ConceptRecipe) -> list[str]:
    """Return every different prompt to choose on that implies the concept."""
    return list(dict.fromkeys(recipe.fill(*pair) for pair in _implying(recipe)[0]))


def _benign(recipe: ConceptRecipe) -> tuple[Pairs, Pairs, str]:
    """Return (pairs to choose on, pairs held back, what the latter are)."""
    if not recipe.prompt_sets.get(BENIGN):
        raise RecipeError(
            f"recipe {recipe.name}: has no prompt_sets.benign, by which preservation is measured; "
            "add prompts that have nothing to do with the concept"
        )
    benign = _named(recipe, BENIGN)
    own = [pair for pair in recipe.benign_pairs() if pair not in benign]
    if own:
        return own, benign, "prompt_sets.benign"
    kept, held = _halves(benign, recipe, "benign prompts")
    return kept, held, "half of prompt_sets.benign (the recipe has no other benign prompts)"


def _halves(options: Pairs, recipe: ConceptRecipe, what: str) -> tuple[Pairs, Pairs]:
    """Return two halves that share no template, or no noun where there is one template."""
    for place in (0, 1):
        values = list(dict.fromkeys(pair[place] for pair in options))
        if len(values) > 1:
            kept = set(values[::2])
            return (
                [pair for pair in options if pair[place] in kept],
                [pair for pair in options if pair[place] not in kept],
            )
    raise RecipeError(
        f"recipe {recipe.name}: has one prompt among its {what}, so none can be held back; add at "
        "least one"
    )


def _named(recipe: ConceptRecipe, name: str) -> Pairs:
    """Return the pairs of a prompt set; the nouns are the recipe's, else those of its pictures."""
    nouns = recipe.prompt_nouns
    if not any(nouns):
        nouns = recipe.tuning.nouns if recipe.tuning else recipe.pictures.nouns
    return _paired(recipe.prompt_sets[name], nouns)


def _paired(templates: Sequence[str], nouns: Sequence[str]) -> Pairs:
    """Return every (template, noun), a template without a place for a noun once."""
    own = [t for t in templates if "{}" not in t]
    return [*pairs([t for t in templates if "{}" in t], nouns), *((t, "") for t in own)]
