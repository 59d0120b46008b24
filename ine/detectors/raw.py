"""Raw detector output in a file: detectors run once, and any rule scores their output later.

JSON lines. The first names the detectors and their settings; every other one is a picture: its
name, digest and size, a short digest of its prompt where that is known, and what each detector
found (`ine.detectors.base.to_json`; scores rounded to 6 decimals).
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ine import __version__
from ine.detectors.base import DIGITS, Detection, from_json, to_json
from ine.errors import PicturesError
from ine.files import write_text

FORMAT = "ine-raw-1"

FILE_LIMIT = 2_000_000_000
"""Bytes of a file; a picture takes a few hundred."""

Settings = dict[str, Any]
"""What decides a detector's raw output, plain values."""

Parsed = TypeVar("Parsed")


@dataclass(frozen=True, kw_only=True)
class PictureDetections:
    """What detectors found in one picture."""

    picture: str
    """Its path as the caller gave it."""

    sha256: str
    """Of the file."""

    size: tuple[int, int]
    """Width and height in pixels."""

    found: dict[str, tuple[Detection, ...]]
    """{detector name: detections}."""

    prompt: str = ""
    """A digest of its prompt, by which intervals group; "" if unknown."""

    blank: bool = False
    """Whether the whole picture is one colour, as failed pictures are."""


@dataclass(frozen=True, kw_only=True)
class RawOutput:
    """What detectors found in many pictures."""

    detectors: dict[str, Settings]
    """{name: settings}."""

    pictures: tuple[PictureDetections, ...]


def write_raw(path: Path, raw: RawOutput) -> None:
    """Write a `RawOutput`, atomically."""
    write_text(path, _compact(head_row(raw.detectors)) + "".join(map(line_of, raw.pictures)))


def head_row(detectors: Mapping[str, Settings]) -> dict[str, Any]:
    """Return the first line's value."""
    return {"format": FORMAT, "ine": __version__, "digits": DIGITS, "detectors": detectors}


def line_of(one: PictureDetections) -> str:
    """Return the line of a picture."""
    return _compact(
        {
            "picture": one.picture,
            "sha256": one.sha256,
            "size": list(one.size),
            **({"prompt": one.prompt} if one.prompt else {}),
            **({"blank": True} if one.blank else {}),
            "found": {name: to_json(rows) for name, rows in one.found.items()},
        }
    )


def _compact(row: Mapping[str, Any]) -> str:
    # Without spaces: a file may have many thousand lines.
    return json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n"


def read_raw(path: Path) -> RawOutput:
    """Return the `RawOutput` of a file; no picture is opened.

    Raises:
        PicturesError: The file is missing or has another format; the line is named.
    """
    path = Path(path)
    try:
        if path.stat().st_size > FILE_LIMIT:
            raise PicturesError(f"{path}: is larger than any such file; was it made by ine?")
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise PicturesError(f"{path}: cannot be read ({reason})") from error
    return parse_lines(path, lines)


def parse_lines(path: Path, lines: list[str]) -> RawOutput:
    """Return the `RawOutput` of a file's lines.

    Raises:
        PicturesError: One of them has another format; it is named.
    """
    head = parsed(path, 1, lines[0], read_head)
    rows = enumerate(lines[1:], start=2)
    found = [parsed(path, n, line, lambda row: _picture(row, set(head))) for n, line in rows]
    return RawOutput(detectors=head, pictures=tuple(found))


def parsed(path: Path, number: int, line: str, read: Callable[[Any], Parsed]) -> Parsed:
    """Return what `read` makes of a line's JSON value; `PicturesError` names the line."""
    try:
        return read(json.loads(line))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise PicturesError(
            f"{path}, line {number}: is not raw detector output as `ine judge run --out` writes it "
            f"({error})"
        ) from error


def read_head(row: Any) -> dict[str, Settings]:
    """Return {detector: settings} of the first line's value."""
    if row.get("format") != FORMAT or not isinstance(row.get("detectors"), dict):
        raise ValueError(f"expected a first line with format {FORMAT!r}")
    return row["detectors"]


def _picture(row: Any, names: set[str]) -> PictureDetections:
    if set(row["found"]) != names:
        raise ValueError(f"has output of {sorted(row['found'])}, the file says {sorted(names)}")
    width, height = row["size"]
    texts = (row["picture"], row["sha256"], row.get("prompt", ""))
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("picture, sha256 and prompt are texts")
    return PictureDetections(
        picture=texts[0],
        sha256=texts[1],
        size=(int(width), int(height)),
        found={name: from_json(rows) for name, rows in row["found"].items()},
        prompt=texts[2],
        blank=row.get("blank") is True,
    )
