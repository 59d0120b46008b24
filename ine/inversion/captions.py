"""Captions of a user's folder of pictures: a text beside each picture, or one table."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ine.errors import PicturesError
from ine.files import JSON_LIMIT, parse_json, read_within
from ine.prompts.formats import stated_delimiter

TABLES = ("captions.csv", "metadata.csv", "metadata.jsonl")
"""Captions of a whole folder; the last two are those of the datasets library's ImageFolder."""

BESIDE = (".txt", ".caption")
"""Endings of a caption beside its picture, as kohya's scripts and others write it."""

CAPTION_COLUMNS = ("text", "caption", "prompt")
"""In order of preference."""


def read_captions(paths: Sequence[Path]) -> tuple[str, ...] | None:
    """Return one caption per picture of a folder, or None without any captions.

    Args:
        paths: Pictures of one folder, at least one.

    Raises:
        PicturesError: Captions are broken, come from two places, or are missing for some.
    """
    folder = paths[0].parent
    sources = {name: _read_table(folder / name) for name in TABLES if (folder / name).is_file()}
    for ending in BESIDE:
        beside = {path.name: path.with_suffix(ending) for path in paths}
        texts = {name: _read_text(text) for name, text in beside.items() if text.is_file()}
        if texts:
            sources[f"the {ending} files"] = texts
    if not sources:
        return None
    if len(sources) > 1:
        raise PicturesError(
            f"{folder}: captions come from {' and '.join(sources)}; keep one of them"
        )
    source, found = sources.popitem()
    missing = [path.name for path in paths if not " ".join(found.get(path.name, "").split())]
    if missing:
        raise PicturesError(
            f"{folder}: {source} caption some pictures only; missing or empty for "
            f"{', '.join(missing)}; give all pictures a caption, or none"
        )
    return tuple(" ".join(found[path.name].split()) for path in paths)


def _read_text(path: Path) -> str:
    try:
        return read_within(path, JSON_LIMIT).removeprefix("\ufeff")
    except (OSError, ValueError) as error:
        raise PicturesError(f"{path}: cannot be read as UTF-8 text ({error})") from error


def _read_table(path: Path) -> dict[str, str]:
    """Return file name -> caption of a CSV or JSON-lines table."""
    text = _read_text(path)
    try:
        if path.suffix == ".csv":
            rows = _csv_rows(text)
        else:
            rows = [parse_json(line) for line in text.split("\n") if line.strip()]
    except (csv.Error, ValueError, RecursionError) as error:
        raise PicturesError(f"{path}: cannot be read as {path.suffix[1:]} ({error})") from error
    captions: dict[str, str] = {}
    for number, row in enumerate(rows, 1):
        cells = row if isinstance(row, dict) else {}
        column = next((name for name in CAPTION_COLUMNS if name in cells), "text")
        name, caption = cells.get("file_name"), cells.get(column)
        if not isinstance(name, str) or not isinstance(caption, str):
            raise PicturesError(
                f"{path}: entry {number} has no text for 'file_name' and 'text': {str(row)[:200]}; "
                f"captions are looked for as {', '.join(CAPTION_COLUMNS)}; if it holds none, move "
                "it out of the folder"
            )
        if name in captions:
            raise PicturesError(f"{path}: {name} is named twice; keep one of them")
        captions[name] = caption
    return captions


def _csv_rows(text: str) -> list[dict[Any, Any]]:
    """Return the rows of a CSV table, parted by commas or by what a first line "sep=;" states."""
    stated = stated_delimiter(text)
    lines = io.StringIO(text, newline="")
    if stated:
        lines.readline()
    return [dict(row) for row in csv.DictReader(lines, delimiter=stated or ",")]
