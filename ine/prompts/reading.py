"""Read any prompt file or named set: map its columns; screen, count and check its rows."""

import json
import math
import re
from collections.abc import Collection, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Unpack

from ine.errors import PromptError
from ine.files import sha256_of
from ine.prompts.columns import SEXUAL_LABELS, ColumnMap, canonical, map_columns
from ine.prompts.mini import is_named, named_set
from ine.prompts.rows import PromptRow, PromptSet, RowFilters, choose_rows
from ine.prompts.screening import is_refused
from ine.prompts.tables import NO_TEXT, PromptTable, read_bytes, read_table

LINK = re.compile(r"\s*https?://\S+\s*")
"""A cell that holds only a link is not kept."""

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
HAS_LETTER = re.compile(r"[^\W\d_]")
SEED_LIMIT = 2**63
SIZE_LIMIT = 2**14
NUMBERS = {
    "seed": ("a whole number from 0 to 2**63 - 1", SEED_LIMIT - 1),
    "guidance": ("a number from 0 to 1000", 1000),
    "width": ("whole pixels from 1 to 16384", SIZE_LIMIT),
    "height": ("whole pixels from 1 to 16384", SIZE_LIMIT),
}
"""Role -> (what is expected, the largest value)."""


def is_there(name_or_path: str | Path) -> bool:
    """Return whether this is the name of a set, or a file that exists."""
    return is_named(name_or_path) or Path(name_or_path).is_file()


def find_prompt_set(
    name_or_path: str | Path,
    *,
    column: str | None = None,
    skip_empty: bool = False,
    **filters: Unpack[RowFilters],
) -> PromptSet:
    """Return the `PromptSet` of `mini:CONCEPT/SET` or of a file.

    Args:
        name_or_path: See `ine.prompts.mini` and `read_prompt_set`.
        column: For files, the prompt's column.
        skip_empty: For files, leave rows without a prompt out.
        filters: See `ine.prompts.rows.choose_rows`.

    Raises:
        PromptError: There is no such set or file, or it cannot be used.
    """
    if is_named(name_or_path):
        if column not in (None, "prompt"):
            raise PromptError(
                f"{name_or_path}: its prompts have no column {column!r}; leave --column (in a grid "
                "or in Python: column) out"
            )
        return named_set(name_or_path, **filters)
    return read_prompt_set(name_or_path, column=column, skip_empty=skip_empty, **filters)


def read_prompt_set(
    path: str | Path,
    *,
    column: str | None = None,
    skip_empty: bool = False,
    **filters: Unpack[RowFilters],
) -> PromptSet:
    """Return the `PromptSet` of a file; rows are always screened.

    Args:
        path: A .csv, .tsv, .jsonl or .json file; anything else is text, one prompt a line.
        column: The column of the prompt, instead of the rule of `ine.prompts.columns`.
        skip_empty: Leave rows without a prompt out, counted, instead of refusing the file.
        filters: See `ine.prompts.rows.choose_rows`.

    Raises:
        PromptError: The file cannot be read, has no prompt column or no prompt, or a row is wrong.
    """
    return choose_rows(_whole_set(Path(path), column, skip_empty), **filters)


def _whole_set(path: Path, column: str | None, skip_empty: bool) -> PromptSet:
    """Return all usable rows of a file."""
    raw = read_bytes(path)
    table = read_table(path, raw)
    if not table.columns:
        raise PromptError(f"{path}: holds no prompt; it is empty")
    columns = map_columns(path, table.columns, column)
    rows, empty, refused = _sorted_rows(path, table, columns)
    if empty and not skip_empty:
        raise PromptError(
            f"{path}: {_named_rows(empty)} no prompt; fill it in or delete the row, or leave such "
            "rows out with --skip-empty (in a grid or in Python: skip_empty)"
        )
    if not rows:
        raise _no_prompt(path, len(refused), len(table.records))
    return PromptSet(
        name=path.name,
        rows=tuple(rows),
        digest=sha256_of(raw),
        read=len(table.records),
        duplicates=len(rows) - len({row.prompt for row in rows}),
        refused=len(refused),
        refused_rows=tuple(refused),
        refused_digest=_digest(refused.values()),
        empty=tuple(empty),
        columns=columns.roles,
        others=columns.others,
        encoding=table.encoding,
        note=columns.note,
    )


def _no_prompt(path: Path, refused: int, read: int) -> PromptError:
    why = "; one a line is expected" if path.suffix.lower() == ".txt" else ""
    if refused:
        why = f"; {refused} of {read} rows were refused by screening"
    return PromptError(f"{path}: holds no prompt{why}")


