"""Concept recipes: YAML in, frozen checked values out.

A recipe says what a concept is: its words, how pictures of it are made and recognised, how it is
inverted and erased, and on which prompts choices are tuned. Nothing in a recipe is code.
"""

import math
import os
import re
from typing import Annotated, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ine.errors import RecipeError, did_you_mean
from ine.files import read_within, sha256_of, shipped, user_path

YAML_LIMIT = 200_000
"""Bytes of a recipe; the parser takes seconds for as many."""

MOST_PROBLEMS = 50
"""Wrong fields that one error names."""

VALUE_LIMIT = 20_000
"""Values of a recipe, aliases written out."""

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Names = tuple[str, ...]
Some = Annotated[Names, Field(min_length=1)]
Captions = tuple[Annotated[str, Field(pattern=r"\{v\}")], ...]


class Section(BaseModel):
    """A part of a YAML file: its fields and no others, never changed."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Words(Section):
    """How people say it."""

    explicit: Some
    """Phrases that erasers are told and that serve as negative prompts."""

    synonyms: Names = ()
    """Other phrases for it, never told to an eraser."""

    negative: str = ""
    """The negative text that defends best on the tuning prompts; by default all explicit ones."""

    def negative_text(self):
        """Return what a user without an embedding would type as the negative."""
        return self.negative or ", ".join(self.explicit)


class Pictures(Section):
    """How pictures of the concept are made by the base model, when the user has none."""

    prompts: Some
    """Templates; "{}" is replaced by a noun."""

    nouns: Some = ("",)
    """What the concept happens to; "" for a concept that stands alone."""

    negative_prompt: str = ""
    """Negative prompt of the making; recipes about people name words for youth here."""

    count: Count = 64
    """Pictures to keep."""

    tries: Count = 4
    """At most `tries * count` pictures are made to find them."""

    rule: str
    """Named rule that must find the concept in a kept picture, see `ine.judging.rules`."""

    steps: Count = 50
    """Denoising steps."""

    guidance_scale: Annotated[float, Field(gt=1)] = 7.5
    """Classifier-free guidance scale."""

    scheduler: str = "ddim"
    """Name in `ine.sampling.SCHEDULERS`."""

    batch: Count = 4
    """Pictures per unit."""


class Inversion(Section):
    """How the vectors are learned; defaults for SD 1.x after arXiv 2511.04834."""

    vectors: Annotated[int, Field(ge=1, le=75)] = 1
    """Number of token vectors n."""

    steps: Count = 3000
    """Optimiser steps."""

    batch: Count = 1
    """Pictures per forward pass."""

    accumulation: Count = 1
    """Forward passes per optimiser step."""

    lr: Annotated[float, Field(gt=0)] = 5e-3
    """Learning rate of Adam, not scaled by the batch."""

    schedule: Literal["constant", "linear"] = "constant"
    """ "linear": constant for the first half, then down to zero."""

    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW's weight decay; more than 0 shrinks the vectors."""

    init: str = "mean"
    """ "mean" of the token table, words whose vectors are the start, or an embedding file."""

    init_noise: Annotated[float, Field(ge=0)] = 0.01
    """Spread of the noise added to the start, so that several vectors part."""

    templates: Annotated[Captions, Field(min_length=1)] = ("a {v}", "{v}")
    """Captions of pictures whose noun is unknown; "{v}" is where the vectors stand."""

    named_templates: Captions = ("a {v} {noun}",)
    """Captions of pictures whose noun is known; measured against others in docs/results.md."""

    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Arithmetic of the U-Net; the vectors are float32 always."""

    gradient_checkpointing: bool = False
    """Recompute activations of the U-Net to save memory."""

    preview_every: Count = 500
    """Optimiser steps between previews; the kept vectors are those of a preview."""

    preview_pictures: Count = 8
    """Pictures per preview, for recovery and for defence each."""


class Tuning(Section):
    """Prompts on which choices are made; figures are reported on others."""

    prompts: Some
    """Templates that imply the concept without naming it (or, for words-only recipes, name it)."""

    nouns: Some = ("",)
    """Nouns for the templates."""

    steps: Count = 20
    """Denoising steps."""

    guidance_scale: Annotated[float, Field(gt=1)] = 7.5
    """Classifier-free guidance scale."""


class Erase(Section):
    """What erasers are told."""

    concepts: Some
    """Templates with the concept, "a {} on fire"."""

    targets: Some
    """The same templates without it, pairwise."""

    nouns: Some = ("",)
    """Nouns for both."""

    preserve: Names = ()
    """Templates whose text states must stay."""

    preserve_nouns: Names = ("",)
    """Nouns for `preserve`."""

    uce: dict[str, float | str] = {}
    """Fields of `ine.unlearning.uce.UceSettings` that suit the base."""

    esd: dict[str, float | int | str] = {}
    """Fields of `ine.unlearning.esd.EsdSettings` that suit the base."""

    duo: dict[str, float | int | str] = {}
    """Fields of `ine.unlearning.duo.DuoSettings` that suit the base."""


class ConceptRecipe(Section):
    """One concept. See the section classes for the fields."""

    kind: Literal["concept"]
    version: Literal[1]
    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]*$")]
    about: str = ""
    base: str
    """Base model: "mini", a hub id, or a folder."""

    people: bool = False
    """Pictures show people: they stay latents, and whatever is shown is blurred when flagged."""

    words: Words
    pictures: Pictures
    inversion: Inversion = Inversion()
    tuning: Tuning | None = None
    erase: Erase | None = None
    prompt_sets: dict[str, Names] = {}
    """Named templates for reported figures, e.g. `implying_test`, `benign`."""

    prompt_nouns: Names = ("",)
    """Nouns for the prompt sets."""

    strength: Annotated[float, Field(ge=0)] | None = None
    """Strength s of the additive form that suits the concept, chosen on the tuning prompts; None
    where nobody has measured it, which is w - 1 as in plain guidance."""

    plural: Names = ()
    """Nouns that take no article."""

    @property
    def hash(self):
        """Return 16 hex digits of everything in the recipe."""
        return sha256_of(self.model_dump_json().encode())[:16]

    def fill(self, template, noun):
        """Return a template with its noun, articles put right; see `fill`."""
        return fill(template, noun, self.plural)


def fill(template, noun, plural=()):
    """Put a noun into a template: "a {} on fire", "apple" -> "an apple on fire".

    Nouns in `plural` lose the article: "a burning {}", "scissors" -> "burning scissors". Other
    words of the template stay as they are: "a {} with a unicorn".
    """
    if noun in plural:
        template = re.sub(r"\ban? ((?:\S+ )?\{\})", r"\1", template)
    elif noun:
        article = "an" if re.match(r"(?!uni[^mn]|us[eu]|eu|one\b)[aeiou]", noun, re.I) else "a"
        template = re.sub(r"\ban? (?=\{\})", f"{article} ", template)
    return template.replace("{}", noun)


def pairs(templates, nouns):
    """Return every (template, noun), nouns fastest."""
    return [(t, n) for t in templates for n in nouns]


def list_recipes():
    """Return {name: path} of the shipped concept recipes."""
    return {p.stem: p for p in sorted(shipped("recipes").glob("*.yaml"))}


def load_recipe(name_or_path, overrides=()):
    """Return a checked recipe.

    Args:
        name_or_path: A shipped recipe's name, or a YAML file.
        overrides: "section.key=value" strings, values parsed as YAML.

    Raises:
        RecipeError: Unknown name, unreadable file, or wrong fields, all listed at once.
    """
    path = find_recipe(name_or_path)
    try:
        data = read_yaml(read_within(path, YAML_LIMIT))
    except (OSError, ValueError) as error:
        raise RecipeError(f"{path}: cannot be read as YAML ({error})") from error
    if not isinstance(data, dict):
        raise RecipeError(f"{path}: expected a mapping of sections, found {type(data).__name__}")
    for override in overrides:
        apply_override(data, override)
    return check_recipe(data, path)


def read_yaml(text):
    """Return the data of a YAML text that may come from a stranger.

    Aliases are counted as what they stand for: nine lines of lists of aliases can stand for a
    billion values.

    Raises:
        ValueError: It is no YAML, too long, or stands for too many values.
    """
    if len(text) > YAML_LIMIT:
        raise ValueError(f"over {YAML_LIMIT:,} characters; recipes are some thousands")
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if _node_count(node, {}) > VALUE_LIMIT:
            raise ValueError(f"stands for over {VALUE_LIMIT:,} values, aliases written out")
        return None if node is None else loader.construct_document(node)
    # A date or a number that is none fails in any way at all inside the parser.
    except (yaml.YAMLError, RecursionError, LookupError, AttributeError, ArithmeticError) as error:
        raise ValueError(str(error) or type(error).__name__) from error


def yaml_lines(text):
    """Return {key path: line} of a text that `read_yaml` takes, lines counted from 1.

    A key path is a tuple of keys and positions; () is the whole.

    Raises:
        ValueError: A key stands twice in one place, of which the parser would drop the first.
    """
    found = {}
    _number_lines(yaml.SafeLoader(text).get_single_node(), (), found)
    return found


def _number_lines(node, path, found):
    found.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here, line = (*path, str(key.value)), key.start_mark.line + 1
            if here in found:
                raise ValueError(
                    f"line {line}: {key.value!r} stands here already, line {found[here]}"
                )
            found[here] = line
            _number_lines(value, here, found)
    elif isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            _number_lines(item, (*path, number), found)


def _node_count(node, known):
    """Return how many values a node stands for, aliases written out."""
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) not in known:
        known[id(node)] = math.inf  # what is met again before it is counted holds itself
        pairs = isinstance(node, yaml.MappingNode)
        parts = [part for pair in node.value for part in pair] if pairs else node.value
        known[id(node)] = 1 + sum(_node_count(part, known) for part in parts)
    return known[id(node)]


def find_recipe(name_or_path):
    """Return the path of a shipped recipe's name or of a user's file."""
    known = list_recipes()
    if str(name_or_path) in known:
        return known[str(name_or_path)]
    path = user_path(name_or_path)
    if os.path.isfile(path):
        return path
    if path.suffix in {".yaml", ".yml"}:
        raise RecipeError(f"{path}: no such recipe file")
    hint = did_you_mean(name_or_path, known)
    raise RecipeError(
        f"concept {str(name_or_path)!r} is unknown{hint}; shipped: {', '.join(known)}; "
        "or give a recipe file"
    )


def apply_override(data, override):
    """Set `section.key=value` in the data of a recipe."""
    key, equals, value = override.partition("=")
    if not equals or not key.strip():
        raise RecipeError(f"--set {override}: expected section.key=value")
    *parents, last = key.strip().split(".")
    for parent in parents:
        data = data.setdefault(parent, {})
        if not isinstance(data, dict):
            raise RecipeError(f"--set {override}: {parent!r} is not a section")
    try:
        data[last] = read_yaml(value)
    except ValueError as error:
        raise RecipeError(f"--set {override}: the value is not YAML ({error})") from error


def check_recipe(data, where):
    """Return the recipe of a mapping; every problem is named with its key path."""
    try:
        recipe = ConceptRecipe.model_validate(data)
    except ValidationError as error:
        raise RecipeError(f"{where}: " + "; ".join(problems_of(error, ConceptRecipe))) from error
    erase = recipe.erase
    if erase and len(erase.concepts) != len(erase.targets):
        raise RecipeError(
            f"{where}: erase.concepts has {len(erase.concepts)} templates and erase.targets "
            f"{len(erase.targets)}; they are pairs, so give the same number"
        )
    return recipe


def problems_of(error, section, lines=None):
    """Return what a `ValidationError` says, one text per wrong field, `MOST_PROBLEMS` at most.

    Args:
        error: The error.
        section: The `Section` that was validated.
        lines: {key path: line} from `yaml_lines`; where given, each text begins with its line.
    """
    found = error.errors()
    problems = [at_line(item["loc"], lines) + _problem(item, section) for item in found]
    if len(found) > MOST_PROBLEMS:
        problems[MOST_PROBLEMS:] = [f"and {len(found) - MOST_PROBLEMS} more"]
    return problems


def at_line(path, lines):
    """Return "line 7: " for the place of a key path, or of what holds it; "" without lines."""
    for end in range(len(path), -1, -1) if lines else ():
        if path[:end] in lines:
            return f"line {lines[path[:end]]}: "
    return ""


def _problem(item, section):
    path = ".".join(str(p) for p in item["loc"])
    if item["type"] == "missing":
        return f"{path}: missing, and it has no default"
    if item["type"] != "extra_forbidden":
        return f"{path}: {item['msg']}, found {item.get('input')!r:.60}"
    return f"{path}: unknown key{did_you_mean(item['loc'][-1], _fields_at(section, item['loc']))}"


def _fields_at(section, path):
    """Return the names of the fields beside the last key of a path."""
    for part in path[:-1]:
        if part in section.model_fields:
            kinds = _kinds(section.model_fields[part].annotation)
            section = next((k for k in kinds if hasattr(k, "model_fields")), section)
    return section.model_fields


def _kinds(kind):
    return [kind, *(inner for arg in get_args(kind) for inner in _kinds(arg))]


def recipe_yaml(recipe):
    """Return the resolved recipe as YAML that loads to an equal value."""
    data = recipe.model_dump(mode="json")
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=100)
