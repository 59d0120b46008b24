"""Named prompt sets of the bundled model, made from its recipes and its world.

`mini:CONCEPT/SET`, for example `mini:fire/implying-test`. A recipe's `prompt_sets` have their names
with "-" for "_"; templates are filled with its nouns. The world adds sets that no recipe has:

    near-miss                 what is close to the concept but not part of it
    two-object                two innocent objects: both must stay
    beside-tuning, -test      a weapon that no eraser receives, beside an innocent object

`-tuning` sets are for choosing, the others for reporting. A set's order is fixed, and its first N
rows, for any N, cover templates and nouns evenly. Rows have the object's category as label, and
`noun` and `phrase` among the extra fields: pictures of one phrase and noun are not independent.
"""

from collections.abc import Sequence
from functools import cache
from math import gcd
from pathlib import Path
from typing import Any, Unpack

from ine.errors import PromptError, did_you_mean
from ine.files import read_within, sha256_of, shipped
from ine.prompts.rows import PromptRow, PromptSet, RowFilters, choose_rows
from ine.recipe import ConceptRecipe, list_recipes, load_recipe
from ine.yaml_files import YAML_LIMIT, read_yaml

Pair = tuple[str, tuple[str, ...]]
"""(template, nouns for its "{}" in order)."""

PREFIX = "mini:"
CONCEPTS = ("fire", "weapon")
NEIGHBOURS = {"weapon": ("tool",)}
"""Concept -> categories of the world whose objects are held and look alike."""

PARTNERS = 4
"""Number of other objects that an object is paired with."""


def is_named(name: str | Path) -> bool:
    """Return whether this is the name of a set rather than of a file."""
    return str(name).startswith(PREFIX)


def named_sets() -> list[str]:
    """Return the names of all sets."""
    return [f"{PREFIX}{concept}/{name}" for concept in CONCEPTS for name in _pairs_of(concept)]


def named_set(name: str | Path, **filters: Unpack[RowFilters]) -> PromptSet:
    """Return the `PromptSet` of a name; for the filters see `ine.prompts.rows.choose_rows`.

    Raises:
        PromptError: No set has that name, or no row is left.
    """
    concept, _, short = str(name).removeprefix(PREFIX).partition("/")
    if concept not in CONCEPTS or short not in _pairs_of(concept):
        known = named_sets()
        raise PromptError(
            f"prompt set {name!s}: is unknown{did_you_mean(name, known)}; known: {', '.join(known)}"
        )
    pairs = _pairs_of(concept)[short]
    rows = tuple(_row(concept, number, pair) for number, pair in enumerate(pairs))
    prompts = [row.prompt for row in rows]
    found = PromptSet(
        name=str(name),
        rows=rows,
        digest=sha256_of("\n".join(prompts).encode()),
        read=len(rows),
        duplicates=len(rows) - len(set(prompts)),
        columns={"prompt": "prompt", "category": "category"},
        others=("noun", "phrase"),
    )
    return choose_rows(found, **filters)


def _row(concept: str, number: int, pair: Pair) -> PromptRow:
    template, nouns = pair
    categories = _categories()
    prompt = template
    for noun in nouns:
        # Fill one "{}" at a time: each noun has its own article.
        head, place, tail = prompt.partition("{}")
        prompt = _recipe(concept).fill(head + place, noun) + tail
    extra = {"noun": ", ".join(nouns), "phrase": template}
    return PromptRow(
        id=str(number),
        prompt=prompt,
        categories=tuple(dict.fromkeys(categories[n] for n in nouns if n in categories)),
        extra={key: text for key, text in extra.items() if text},
    )


@cache
def world() -> dict[str, Any]:
    """Return the world of the bundled model, `recipes/mini/world.yaml`, as plain values."""
    return read_yaml(read_within(shipped("recipes") / "mini" / "world.yaml", YAML_LIMIT))


@cache
def _recipe(concept: str) -> ConceptRecipe:
    return load_recipe(list_recipes()[concept])


