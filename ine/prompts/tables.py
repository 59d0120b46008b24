"""From a prompt file to columns and records, by its extension. Nothing here knows what they mean.

Files come from strangers: sizes are limited before anything is parsed, and nothing is executed.
"""

import csv
import io
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ine.errors import PromptError
from ine.files import is_lfs_pointer, is_web_page

FILE_LIMIT = 40_000_000
"""Bytes of a file. COCO's captions of 2014 (val), the largest file in use, have 32 million."""

ROW_LIMIT = 250_000
"""Rows of a file; COCO's have 202,654."""

COLUMN_LIMIT = 200
"""Columns of a file; I2P has 16."""

JSON_PARTS = 1_000_000
"""Lists and objects of a JSON file; each takes some hundred bytes of memory."""

DELIMITERS = ",;\t"
NOT_TEXT = {".parquet", ".xlsx", ".xls", ".zip", ".gz", ".arrow", ".pkl", ".pt", ".npy"}
NO_TEXT = frozenset({"", "nan", "NaN", "null", "NULL", "None", "<NA>"})
"""How tools write that a cell is empty; I2P has a prompt "NuLL", which is none of these."""

LISTS = ("annotations", "rows", "data", "prompts")
"""Keys under which a JSON object has its list; the first is COCO's."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """What a file holds."""

    columns: tuple[str, ...]
    records: Iterable
    """(row number from 1, {column: value}), where a value is a text, or what JSON has."""

    encoding: str
    nothing: frozenset = NO_TEXT
    """How an empty cell is written."""


def read_bytes(path):
    """Return the bytes of a prompt file.

    Raises:
        PromptError: It cannot be read, is too large, or is no text.
    """
    path = Path(path)
    if path.suffix.lower() in NOT_TEXT:
        raise PromptError(
            f"{path}: {path.suffix} files are not read; save it as csv, jsonl, json or txt"
        )
    try:
        with path.open("rb") as file:
            raw = file.read(FILE_LIMIT + 1)
    except OSError as error:
        raise PromptError(f"{path}: cannot be read ({error.strerror or error})") from error
    if len(raw) > FILE_LIMIT:
        raise PromptError(
            f"{path}: has over {FILE_LIMIT:,} bytes, which no prompt set needs; cut it into parts"
        )
    if is_lfs_pointer(raw):
        raise PromptError(f"{path}: stands for a file that git-lfs has; run `git lfs pull`")
    if path.suffix.lower() != ".txt" and is_web_page(raw[:1000]):
        raise PromptError(f"{path}: is a web page, what a failed download leaves; download again")
    return raw


def decode(path, raw):
    """Return (text, encoding): UTF-8 with or without its mark, else cp949 (Korean).

    Most texts in Western encodings are cp949 too, as rare syllables; what has more of these than
    of common ones is refused.

    Raises:
        PromptError: Neither fits; the first byte that is not UTF-8 is named.
    """
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise PromptError(f"{path}: is UTF-16 (bytes {raw[:2].hex(' ')} first); save it as UTF-8")
    if b"\0" in raw:
        where = raw.index(b"\0")
        raise PromptError(f"{path}: byte {where:,} is 00, which no text has; is it a text file?")
    try:
        return raw.decode("utf-8-sig"), "utf-8"
    except UnicodeDecodeError as error:
        start, utf8 = error.start, error
    try:
        text = raw.decode("cp949")
    except UnicodeDecodeError:
        text = ""
    pairs = re.findall(rb"[\x81-\xfe](?:[\x41-\x5a\x61-\x7a\x81-\xfe])", raw)
    rare = sum(pair[0] < 0xA1 or pair[1] < 0xA1 for pair in pairs)
    if text and 2 * rare < len(pairs):
        return text, "cp949"
    line = raw.count(b"\n", 0, start) + 1
    raise PromptError(
        f"{path}: byte {start:,} (line {line}) is {raw[start]:02x}, which is neither UTF-8 nor "
        "cp949; save the file as UTF-8"
    ) from utf8


def read_table(path, raw):
    """Return the `Table` of a file's bytes: .csv, .tsv, .jsonl, .json; anything else is text.

    Raises:
        PromptError: It is not what its extension says, or too large.
    """
    text, encoding = decode(path, raw)
    read = READERS.get(Path(path).suffix.lower(), read_lines)
    nothing = frozenset({""}) if read is read_lines else NO_TEXT
    columns, records = read(path, text)
    if len(columns) > COLUMN_LIMIT:
        raise PromptError(f"{path}: has {len(columns)} columns; {COLUMN_LIMIT} are the most read")
    return Table(
        columns=tuple(columns),
        records=_counted(path, records),
        encoding=encoding,
        nothing=nothing,
    )


def _counted(path, records):
    """Return the records, before any of them is looked at more closely: screening takes time."""
    kept = []
    for number, record in records:
        if number > ROW_LIMIT:
            raise PromptError(f"{path}: has over {ROW_LIMIT:,} rows; cut it into parts")
        kept.append((number, record))
    return kept


def read_lines(path, text):
    """Read one prompt a line; empty lines and those that begin with "#" are none."""
    lines = (line.strip() for line in text.splitlines() if not line.startswith("#"))
    return ["prompt"], enumerate(({"prompt": line} for line in lines if line), 1)


def read_csv(path, text):
    """Read a header and rows, parted by comma, semicolon or tab; cells may have line breaks."""
    head = text[: text.find("\n") + 1] or text
    if max(map(head.count, DELIMITERS)) > COLUMN_LIMIT:
        raise PromptError(f"{path}: has over {COLUMN_LIMIT} columns in its first line")
    counts = {sign: re.sub('"[^"]*"', "", head).count(sign) for sign in DELIMITERS}
    delimiter = "\t" if Path(path).suffix.lower() == ".tsv" else max(DELIMITERS, key=counts.get)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    columns = _next_row(path, reader)
    if columns is None:
        return [], iter(())
    return columns, _csv_rows(path, reader, columns)


def _csv_rows(path, reader, columns):
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
        # Of columns of one name the first; `map_columns` refuses those that would matter.
        yield number, dict(reversed(list(zip(columns, cells, strict=False))))


def _next_row(path, reader):
    try:
        return next(reader, None)
    except csv.Error as error:
        raise PromptError(f"{path}: line {reader.line_num} is no CSV ({error})") from error


def read_jsonl(path, text):
    """Read one JSON object, or text, a line."""
    _check_parts(path, text)
    values = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            values.append(_parse(path, line, number))
            if len(values) > ROW_LIMIT:
                raise PromptError(f"{path}: has over {ROW_LIMIT:,} rows; cut it into parts")
    return _objects(path, values)


def read_json(path, text):
    """Read a list of objects or of texts, also under one of the keys `LISTS`."""
    _check_parts(path, text)
    value = _parse(path, text)
    if isinstance(value, dict):
        key = next((k for k in LISTS if isinstance(value.get(k), list)), None)
        value = value.get(key)
    if not isinstance(value, list):
        raise PromptError(
            f"{path}: expected a list of objects or of texts, by itself or under {', '.join(LISTS)}"
        )
    return _objects(path, value)


READERS = {
    ".csv": read_csv,
    ".tsv": read_csv,
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".json": read_json,
}


def _check_parts(path, text):
    if text.count("[") + text.count("{") > JSON_PARTS:
        raise PromptError(f"{path}: has over {JSON_PARTS:,} lists and objects; cut it into parts")


def _parse(path, text, line=None):
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        where = f"line {line} is" if line else "is"
        raise PromptError(f"{path}: {where} no JSON ({error})") from error


def _objects(path, values):
    columns, records = {}, []
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
