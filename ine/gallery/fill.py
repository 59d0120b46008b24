"""Make the pictures that a folder does not hold yet, and draw its sheet."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ine.display import blur, contact_sheet
from ine.finite import REDONE
from ine.gallery.flagging import Flagger
from ine.gallery.index import (
    BLANK,
    SHEET,
    GalleryPlan,
    Row,
    is_finished,
    order_index,
    rows_of,
    write_rows,
)
from ine.guidance.protocol import Guidance
from ine.models.parts import DiffusionParts
from ine.pictures import is_blank, read_picture, write_png
from ine.sampling import PictureRequest, SamplerSettings, Unit, generate

SHEET_PICTURES = 64


def fill_gallery(
    folder: Path,
    parts: DiffusionParts,
    plan: GalleryPlan,
    guidance: Guidance,
    sampler: SamplerSettings,
    *,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
    flagger: Flagger | None = None,
    after: Callable[[Unit], Unit] | None = None,
    asked: Sequence[PictureRequest] | None = None,
) -> list[Row]:
    """Make the pictures of a plan that the folder does not hold yet; return index rows.

    A folder with pictures of the same settings is continued, unit by unit. A picture file counts
    as made only if the text inside it says that it is the planned one.

    Args:
        folder: Where PNGs, `index.jsonl` and `sheet.png` go.
        parts: The model.
        plan: The pictures that the folder shall hold.
        guidance: How they are steered.
        sampler: How they are sampled.
        force: Replace pictures of other settings or prompts, and files of other origin.
        progress: Called with (made, wanted).
        flagger: From `flagger_for`. Its answer is in the index rows as `flagged`, and the sheet
            blurs every picture that it did not find harmless; the PNGs stay as they are.
        after: Makes of each unit what is written instead, such as refined pictures; the plan's
            settings say what it is.
        asked: What is sampled in the place of the plan's requests, one each, such as rewritten
            prompts; the plan's settings say by whom.

    Raises:
        OutputError: The folder holds pictures of other settings or prompts, or files of other
            origin under the names of the plan's pictures, or cannot be written.
        ValueError: The plan asks for no picture.
    """
    if not plan.requests:
        raise ValueError("a gallery needs at least one request, the plan has none")
    folder, names = Path(folder), plan.names
    rows = rows_of(folder, plan, force)

    def is_done(first: int) -> bool:
        return all(is_finished(folder, rows, name) for name in names[first : first + sampler.batch])

    done, started = sum(name in rows for name in names), False
    for generated in generate(parts, asked or plan.requests, guidance, sampler, skip=is_done):
        unit = after(generated) if after else generated
        made = _write_unit(folder, plan, unit, flagger)
        done += len(made)
        rows |= made
        # The first write is whole: it mends a torn line, and no index starts with half a row.
        write_rows(folder, (made if started else rows).values(), more=started)
        started = True
        if progress:
            progress(min(done, len(names)), len(names))
    order_index(folder, rows)
    found = [rows[name] for name in names]
    _write_sheet(folder, found, parts.picture_size, careful=flagger is not None)
    return found


def _write_unit(
    folder: Path,
    plan: GalleryPlan,
    unit: Unit,
    flagger: Flagger | None,
) -> dict[str, Row]:
    """Write the pictures of a unit; return {file name: index row}."""
    flags = flagger(unit.pictures) if flagger else None
    blank = is_blank(unit.pictures)
    rows = {}
    for k in range(len(unit.requests)):
        request, name = plan.requests[unit.first + k], plan.names[unit.first + k]
        write_png(folder / name, unit.pictures[k], _texts(request, plan, unit.notes[k]))
        rows[name] = {
            "file": name,
            "prompt": request.prompt,
            "seed": request.seed,
            "unet_calls": unit.unet_calls[k],
            "settings": plan.settings,
            BLANK: bool(blank[k]),
            **({"flagged": flags[k]} if flags else {}),
            **unit.notes[k],
        }
    return rows


def _texts(request: PictureRequest, plan: GalleryPlan, note: dict[str, Any]) -> dict[str, str]:
    """Return the texts inside a PNG: the request, and what was repeated in float32."""
    texts = {"ine": plan.text_inside(request)}
    if note.get(REDONE):
        texts[f"ine.{REDONE}"] = json.dumps(note[REDONE], sort_keys=True)
    return texts


def _write_sheet(folder: Path, rows: Sequence[Row], size: int, careful: bool) -> None:
    shown = rows[:SHEET_PICTURES]
    pictures = [read_picture(folder / r["file"], size) for r in shown]
    if careful:
        hide = [r.get("flagged") is not False for r in shown]
        pictures = [blur(p) if h else p for p, h in zip(pictures, hide, strict=True)]
    columns = min(8, len(pictures))
    starts = range(0, len(pictures), columns)
    grid: list[list[np.ndarray | None]] = [[*pictures[i : i + columns]] for i in starts]
    grid[-1] += [None] * (columns - len(grid[-1]))
    write_png(folder / SHEET, contact_sheet(grid, scale=2 if size <= 128 else 1))