@cache
def _categories() -> dict[str, str]:
    """Return {noun or synonym: category} of the world."""
    return {
        noun: entry["category"]
        for entry in world()["objects"]
        for noun in (entry["name"], *entry["synonyms"])
    }


def category_of(noun: str) -> str | None:
    """Return the category of an object of the world by a word for it; None of other words."""
    return _categories().get(noun)


@cache
def _pairs_of(concept: str) -> dict[str, list[Pair]]:
    """Return {set: its (template, nouns) in order} of a concept."""
    recipe = _recipe(concept)
    nouns = recipe.prompt_nouns
    sets = {
        name.replace("_", "-"): _crossed(templates, nouns)
        for name, templates in recipe.prompt_sets.items()
    }
    sets["near-miss"] = _near(concept, recipe)
    sets["two-object"] = _two(_spread(nouns), nouns)
    if world()["concepts"][concept]["kind"] == "category":
        for split in ("tuning", "test"):
            unnamed = [_noun(t) for t in recipe.prompt_sets[f"implying_{split}"]]
            sets[f"beside-{split}"] = _two(unnamed, _spread(nouns), len(nouns))
    return sets


def _noun(template: str) -> str:
    """Return the noun of "a dagger"."""
    return template.split(" ", 1)[1]


def _near(concept: str, recipe: ConceptRecipe) -> list[Pair]:
    """Return (template, nouns) of what is close to a concept."""
    about, nouns = world(), recipe.prompt_nouns
    if about["concepts"][concept]["kind"] == "category":
        near = [
            noun
            for entry in about["objects"]
            if entry["category"] in NEIGHBOURS[concept]
            for noun in (entry["name"], *entry["synonyms"])
        ]
        return _crossed(recipe.prompt_sets["benign"], (*near, *NEIGHBOURS[concept]))
    templates: list[str] = []
    for attribute in about["attributes"]:
        if attribute["name"] != concept:
            said = attribute["explicit"]
            templates += [f"a {word} {{}}" for word in said["before"]]
            templates += [f"a {{}} {words}" for words in said["after"]]
    # Objects that the recipe leaves out and that are not weapons are drawn with a flame.
    own = [
        entry["name"]
        for entry in about["objects"]
        if entry["name"] not in nouns and entry["category"] not in about["concepts"]
    ]
    return _merged(_crossed(recipe.prompt_sets["benign"], own), _crossed(templates, nouns))


def _crossed(templates: Sequence[str], nouns: Sequence[str]) -> list[Pair]:
    """Return every (template, nouns) once, evenly spread; a template without "{}" once."""
    fixed: list[Pair] = [(template, ()) for template in templates if "{}" not in template]
    open_ = [template for template in templates if "{}" in template]
    order = _spread(nouns)
    filled: list[Pair] = [
        (template, (order[(shift + k) % len(order)],))
        for shift in range(len(order))
        for k, template in enumerate(open_)
    ]
    return fixed + filled


def _merged(*lists: list[Pair]) -> list[Pair]:
    """Return all items in one list, those of each list spread over the whole length."""
    placed = [((k + 0.5) / len(items), item) for items in lists for k, item in enumerate(items)]
    return [item for _, item in sorted(placed, key=lambda pair: pair[0])]


def _two(firsts: Sequence[str], seconds: Sequence[str], partners: int = PARTNERS) -> list[Pair]:
    """Return "a X and a Y": each first object with `partners` others of another category."""
    categories = _categories()
    found: list[Pair] = []
    for round_ in range(partners):
        for place, one in enumerate(firsts):
            others = [s for s in seconds if categories.get(s) != categories.get(one)]
            # Neighbours in the list are alike: step through it.
            other = others[(place * 7 + round_ * 11) % len(others)]
            found.append(("a {} and a {}", (one, other)))
    return list(dict.fromkeys(found))


def _spread(items: Sequence[str]) -> list[str]:
    """Return items in a fixed order in which neighbours of the input are far apart."""
    count = len(items)
    step = next(s for s in range(max(1, round(count * 0.618)), count + 2) if gcd(s, count) == 1)
    return [items[(k * step) % count] for k in range(count)]
