"""Read YAML files strictly: bounded size, no repeated keys, every problem with its line.

Recipes and grids come from strangers. Only plain values are built, and what aliases stand for is
counted before it is built.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from ine.errors import RecipeError, did_you_mean
from ine.files import read_within

YAML_LIMIT = 200_000
"""Bytes of a file; the parser takes seconds for as many."""

MOST_PROBLEMS = 50
"""Wrong fields that one error names."""

VALUE_LIMIT = 20_000
"""Values of a file, aliases written out."""

KeyPath = tuple[str | int, ...]
"""Keys and positions that lead to a value; () is the whole file."""

Places = Mapping[KeyPath, str]
"""{key path: where its value is written}, such as "line 7"."""


class Section(BaseModel):
    """A part of a YAML file: its fields and no others, never changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


Checked = TypeVar("Checked", bound=Section)


@dataclass(frozen=True, kw_only=True)
class YamlFile:
    """A file whose top level is a mapping."""

    path: Path
    text: str
    data: dict[str, Any]
    places: dict[KeyPath, str]
    """See `Places`; every key path of the file has its line."""


def load_yaml(path: Path) -> YamlFile:
    """Read a file whose top level is a mapping.

    Raises:
        RecipeError: It cannot be read, is not strict YAML, or holds something else.
    """
    try:
        text = read_within(path, YAML_LIMIT)
        data, places = parse_yaml(text)
    except (OSError, ValueError) as error:
        raise RecipeError(f"{path}: cannot be read as YAML ({error})") from error
    if not isinstance(data, dict):
        raise RecipeError(f"{path}: expected a mapping of sections, found {type(data).__name__}")
    return YamlFile(path=path, text=text, data=data, places=places)


def read_yaml(text: str) -> Any:
    """Return the value of a YAML text; see `parse_yaml`."""
    return parse_yaml(text)[0]


def parse_yaml(text: str) -> tuple[Any, dict[KeyPath, str]]:
    """Return the value of a YAML text that may come from a stranger, and its `Places`.

    Aliases are counted as what they stand for: nine lines of lists of aliases can stand for a
    billion values.

    Raises:
        ValueError: It is not YAML, is too long, stands for too many values, or repeats a key, of
            which the parser alone would keep the last.
    """
    if len(text) > YAML_LIMIT:
        raise ValueError(f"over {YAML_LIMIT:,} characters; recipes have a few thousand")
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None, {}
        if _node_count(node, {}) > VALUE_LIMIT:
            raise ValueError(f"stands for over {VALUE_LIMIT:,} values, aliases written out")
        lines: dict[KeyPath, int] = {}
        _number_lines(node, (), lines)
        value = loader.construct_document(node)
    # A malformed date or number makes the parser fail in any of these ways.
    except (yaml.YAMLError, RecursionError, LookupError, AttributeError, ArithmeticError) as error:
        raise ValueError(str(error) or type(error).__name__) from error
    return value, {path: f"line {line}" for path, line in lines.items()}


def _number_lines(node: yaml.Node, path: KeyPath, lines: dict[KeyPath, int]) -> None:
    """Add the line, from 1, of every key path below a node."""
    lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here, line = (*path, str(key.value)), key.start_mark.line + 1
            if here in lines:
                raise ValueError(
                    f"line {line}: {key.value!r} stands here already, line {lines[here]}"
                )
            lines[here] = line
            _number_lines(value, here, lines)
    elif isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            _number_lines(item, (*path, number), lines)


def _node_count(node: yaml.Node, known: dict[int, float]) -> float:
    """Return how many values a node stands for, aliases written out."""
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) not in known:
        known[id(node)] = math.inf  # a node met again before it is counted contains itself
        pairs = isinstance(node, yaml.MappingNode)
        parts = [part for pair in node.value for part in pair] if pairs else node.value
        known[id(node)] = 1 + sum(_node_count(part, known) for part in parts)
    return known[id(node)]


# --- problems, each with its key path and place


def validated(
    section: type[Checked], data: Any, where: str | Path, places: Places | None = None
) -> Checked:
    """Return data as a `Section`.

    Args:
        section: The class.
        data: Plain values.
        where: What an error calls the file.
        places: Where each value is written, if known.

    Raises:
        RecipeError: Fields are wrong; it names all of them, `MOST_PROBLEMS` at most.
    """
    try:
        return section.model_validate(data)
    except ValidationError as error:
        found = error.errors()
        problems = [place_of(item["loc"], places) + _problem(item, section) for item in found]
        if len(found) > MOST_PROBLEMS:
            problems[MOST_PROBLEMS:] = [f"and {len(found) - MOST_PROBLEMS} more"]
        raise RecipeError(f"{where}: " + "; ".join(problems)) from error


def place_of(path: KeyPath, places: Places | None) -> str:
    """Return "line 7: " for a key path, or for the nearest one around it; "" without places."""
    for end in range(len(path), -1, -1) if places else ():
        if places and path[:end] in places:
            return f"{places[path[:end]]}: "
    return ""


def _problem(item: Mapping[str, Any], section: type[Section]) -> str:
    path = ".".join(str(p) for p in item["loc"])
    if item["type"] == "missing":
        return f"{path}: missing, and it has no default"
    if item["type"] != "extra_forbidden":
        return f"{path}: {item['msg']}, found {item.get('input')!r:.60}"
    return f"{path}: unknown key{did_you_mean(item['loc'][-1], _fields_at(section, item['loc']))}"


def _fields_at(section: type[BaseModel], path: KeyPath) -> list[str]:
    """Return the names of the fields beside the last key of a path."""
    for part in path[:-1]:
        if part in section.model_fields:
            kinds = _kinds(section.model_fields[str(part)].annotation)
            section = next((k for k in kinds if hasattr(k, "model_fields")), section)
    return list(section.model_fields)


def _kinds(kind: Any) -> list[Any]:
    return [kind, *(inner for arg in get_args(kind) for inner in _kinds(arg))]
