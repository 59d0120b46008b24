"""The rows of a prompt file, and functions that choose among them.

The functions are pure: each takes a `PromptSet` and returns another one, rows in their order.
"""

import math
import operator
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypedDict

from ine.errors import PromptError, did_you_mean

CONDITION = re.compile(r"\s*(.+?)\s*(>=|<=|!=|=|>|<|~)\s*(.*?)\s*")
COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    **{"=": operator.eq, "!=": operator.ne, ">": operator.gt},
    **{"<": operator.lt, ">=": operator.ge, "<=": operator.le},
}
ROLES = ("id", "prompt", "seed", "guidance", "width", "height")


@dataclass(frozen=True, kw_only=True)
class PromptRow:
    """One prompt and the other columns of its row."""

    id: str
    """The file's number or name for the row, else its position, counted from 0."""

    prompt: str
    """Not empty; without blanks at both ends."""

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
    """Other columns with content, as text: a clean version, a percentage, a source. Links are left
    out."""


@dataclass(frozen=True, kw_only=True)
class PromptSet:
    """The usable rows of one file or named set, and what was left out."""

    name: str
    rows: tuple[PromptRow, ...]
    digest: str
    """SHA-256 of the file's bytes, 64 hex digits."""

    read: int
    """Number of rows of the source."""

    duplicates: int = 0
    """Rows of the source whose prompt an earlier row has; kept by default."""

    refused: int = 0
    """Rows that screening left out; their texts are not kept."""

    refused_rows: tuple[int, ...] = ()
    """Their numbers in the file, counted from 1, so that other tools can leave out the same."""

    refused_digest: str = ""
    """SHA-256 of their prompts in order, each in UTF-8 with a line feed behind it; "" of none."""

    empty: tuple[int, ...] = ()
    """Numbers of rows without a prompt, counted from 1, if those may be left out."""

    columns: Mapping[str, str] = field(default_factory=dict, hash=False)
    """{role: its column}."""

    others: tuple[str, ...] = ()
    """Columns that are kept as text in `PromptRow.extra`."""

    encoding: str = "utf-8"
    note: str = ""
    """A note for the user about a known set."""

    @property
    def prompts(self) -> list[str]:
        """Return the texts in order."""
        return [row.prompt for row in self.rows]

    def refused_summary(self, most: int | None = None) -> str:
        """Return numbers and digest of the refused rows as text, "rows 3, 7-9; SHA-256 ...".

        Args:
            most: Largest number of ranges to show; None shows all.
        """
        spans = _spans(self.refused_rows)
        shown = ", ".join(spans[:most])
        more = "" if most is None or len(spans) <= most else " and more"
        rows = "row" if self.refused == 1 else "rows"
        return f"{rows} {shown}{more}; SHA-256 of their prompts {self.refused_digest[:16]}"

    @property
    def per_category(self) -> dict[str, int]:
        """Return {category: number of rows}, most first; a row counts in each of its categories."""
        counts = Counter(c for row in self.rows for c in dict.fromkeys(row.categories))
        return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))


def _spans(numbers: tuple[int, ...]) -> list[str]:
    """Return ascending numbers as texts, consecutive ones as one, ["3", "7-9"]."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return [str(a) if a == b else f"{a}-{b}" for a, b in spans]


class RowFilters(TypedDict, total=False):
    """Keyword arguments of `choose_rows`, which other functions pass on."""

    category: str | None
    where: Sequence[str]
    unique: bool
    limit: int | None


def choose_rows(
    prompt_set: PromptSet,
    *,
    category: str | None = None,
    where: Sequence[str] = (),
    unique: bool = False,
    limit: int | None = None,
) -> PromptSet:
    """Return a set with the rows that pass all filters, then the first `limit` of them.

    Args:
        prompt_set: The set.
        category: A label that a row must have.
        where: Conditions such as "nudity_percentage>50", see `meeting`.
        unique: Keep only the first row of each prompt.
        limit: Largest number of rows to keep.

    Raises:
        PromptError: A category or column is unknown, a condition is malformed, or no row is left.
    """
    found = prompt_set
    if category is not None:
        found = in_category(found, category)
    for condition in where:
        found = meeting(found, condition)
    if unique:
        found = without_duplicates(found)
    if limit is not None:
        found = replace(found, rows=found.rows[: max(0, limit)])
    if not found.rows:
        raise PromptError(
            f"{prompt_set.name}: no row is left of {len(prompt_set.rows)}; loosen the conditions"
        )
    return found


def without_duplicates(prompt_set: PromptSet) -> PromptSet:
    """Return the rows whose prompt no earlier row has."""
    rows: dict[str, PromptRow] = {}
    for row in prompt_set.rows:
        rows.setdefault(row.prompt, row)
    return replace(prompt_set, rows=tuple(rows.values()))


def in_category(prompt_set: PromptSet, category: str) -> PromptSet:
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


def meeting(prompt_set: PromptSet, condition: str) -> PromptSet:
    """Return the rows that meet a condition, "column=value" or with != > >= < <= ~.

    Numbers are compared as numbers, anything else as text; a cell that is not a number is never
    greater or less. "~" looks for a regular expression. For categories a row has several labels,
    any of which may meet it.

    Raises:
        PromptError: The condition is malformed, or the set lacks its column.
    """
    parts = CONDITION.fullmatch(condition)
    if parts is None:
        raise PromptError(
            f"{condition!r} is not a condition; expected column=value, or > < >= <= != ~"
        )
    column, sign, value = parts.groups()
    roles = {name: role for role, name in prompt_set.columns.items()}
    role = roles.get(column, column if column in (*ROLES, "category") else None)
    extra = [name for row in prompt_set.rows for name in row.extra]
    known = list(dict.fromkeys([*roles, *extra, *prompt_set.others]))
    if role is None and column not in known:
        raise PromptError(
            f"{prompt_set.name}: has no column {column!r}{did_you_mean(column, known)}; "
            f"columns: {', '.join(known) or 'none'}"
        )
    if sign == "~":
        _check_pattern(condition, value)
    elif sign not in ("=", "!=") and _number(value) is None:
        raise PromptError(f"{condition!r}: {sign} compares numbers, and {value!r} is not one")
    if role == "category":
        same = "=" if sign == "!=" else sign
        held = lambda row: any(_holds(label, same, value) for label in row.categories)  # noqa: E731
        keep = (lambda row: not held(row)) if sign == "!=" else held
    else:
        keep = lambda row: _holds(_cell(row, role, column), sign, value)  # noqa: E731
    return replace(prompt_set, rows=tuple(filter(keep, prompt_set.rows)))


def _cell(row: PromptRow, role: str | None, column: str) -> str:
    value = row.extra.get(column, "") if role is None else getattr(row, role)
    return "" if value is None else str(value)


def _check_pattern(condition: str, pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise PromptError(f"{condition!r}: is no regular expression ({error})") from error


def _holds(cell: str, sign: str, value: str) -> bool:
    if sign == "~":
        return re.search(value, cell) is not None
    a, b = _number(cell), _number(value)
    if a is None or b is None:
        return (cell == value) == (sign == "=") if sign in ("=", "!=") else False
    return COMPARISONS[sign](a, b)


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