def _sorted_rows(
    path: Path, table: PromptTable, columns: ColumnMap
) -> tuple[list[PromptRow], list[int], dict[int, str]]:
    """Return the usable rows, numbers of empty ones, and {number: prompt} of refused ones."""
    labels = [c for c in table.columns if canonical(c) in map(canonical, SEXUAL_LABELS)]
    rows: list[PromptRow] = []
    empty: list[int] = []
    refused: dict[int, str] = {}
    for number, record in table.records:
        if _is_refused(record, columns, labels):
            refused[number] = _plain(record.get(columns.roles["prompt"]))
        elif _text(record.get(columns.roles["prompt"]), table.nothing) == "":
            empty.append(number)
        else:
            rows.append(_row(path, number, record, columns))
    return rows, empty, refused


def _digest(prompts: Collection[str]) -> str:
    """Return the SHA-256 of prompts, each followed by a line feed; "" without any."""
    return (
        sha256_of("".join(f"{p}\n" for p in prompts).encode(errors="surrogatepass"))
        if prompts
        else ""
    )


def _is_refused(record: dict[str, Any], columns: ColumnMap, labels: list[str]) -> bool:
    roles = (columns.roles[role] for role in ("prompt", "category", "id") if role in columns.roles)
    texts = [_plain(record[name]) for name in roles if name in record]
    others = [_plain(record[name]) for name in columns.others if name in record]
    texts += [text for text in others if not LINK.fullmatch(text)]
    sexual = any((_number(record.get(name)) or 0) > 0 for name in labels)
    # Most cells of most tables are numbers.
    return is_refused(*filter(HAS_LETTER.search, texts), sexual=sexual)


def _plain(value: Any) -> str:
    """Return a cell as text: numbers, lists and objects as JSON writes them."""
    if value is None:
        return ""
    return value.strip() if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _text(value: Any, nothing: frozenset[str] = NO_TEXT) -> str:
    """Return a cell as text, "" for an empty one: NaN, null."""
    text = _plain(value)
    return "" if text in nothing else text


def _row(path: Path, number: int, record: dict[str, Any], columns: ColumnMap) -> PromptRow:
    roles = columns.roles
    prompt = record[roles["prompt"]]
    if not isinstance(prompt, str):
        raise PromptError(
            f"{path}: row {number}: {roles['prompt']} is a {type(prompt).__name__}, not a text"
        )
    numbers = {
        role: _checked(path, number, role, roles[role], record.get(roles[role]))
        for role in NUMBERS
        if role in roles
    }
    extra = {name: _text(record.get(name)) for name in columns.others}
    return PromptRow(
        id=_text(record.get(roles.get("id", ""))) or str(number - 1),
        prompt=prompt.strip(),
        categories=_categories(record.get(roles.get("category", ""))),
        extra={n: text for n, text in extra.items() if text and not LINK.fullmatch(text)},
        **numbers,
    )


def _categories(value: Any) -> tuple[str, ...]:
    """Return the labels of a cell, "a, b" or a list, each once."""
    labels = [_text(v) for v in value] if isinstance(value, list) else _text(value).split(",")
    return tuple(dict.fromkeys(label.strip() for label in labels if label.strip()))


def _number(value: Any) -> int | float | None:
    """Return a cell as int or float, whole numbers exact; None if it is not a number."""
    if isinstance(value, str) and NUMBER.fullmatch(value.strip()):
        whole = value.strip().lstrip("+-").isdigit()
        value = int(value) if whole and len(value) < 40 else float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    return value


def _checked(path: Path, number: int, role: str, column: str, value: Any) -> Any:
    """Return the number of a cell, None for an empty one."""
    if _text(value) == "":
        return None
    found = _number(value)
    expected, most = NUMBERS[role]
    whole = role != "guidance"
    least = 1 if role in ("width", "height") else 0
    right = found is not None and math.isfinite(found) and least <= found <= most
    if found is None or not right or (whole and isinstance(found, float)):
        shown = "".join(c if c.isprintable() else "?" for c in _plain(value))[:40]
        raise PromptError(
            f"{path}: row {number}: {column} is {shown!r}; expected {expected}, or nothing"
        )
    return found if whole else float(found)


def _named_rows(numbers: Sequence[int], most: int = 10) -> str:
    shown = ", ".join(map(str, islice(numbers, most)))
    if len(numbers) == 1:
        return f"row {shown} has"
    more = len(numbers) - most
    return f"rows {shown}{f' and {more} more' if more > 0 else ''} have"
