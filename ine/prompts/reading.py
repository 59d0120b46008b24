"""One reader for all prompt files: columns mapped, rows screened, counted and checked."""

import json
import math
import re
from itertools import islice
from pathlib import Path

from ine.errors import PromptError
from ine.files import sha256_of
from ine.prompts.columns import SEXUAL_LABELS, canonical, map_columns
from ine.prompts.rows import PromptRow, PromptSet, choose_rows
from ine.prompts.screening import is_refused
from ine.prompts.tables import NO_TEXT, read_bytes, read_table

LINK = re.compile(r"\s*https?://\S+\s*")
"""A cell that is nothing else is not kept."""

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
"""Role -> (what is expected, the largest)."""


def read_prompt_set(
    path, *, column=None, skip_empty=False, category=None, where=(), unique=False, limit=None
):
    """Return the `PromptSet` of a file; rows are always screened.

    Args:
        path: A .csv, .tsv, .jsonl or .json file; anything else is text, one prompt a line.
        column: The column of the prompt, instead of the rule of `ine.prompts.columns`.
        skip_empty: Leave rows without a prompt out, counted, instead of refusing the file.
        category: See `ine.prompts.rows.choose_rows`, also for what follows.
        where: Conditions such as "nudity_percentage>50".
        unique: Keep only the first row of each prompt.
        limit: Most rows to keep.

    Raises:
        PromptError: The file cannot be read, has no prompt column or no prompt, or a row is wrong.
    """
    path = Path(path)
    raw = read_bytes(path)
    table = read_table(path, raw)
    if not table.columns:
        raise PromptError(f"{path}: holds no prompt; it is empty")
    columns = map_columns(path, table.columns, column)
    labels = [c for c in table.columns if canonical(c) in map(canonical, SEXUAL_LABELS)]
    rows, empty, refused, number = [], [], 0, 0
    for number, record in table.records:
        if _is_refused(record, columns, labels):
            refused += 1
        elif _text(record.get(columns.roles["prompt"]), table.nothing) == "":
            empty.append(number)
        else:
            rows.append(_row(path, number, record, columns))
    if empty and not skip_empty:
        raise PromptError(
            f"{path}: {_named_rows(empty)} no prompt; fill it in or delete the row, or leave such "
            "rows out with skip_empty"
        )
    if not rows:
        why = f"; {refused} of {number} rows were refused by screening" if refused else ""
        one_a_line = "; one a line is expected" if path.suffix.lower() == ".txt" else ""
        raise PromptError(f"{path}: holds no prompt{why or one_a_line}")
    found = PromptSet(
        name=path.name,
        rows=tuple(rows),
        digest=sha256_of(raw),
        read=number,
        duplicates=len(rows) - len({row.prompt for row in rows}),
        refused=refused,
        empty=tuple(empty),
        columns=columns.roles,
        others=columns.others,
        encoding=table.encoding,
        note=columns.note,
    )
    return choose_rows(found, category=category, where=where, unique=unique, limit=limit)


def _is_refused(record, columns, labels):
    roles = (columns.roles[role] for role in ("prompt", "category", "id") if role in columns.roles)
    texts = [_plain(record[name]) for name in roles if name in record]
    others = [_plain(record[name]) for name in columns.others if name in record]
    texts += [text for text in others if not LINK.fullmatch(text)]
    sexual = any((_number(record.get(name)) or 0) > 0 for name in labels)
    # Most cells of most tables are numbers.
    return is_refused(*filter(HAS_LETTER.search, texts), sexual=sexual)


def _plain(value):
    """Return a cell as text: JSON's numbers, lists and objects as JSON writes them."""
    if value is None:
        return ""
    return value.strip() if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _text(value, nothing=NO_TEXT):
    """Return a cell as text, "" where it is none: empty, NaN, null."""
    text = _plain(value)
    return "" if text in nothing else text


def _row(path, number, record, columns):
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
        id=_text(record.get(roles.get("id"))) or str(number - 1),
        prompt=prompt.strip(),
        categories=_categories(record.get(roles.get("category"))),
        extra={n: text for n, text in extra.items() if text and not LINK.fullmatch(text)},
        **numbers,
    )


def _categories(value):
    """Return labels of a cell, "a, b" or a list, each once."""
    labels = [_text(v) for v in value] if isinstance(value, list) else _text(value).split(",")
    return tuple(dict.fromkeys(label.strip() for label in labels if label.strip()))


def _number(value):
    """Return a cell as int or float, whole numbers exact; None where it is no number."""
    if isinstance(value, str) and NUMBER.fullmatch(value.strip()):
        whole = value.strip().lstrip("+-").isdigit()
        value = int(value) if whole and len(value) < 40 else float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    return value


def _checked(path, number, role, column, value):
    """Return the number of a cell, None for an empty one."""
    if _text(value) == "":
        return None
    found = _number(value)
    expected, most = NUMBERS[role]
    whole = role != "guidance"
    least = 1 if role in ("width", "height") else 0
    right = found is not None and math.isfinite(found) and least <= found <= most
    if not right or (whole and isinstance(found, float)):
        shown = "".join(c if c.isprintable() else "?" for c in _plain(value))[:40]
        raise PromptError(
            f"{path}: row {number}: {column} is {shown!r}; expected {expected}, or nothing"
        )
    return found if whole else float(found)


def _named_rows(numbers, most=10):
    shown = ", ".join(map(str, islice(numbers, most)))
    if len(numbers) == 1:
        return f"row {shown} has"
    more = len(numbers) - most
    return f"rows {shown}{f' and {more} more' if more > 0 else ''} have"
