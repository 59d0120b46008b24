"""Read a prompt file into columns and records, by its extension, whatever the columns mean.

Files come from strangers: sizes are limited before anything is parsed, and nothing is executed.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from ine.errors import PromptError
from ine.files import is_lfs_pointer, is_web_page
from ine.prompts.formats import COLUMN_LIMIT, READERS, Record, counted, read_lines

FILE_LIMIT = 40_000_000
"""Bytes of a file. The largest file in use, COCO's captions of 2014 (val), has 32 million."""

NOT_TEXT = {".parquet", ".xlsx", ".xls", ".zip", ".gz", ".arrow", ".pkl", ".pt", ".npy"}
NO_TEXT = frozenset({"", "nan", "NaN", "null", "NULL", "None", "<NA>"})
"""How tools write an empty cell; I2P's prompt "NuLL" is not one of these."""


@dataclass(frozen=True, kw_only=True)
class PromptTable:
    """The content of a file."""

    columns: tuple[str, ...]
    records: list[Record]
    """(row number from 1, {column: value}); a value is a text, or any value of JSON."""

    encoding: str
    nothing: frozenset[str] = NO_TEXT
    """Texts of an empty cell."""


def read_bytes(path: str | Path) -> bytes:
    """Return the bytes of a prompt file.

    Raises:
        PromptError: It cannot be read, is too large, or is not text.
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
        raise PromptError(f"{path}: is a git-lfs pointer, not the file; run `git lfs pull`")
    if path.suffix.lower() != ".txt" and is_web_page(raw[:1000]):
        raise PromptError(f"{path}: is a web page, as after a failed download; download again")
    return raw


def decode(path: str | Path, raw: bytes) -> tuple[str, str]:
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
        raise PromptError(
            f"{path}: byte {where:,} is 00, which text does not contain; is it a text file?"
        )
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


def read_table(path: str | Path, raw: bytes) -> PromptTable:
    """Return the `PromptTable` of a file's bytes: .csv, .tsv, .jsonl, .json; anything else is text.

    Raises:
        PromptError: Its content does not match its extension, or is too large.
    """
    text, encoding = decode(path, raw)
    read = READERS.get(Path(path).suffix.lower(), read_lines)
    nothing = frozenset({""}) if read is read_lines else NO_TEXT
    columns, records = read(path, text)
    if len(columns) > COLUMN_LIMIT:
        raise PromptError(f"{path}: has {len(columns)} columns; {COLUMN_LIMIT} are the most read")
    return PromptTable(
        columns=tuple(columns),
        records=counted(path, records),
        encoding=encoding,
        nothing=nothing,
    )
