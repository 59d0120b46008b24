"""Parse the text of a prompt file into columns and records: lines, CSV, JSON, JSON lines.

Files come from strangers: the numbers of rows, columns and parts are limited, and nothing is
executed.
"""

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from ine.errors import PromptError

ROW_LIMIT = 250_000
"""Rows of a file; COCO's have 202,654."""

COLUMN_LIMIT = 200
"""Columns of a file; I2P has 16."""

JSON_PARTS = 1_000_000
"""Lists and objects of a JSON file; each takes a few hundred bytes of memory."""

DELIMITERS = ",;\t"
STATED = re.compile(r'"?sep=(?P<sign>[^\w\s"]|\t)"?[ ]*(?:\r?\n|\Z)', re.IGNORECASE)

LISTS = ("annotations", "rows", "data", "prompts")
"""Keys of a JSON object that hold its list; the first is COCO's."""

Record = tuple[int, dict[str, Any]]
Parsed = tuple[list[str], Iterable[Record]]
"""Columns and records."""


def read_lines(path: str | Path, text: str) -> Parsed:
    """Read one prompt a line; empty lines and lines that start with "#" are skipped."""
    lines = (line.strip() for line in text.splitlines() if not line.startswith("#"))
    return ["prompt"], enumerate(({"prompt": line} for line in lines if line), 1)


def stated_delimiter(text: str) -> str | None:
    """Return the delimiter of a first line "sep=;", which Excel reads and writes, or None."""
    found = STATED.match(text)
    return found["sign"] if found else None


def read_csv(path: str | Path, text: str) -> Parsed:
    """Read a header and rows with commas, semicolons or tabs; cells may have line breaks.

    A first line "sep=;" gives the delimiter and is not a row.
    """
    stated = stated_delimiter(text)
    head = text[: text.find("\n") + 1] or text
    if max(map(head.count, DELIMITERS)) > COLUMN_LIMIT:
        raise PromptError(f"{path}: has over {COLUMN_LIMIT} columns in its first line")
    counts = {sign: re.sub('"[^"]*"', "", head).count(sign) for sign in DELIMITERS}
    delimiter = (
        "\t" if Path(path).suffix.lower() == ".tsv" else max(DELIMITERS, key=counts.__getitem__)
    )
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=stated or delimiter, strict=True)
    if stated:
        _next_row(path, reader)
    columns = _next_row(path, reader)
    if columns is None:
        return [], iter(())
    return columns, _csv_rows(path, reader, columns)


def _csv_rows(path: str | Path, reader: Any, columns: list[str]) -> Iterator[Record]:
    number = 0
    while (cells := _next_row(path, reader)) is not None:
        if not any(cells):
            continue  # an empty line
        number += 1
        if len(cells) > len(columns):
            raise PromptError(
                f"{path}: row {number} (line {reader.line_num}) has {len(cells)} cells, the header "
                f"{len(columns)}; put cells with {reader.dialect.delimiter!r} inside in quotes"
            )
        # Of columns with one name the first counts; `map_columns` refuses repeated names.
        yield number, dict(reversed(list(zip(columns, cells, strict=False))))


def _next_row(path: str | Path, reader: Any) -> list[str] | None:
    try:
        return next(reader, None)
    except csv.Error as error:
        raise PromptError(f"{path}: line {reader.line_num} is not CSV ({error})") from error


def read_jsonl(path: str | Path, text: str) -> Parsed:
    """Read one JSON object, or text, a line."""
    _check_parts(path, text)
    values = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            values.append(_parse(path, line, number))
            if len(values) > ROW_LIMIT:
                raise PromptError(f"{path}: has over {ROW_LIMIT:,} rows; cut it into parts")
    return _objects(path, values)


def read_json(path: str | Path, text: str) -> Parsed:
    """Read a list of objects or texts, by itself or under one of the keys `LISTS`."""
    _check_parts(path, text)
    value = _parse(path, text)
    if isinstance(value, dict):
        key = next((k for k in LISTS if isinstance(value.get(k), list)), None)
        value = value[key] if key else None
    if not isinstance(value, list):
        raise PromptError(
            f"{path}: expected a list of objects or of texts, by itself or under {', '.join(LISTS)}"
        )
    return _objects(path, value)


READERS: dict[str, Callable[[str | Path, str], Parsed]] = {
    ".csv": read_csv,
    ".tsv": read_csv,
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".json": read_json,
}


def _check_parts(path: str | Path, text: str) -> None:
    if text.count("[") + text.count("{") > JSON_PARTS:
        raise PromptError(f"{path}: has over {JSON_PARTS:,} lists and objects; cut it into parts")


def _parse(path: str | Path, text: str, line: int | None = None) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        where = f"line {line} is" if line else "is"
        raise PromptError(f"{path}: {where} not JSON ({error})") from error


def _objects(path: str | Path, values: list[Any]) -> Parsed:
    columns: dict[str, None] = {}
    records: list[dict[str, Any]] = []
    for number, value in enumerate(values, 1):
        record = {"prompt": value} if isinstance(value, str) else value
        if not isinstance(record, dict):
            raise PromptError(
                f"{path}: row {number} is a {type(value).__name__}; expected an object or a text"
            )
        columns |= dict.fromkeys(record)
        if len(columns) > COLUMN_LIMIT:
            raise PromptError(f"{path}: has over {COLUMN_LIMIT} different keys")
        records.append(record)
    return list(columns), enumerate(records, 1)


def counted(path: str | Path, records: Iterable[Record]) -> list[Record]:
    """Return the records; too many are refused before screening, which takes time."""
    kept = []
    for number, record in records:
        if number > ROW_LIMIT:
            raise PromptError(f"{path}: has over {ROW_LIMIT:,} rows; cut it into parts")
        kept.append((number, record))
    return kept
