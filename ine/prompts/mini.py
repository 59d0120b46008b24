"""Named prompt sets of the bundled model, made from its recipes and its world.

`mini:CONCEPT/SET`, for example `mini:fire/implying-test`. A recipe's `prompt_sets` are there under
their names with "-" for "_", templates filled with its nouns. The world adds what no recipe says:

    near-miss                 what is close to the concept and is none of it
    two-object                two innocent objects: both must stay
    beside-tuning, -test      a weapon that no eraser is told of, beside an innocent object

`-tuning` sets are for choosing, the others for reporting. A set's order is fixed, and any first
part of it covers templates and nouns evenly. Rows have the object's category as their label, and
`noun` and `phrase` among the extra fields: pictures of one phrase and noun are not independent.
"""

from functools import cache
from math import gcd

from ine.errors import PromptError, did_you_mean
from ine.files import read_within, sha256_of, shipped
from ine.prompts.rows import PromptRow, PromptSet, choose_rows
from ine.recipe import YAML_LIMIT, list_recipes, load_recipe, read_yaml

PREFIX = "mini:"
CONCEPTS = ("fire", "weapon")
NEIGHBOURS = {"weapon": ("tool",)}
"""Categories of the world that are held and look like a category that is a concept."""

PARTNERS = 4
"""With how many others an object is paired."""


def is_named(name):
    """Return whether this asks for a named set rather than a file."""
    return str(name).startswith(PREFIX)


def named_sets():
    """Return the names of all sets."""
    return [f"{PREFIX}{concept}/{name}" for concept in CONCEPTS for name in _pairs_of(concept)]


def named_set(name, *, category=None, where=(), unique=False, limit=None):
    """Return the `PromptSet` of a name; for the filters see `ine.prompts.rows.choose_rows`.

    Raises:
        PromptError: There is no such set, or no row is left.
    """
    concept, _, short = str(name).removeprefix(PREFIX).partition("/")
    if concept not in CONCEPTS or short not in _pairs_of(concept):
        known = named_sets()
        raise PromptError(
            f"prompt set {name!s}: is unknown{did_you_mean(name, known)}; there are "
            f"{', '.join(known)}"
        )
    recipe = _recipe(concept)
    categories = _categories()
    rows = []
    for number, (template, nouns) in enumerate(_pairs_of(concept)[short]):
        extra = {"noun": ", ".join(nouns), "phrase": template}
        labels = dict.fromkeys(categories[n] for n in nouns if n in categories)
        prompt = template
        for noun in nouns:
            # One place after the other, each with its own article.
            head, place, tail = prompt.partition("{}")
            prompt = recipe.fill(head + place, noun) + tail
        rows.append(
            PromptRow(
                id=str(number),
                prompt=prompt,
                categories=tuple(labels),
                extra={key: text for key, text in extra.items() if text},
            )
        )
    prompts = [row.prompt for row in rows]
    found = PromptSet(
        name=str(name),
        rows=tuple(rows),
        digest=sha256_of("\n".join(prompts).encode()),
        read=len(rows),
        duplicates=len(rows) - len(set(prompts)),
        columns={"prompt": "prompt", "category": "category"},
        others=("noun", "phrase"),
    )
    return choose_rows(found, category=category, where=where, unique=unique, limit=limit)


@cache
def _world():
    return read_yaml(read_within(shipped("recipes") / "mini" / "world.yaml", YAML_LIMIT))


@cache
def _recipe(concept):
    return load_recipe(list_recipes()[concept])


@cache
def _categories():
    """Return {noun or synonym: category} of the world."""
    return {
        noun: entry["category"]
        for entry in _world()["objects"]
        for noun in (entry["name"], *entry["synonyms"])
    }


@cache
def _pairs_of(concept):
    """Return {set: its (template, nouns) in order} of a concept."""
    recipe = _recipe(concept)
    nouns = recipe.prompt_nouns
    sets = {
        name.replace("_", "-"): _crossed(templates, nouns)
        for name, templates in recipe.prompt_sets.items()
    }
    sets["near-miss"] = _near(concept, recipe)
    sets["two-object"] = _two(_spread(nouns), nouns)
    if _world()["concepts"][concept]["kind"] == "category":
        for split in ("tuning", "test"):
            unnamed = [_noun(t) for t in recipe.prompt_sets[f"implying_{split}"]]
            sets[f"beside-{split}"] = _two(unnamed, _spread(nouns), len(nouns))
    return sets


def _noun(template):
    """Return the noun of "a dagger"."""
    return template.split(" ", 1)[1]


def _near(concept, recipe):
    """Return (template, nouns) of what is close to a concept."""
    world, nouns = _world(), recipe.prompt_nouns
    if world["concepts"][concept]["kind"] == "category":
        near = [
            noun
            for entry in world["objects"]
            if entry["category"] in NEIGHBOURS[concept]
            for noun in (entry["name"], *entry["synonyms"])
        ]
        return _crossed(recipe.prompt_sets["benign"], (*near, *NEIGHBOURS[concept]))
    templates = []
    for attribute in world["attributes"]:
        if attribute["name"] != concept:
            said = attribute["explicit"]
            templates += [f"a {word} {{}}" for word in said["before"]]
            templates += [f"a {{}} {words}" for words in said["after"]]
    # What the recipe leaves out and is no weapon is drawn with a flame of its own.
    own = [
        entry["name"]
        for entry in world["objects"]
        if entry["name"] not in nouns and entry["category"] not in world["concepts"]
    ]
    return _merged(_crossed(recipe.prompt_sets["benign"], own), _crossed(templates, nouns))


def _crossed(templates, nouns):
    """Return every (template, nouns) once, evenly spread; a template without a place once."""
    fixed = [(template, ()) for template in templates if "{}" not in template]
    open_ = [template for template in templates if "{}" in template]
    order = _spread(nouns)
    filled = [
        (template, (order[(shift + k) % len(order)],))
        for shift in range(len(order))
        for k, template in enumerate(open_)
    ]
    return fixed + filled


def _merged(*lists):
    """Return the items of lists in one, each list's spread over the whole length."""
    placed = [((k + 0.5) / len(items), item) for items in lists for k, item in enumerate(items)]
    return [item for _, item in sorted(placed, key=lambda pair: pair[0])]


def _two(firsts, seconds, partners=PARTNERS):
    """Return "a X and a Y": each first with that many others of another category."""
    categories = _categories()
    found = []
    for round_ in range(partners):
        for place, one in enumerate(firsts):
            others = [s for s in seconds if categories.get(s) != categories.get(one)]
            # Neighbours in the list are alike: step through it.
            other = others[(place * 7 + round_ * 11) % len(others)]
            found.append(("a {} and a {}", (one, other)))
    return list(dict.fromkeys(found))


def _spread(items):
    """Return items in a fixed order in which neighbours of the list are far apart."""
    count = len(items)
    step = next(s for s in range(max(1, round(count * 0.618)), count + 2) if gcd(s, count) == 1)
    return [items[(k * step) % count] for k in range(count)]
