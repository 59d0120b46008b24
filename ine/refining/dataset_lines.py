"""Training sets as JSON lines with picture files."""

import json
from collections.abc import Sequence
from pathlib import Path

from ine.errors import PromptError
from ine.files import parse_json, sha256_of, write_bytes, write_text
from ine.refining.dataset import Row, RowData, image_bytes, row_data

ROWS = "rows.jsonl"
PICTURES = "pictures"
LIMIT = 200_000_000
"""Bytes of a file of lines; ToxiClean-IT's texts have one million."""

ENDINGS = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"RIFF": ".webp", b"GIF8": ".gif"}
"""First bytes of a picture file -> its extension."""


def read_lines(path: Path) -> list[RowData]:
    """Return the rows of a file as plain values.

    Raises:
        PromptError: It cannot be read, or a line is no JSON object.
    """
    try:
        if path.stat().st_size > LIMIT:
            raise PromptError(f"{path}: has over {LIMIT:,} bytes; cut it into parts")
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise PromptError(f"{path}: cannot be read ({error.strerror or error})") from error
    return [_line(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]


def _line(path: Path, number: int, line: bytes) -> RowData:
    try:
        found = parse_json(line)
    except (ValueError, RecursionError) as error:
        raise PromptError(f"{path}: line {number} is no JSON ({error})") from error
    if not isinstance(found, dict):
        raise PromptError(f"{path}: line {number} is no JSON object; expected one row a line")
    return found


def write_folder(folder: Path, rows: Sequence[Row]) -> Path:
    """Write rows and their pictures; return the file of rows, which is written last.

    Equal pictures are one file, whose name is its content's, so that nothing is written twice.

    Raises:
        OutputError: The folder cannot be written.
        PromptError: A picture cannot be read.
    """
    lines = []
    for row in rows:
        data = image_bytes(row)
        ending = next((end for start, end in ENDINGS.items() if data.startswith(start)), ".png")
        name = f"{PICTURES}/{sha256_of(data)[:20]}{ending}"
        if not (folder / name).is_file():
            write_bytes(folder / name, data)
        lines.append(json.dumps({"image": name, **row_data(row)}, ensure_ascii=False))
    write_text(folder / ROWS, "".join(f"{line}\n" for line in lines))
    return folder / ROWS
