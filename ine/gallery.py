"""A folder of generated pictures: PNGs that carry their settings, an index, a contact sheet."""

import json
from dataclasses import dataclass
from pathlib import Path

from ine.errors import OutputError
from ine.files import write_text
from ine.pictures import contact_sheet, read_picture, write_png
from ine.sampling import PictureRequest, generate

INDEX = "index.jsonl"
SHEET = "sheet.png"
SHEET_PICTURES = 64


@dataclass(frozen=True, kw_only=True)
class GalleryPlan:
    """What a folder is to hold."""

    requests: tuple[PictureRequest, ...]
    settings: dict
    """What besides prompt and seed decides the pixels; embedded in every PNG."""


def file_name(index, seed):
    """Return a name that sorts in prompt order, "00012-seed7.png"."""
    return f"{index:05d}-seed{seed}.png"


def fill_gallery(folder, parts, plan, guidance, sampler, force=False, progress=None):
    """Make the pictures of a plan that the folder does not hold yet; return index rows.

    A folder that was begun with the same settings is gone on with, unit by unit.

    Args:
        folder: Where PNGs, `index.jsonl` and `sheet.png` go.
        parts: The model.
        plan: A `GalleryPlan`.
        guidance: A `Guidance`.
        sampler: `SamplerSettings`.
        force: Replace pictures of other settings.
        progress: Called with (made, wanted).

    Raises:
        OutputError: The folder holds pictures of other settings, or cannot be written.
    """
    folder = Path(folder)
    names = [file_name(i, r.seed) for i, r in enumerate(plan.requests)]
    wanted = json.dumps(plan.settings, sort_keys=True, ensure_ascii=False)
    rows = _rows_there(folder, wanted, force)

    def row_key(i):
        return names[i], plan.requests[i].prompt

    def there(first):
        unit = range(first, min(first + sampler.batch, len(names)))
        return all(row_key(i) in rows and (folder / names[i]).is_file() for i in unit)

    done = sum(row_key(i) in rows for i in range(len(names)))
    for unit in generate(parts, plan.requests, guidance, sampler, skip=there):
        for k, request in enumerate(unit.requests):
            i = unit.first + k
            about = {"prompt": request.prompt, "seed": request.seed, **plan.settings}
            text = json.dumps(about, sort_keys=True, ensure_ascii=False)
            write_png(folder / names[i], unit.pictures[k], {"ine": text})
            rows[row_key(i)] = {
                "file": names[i],
                "prompt": request.prompt,
                "seed": request.seed,
                "unet_calls": unit.unet_calls,
                "settings": plan.settings,
                **unit.notes[k],
            }
        done += len(unit.requests)
        _write_index(folder, rows)
        if progress:
            progress(min(done, len(names)), len(names))
    found = [rows[row_key(i)] for i in range(len(names))]
    _write_index(folder, {row_key(i): found[i] for i in range(len(names))})
    _write_sheet(folder, found, parts.picture_size)
    return found


def _rows_there(folder, wanted, force):
    index = folder / INDEX
    if not index.exists():
        return {}
    try:
        rows = [json.loads(line) for line in index.read_text().splitlines()]
        same = all(
            json.dumps(r["settings"], sort_keys=True, ensure_ascii=False) == wanted for r in rows
        )
    except (ValueError, KeyError, TypeError) as error:
        raise OutputError(f"{index}: is not an index of ine; choose another --out") from error
    if not same:
        if force:
            return {}
        raise OutputError(
            f"{folder}: holds pictures made with other settings; choose another --out, or give "
            "--force to replace them"
        )
    return {(r["file"], r["prompt"]): r for r in rows}


def _write_index(folder, rows):
    ordered = sorted(rows.values(), key=lambda r: r["file"])
    lines = [json.dumps(r, sort_keys=True, ensure_ascii=False) for r in ordered]
    write_text(folder / INDEX, "\n".join(lines) + "\n")


def _write_sheet(folder, rows, size):
    shown = rows[:SHEET_PICTURES]
    pictures = [read_picture(folder / r["file"], size) for r in shown]
    columns = min(8, len(pictures))
    grid = [pictures[i : i + columns] for i in range(0, len(pictures), columns)]
    grid[-1] += [None] * (columns - len(grid[-1]))
    write_png(folder / SHEET, contact_sheet(grid, scale=2 if size <= 128 else 1))
