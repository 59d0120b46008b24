"""What a prompt file says, row by row, and choosing among rows.

The functions are pure: each takes a `PromptSet` and returns another one, rows in their order.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ine.errors import PromptError, did_you_mean

CONDITION = re.compile(r"\s*(.+?)\s*(>=|<=|!=|=|>|<)\s*(.*?)\s*")
ROLES = ("id", "prompt", "seed", "guidance", "width", "height")


@dataclass(frozen=True, kw_only=True)
class PromptRow:
    """One prompt and what its file says about it."""

    id: str
    """The file's own number or name for the row, else its place, counted from 0."""

    prompt: str
    """Not empty; blanks at both ends are gone."""

    seed: int | None = None
    """0 to 2**63 - 1."""

    guidance: float | None = None
    """Classifier-free guidance scale w, 0 or more."""

    width: int | None = None
    """Pixels."""

    height: int | None = None
    """Pixels."""

    categories: tuple[str, ...] = ()
    """Labels; a row may have several."""

    extra: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Other columns that are not empty, as text: a clean version, a percentage, a source. Links
    are left out."""


@dataclass(frozen=True, kw_only=True)
class PromptSet:
    """The rows of one file or named set that may be used, and what became of the others."""

    name: str
    rows: tuple[PromptRow, ...]
    digest: str
    """SHA-256 of the file's bytes, 64 hex digits."""

    read: int
    """Rows that the source has."""

    duplicates: int = 0
    """Rows of the source whose prompt an earlier row has; kept unless somebody asks otherwise."""

    refused: int = 0
    """Rows that screening left out; nothing else is known about them."""

    empty: tuple[int, ...] = ()
    """Numbers of rows without a prompt, counted from 1, where those may be left out."""

    columns: Mapping[str, str] = field(default_factory=dict, hash=False)
    """{role: the column that was taken for it}."""

    others: tuple[str, ...] = ()
    """Columns that are kept as text in `PromptRow.extra`."""

    encoding: str = "utf-8"
    note: str = ""
    """What one should know about a set that was recognised."""

    @property
    def prompts(self):
        """Return the texts in order."""
        return [row.prompt for row in self.rows]

    @property
    def per_category(self):
        """Return {category: number of rows}, most first; a row counts under each of its own."""
        counts = Counter(c for row in self.rows for c in dict.fromkeys(row.categories))
        return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))


def choose_rows(prompt_set, *, category=None, where=(), unique=False, limit=None):
    """Return a set with the rows that pass all filters, then the first `limit` of them.

    Args:
        prompt_set: A `PromptSet`.
        category: A label that a row must have.
        where: Conditions such as "nudity_percentage>50", see `meeting`.
        unique: Keep only the first row of each prompt.
        limit: Most rows to keep.

    Raises:
        PromptError: A category or column is unknown, a condition is none, or no row is left.
    """
    found = prompt_set
    if category is not None:
        found = in_category(found, category)
    for condition in where:
        found = meeting(found, condition)
    if unique:
        found = without_duplicates(found)
    if limit is not None:
        found = first(found, limit)
    if not found.rows:
        raise PromptError(
            f"{prompt_set.name}: no row is left of {len(prompt_set.rows)}; ask for less with "
            "category, where and limit"
        )
    return found


def first(prompt_set, count):
    """Return the first `count` rows."""
    return replace(prompt_set, rows=prompt_set.rows[: max(0, count)])


def without_duplicates(prompt_set):
    """Return the rows whose prompt no earlier row has."""
    rows = {}
    for row in prompt_set.rows:
        rows.setdefault(row.prompt, row)
    return replace(prompt_set, rows=tuple(rows.values()))


def in_category(prompt_set, category):
    """Return the rows that have a label.

    Raises:
        PromptError: No row has it.
    """
    known = prompt_set.per_category
    if category not in known:
        there = ", ".join(known) or "none"
        raise PromptError(
            f"{prompt_set.name}: category {category!r} is unknown{did_you_mean(category, known)}; "
            f"categories: {there}"
        )
    rows = tuple(row for row in prompt_set.rows if category in row.categories)
    return replace(prompt_set, rows=rows)


def meeting(prompt_set, condition):
    """Return the rows that meet a condition, "column=value" or with != > >= < <=.

    Numbers are compared as numbers, all else as text; a cell that is empty or no number is never
    greater or less. For categories "=" asks whether a row has the label.

    Raises:
        PromptError: It is no condition, or names no column of the set.
    """
    parts = CONDITION.fullmatch(condition)
    if parts is None:
        raise PromptError(f"{condition!r} is no condition; expected column=value, or > < >= <= !=")
    column, sign, value = parts.groups()
    roles = {name: role for role, name in prompt_set.columns.items()}
    role = roles.get(column, column if column in (*ROLES, "category") else None)
    known = dict.fromkeys((*roles, *(name for row in prompt_set.rows for name in row.extra)))
    known |= dict.fromkeys(prompt_set.others)
    if role is None and column not in known:
        raise PromptError(
            f"{prompt_set.name}: has no column {column!r}{did_you_mean(column, known)}; "
            f"columns: {', '.join(known) or 'none'}"
        )
    if sign not in ("=", "!=") and _number(value) is None:
        raise PromptError(f"{condition!r}: {sign} compares numbers, and {value!r} is none")
    if role == "category":
        held = lambda row: any(_holds(label, "=", value) for label in row.categories)  # noqa: E731
        keep = (lambda row: not held(row)) if sign == "!=" else held
    else:
        keep = lambda row: _holds(_cell(row, role, column), sign, value)  # noqa: E731
    return replace(prompt_set, rows=tuple(filter(keep, prompt_set.rows)))


def _cell(row, role, column):
    value = row.extra.get(column, "") if role is None else getattr(row, role)
    return "" if value is None else str(value)


def _holds(cell, sign, value):
    a, b = _number(cell), _number(value)
    numbers = a is not None and b is not None
    if sign in ("=", "!="):
        return (a == b if numbers else cell == value) == (sign == "=")
    return numbers and {">": a > b, "<": a < b, ">=": a >= b, "<=": a <= b}[sign]


def _number(text):
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
