"""What a folder of pictures holds: its index, and files that a plan's pictures would replace."""

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ine.errors import OutputError, PicturesError
from ine.files import append_text, whole_lines, write_text
from ine.pictures import is_blank, read_png_text, read_whole
from ine.sampling import PictureRequest

log = logging.getLogger("ine")

INDEX = "index.jsonl"
SHEET = "sheet.png"
BLANK = "blank"
"""Key of an index row: whether the picture is wholly one colour."""

Row = dict[str, Any]
"""One picture's entry in the index."""


@dataclass(frozen=True, kw_only=True)
class GalleryPlan:
    """The pictures that a folder shall hold."""

    requests: tuple[PictureRequest, ...]
    settings: dict[str, Any]
    """Everything but prompt and seed that decides the pixels; embedded in every PNG."""

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The file of each request."""
        return tuple(file_name(i, r.seed) for i, r in enumerate(self.requests))

    def text_inside(self, request: PictureRequest) -> str:
        """Return a request with its settings as it is written into a PNG."""
        about = {"prompt": request.prompt, "seed": request.seed, **self.settings}
        return json.dumps(about, sort_keys=True, ensure_ascii=False)


def file_name(index: int, seed: int) -> str:
    """Return a name that sorts in prompt order, "00012-seed7.png"."""
    return f"{index:05d}-seed{seed}.png"


def rows_of(folder: Path, plan: GalleryPlan, force: bool) -> dict[str, Row]:
    """Return {file name: index row} of the pictures that exist and belong to a plan.

    With `force`, all others are removed here, so that an interrupted run leaves none that could be
    taken for a picture of this plan.

    Raises:
        OutputError: Without `force`, where there are others.
    """
    rows, what = _read_index(folder, plan)
    strange = _strangers(folder, plan)
    if not force and what:
        raise OutputError(
            f"{folder}: holds pictures made with other {what}; choose another --out, or give "
            "--force to replace them"
        )
    if not force and strange:
        more = f" and {len(strange) - 3} more" if len(strange) > 3 else ""
        raise OutputError(
            f"{folder}: holds {', '.join(strange[:3])}{more}, not made by this command, under "
            "the names of its pictures; choose another --out, or give --force to replace them"
        )
    # The index goes first: the old rows would be wrong about files that are replaced one by one.
    for name in [*([INDEX, SHEET] if what else []), *strange]:
        _remove(folder / name)
    return {} if what else {n: row for n, row in rows.items() if n not in strange}


def _read_index(folder: Path, plan: GalleryPlan) -> tuple[dict[str, Row], str | None]:
    """Return the rows of an index, and which of "settings" and "prompts" differ, or None."""
    index = folder / INDEX
    if not index.exists():
        return {}, None
    try:
        lines, torn = whole_lines(index.read_bytes())
        rows = {r["file"]: r for r in map(json.loads, lines)}
        settings = [r["settings"] for r in rows.values()]
        prompts = {name: r["prompt"] for name, r in rows.items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OutputError(f"{index}: is not an index of ine; choose another --out") from error
    if torn:
        log.warning("%s: its last line is cut off; what it names is made again", index)
    if any(s != json.loads(json.dumps(plan.settings)) for s in settings):
        return rows, "settings"
    wanted = zip(plan.names, plan.requests, strict=True)
    if any(prompts.get(name, r.prompt) != r.prompt for name, r in wanted):
        return rows, "prompts"
    return rows, None


def _strangers(folder: Path, plan: GalleryPlan) -> list[str]:
    """Return the names of files that a run of this plan did not make, but would replace."""
    wanted = zip(plan.names, plan.requests, strict=True)
    found = [
        name
        for name, request in wanted
        if (folder / name).exists() and not _is_made(folder / name, plan.text_inside(request))
    ]
    # The sheet is drawn after the index is complete, so one without an index is somebody else's.
    if (folder / SHEET).exists() and not (folder / INDEX).exists():
        found.append(SHEET)
    return found


def _is_made(path: Path, text: str) -> bool:
    try:
        return read_png_text(path).get("ine") == text
    except PicturesError:
        return False


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be replaced ({error.strerror}); choose another --out"
        ) from error


def is_finished(folder: Path, rows: Mapping[str, Row], name: str) -> bool:
    """Return whether a picture needs not be made.

    A blank one does if it was made by a version that did not check for NaN.
    """
    if name not in rows or not (folder / name).is_file():
        return False
    return BLANK in rows[name] or not is_blank(read_whole(folder / name)[None])[0]


def write_rows(folder: Path, rows: Iterable[Row], more: bool) -> None:
    """Write an index, or add to it if there is `more`."""
    (append_text if more else write_text)(folder / INDEX, _text(rows))


def order_index(folder: Path, rows: Mapping[str, Row]) -> None:
    """Write the index in the order of its files, each once, unless it is so already."""
    index, text = folder / INDEX, _text(sorted(rows.values(), key=lambda r: r["file"]))
    if index.read_bytes() != text.encode():
        write_text(index, text)


def _text(rows: Iterable[Row]) -> str:
    return "".join(json.dumps(r, sort_keys=True, ensure_ascii=False) + "\n" for r in rows)
