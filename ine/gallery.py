"""A folder of generated pictures: PNGs that carry their settings, an index, a contact sheet."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path

from ine.errors import OutputError
from ine.files import write_text
from ine.judging.detectors import load_detector
from ine.judging.rules import find_rule
from ine.pictures import blur, contact_sheet, read_picture, write_png
from ine.recipe import list_recipes, load_recipe
from ine.sampling import PictureRequest, generate

log = logging.getLogger("ine")

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


def flagger_for(concepts):
    """Return what finds pictures that are not to be shown, for the names of concepts.

    Shipped recipes about people (`people: true`) bring their rule. Where a detector cannot be
    loaded, nothing is known about any picture.

    Returns:
        None where no concept is about people; else a function from pictures (B, H, W, 3) uint8
        to one of True, False and None (not known) for each.
    """
    shipped = list_recipes()
    recipes = [load_recipe(shipped[c]) for c in dict.fromkeys(concepts) if c in shipped]
    rules = [find_rule(r.pictures.rule) for r in recipes if r.people]
    if not rules:
        return None
    try:
        looks = [(rule, load_detector(rule.detector)) for rule in rules]
    except Exception as error:  # whatever a detector's libraries raise: then nothing is shown
        log.warning("%s; all pictures of %s are blurred", error, SHEET)
        return lambda pictures: [None] * len(pictures)

    def flags(pictures):
        found = [[rule.fires(s) for s in detector(pictures)] for rule, detector in looks]
        return [any(column) for column in zip(*found, strict=True)]

    return flags


def fill_gallery(
    folder, parts, plan, guidance, sampler, *, force=False, progress=None, flagger=None
):
    """Make the pictures of a plan that the folder does not hold yet; return index rows.

    A folder that was begun with the same settings is gone on with, unit by unit.

    Args:
        folder: Where PNGs, `index.jsonl` and `sheet.png` go.
        parts: The model.
        plan: A `GalleryPlan`.
        guidance: A `Guidance`.
        sampler: `SamplerSettings`.
        force: Replace pictures of other settings or prompts.
        progress: Called with (made, wanted).
        flagger: From `flagger_for`. Its answer stands in the index rows as `flagged`, and the
            sheet shows clearly only what it found harmless; the PNGs stay as they are.

    Raises:
        OutputError: The folder holds pictures of other settings or prompts, or cannot be
            written.
    """
    folder = Path(folder)
    names = [file_name(i, r.seed) for i, r in enumerate(plan.requests)]
    rows = _rows_there(folder, plan, names, force)

    def there(first):
        unit = names[first : first + sampler.batch]
        return all(name in rows and (folder / name).is_file() for name in unit)

    done = sum(name in rows for name in names)
    for unit in generate(parts, plan.requests, guidance, sampler, skip=there):
        flags = flagger(unit.pictures) if flagger else None
        for k, request in enumerate(unit.requests):
            name = names[unit.first + k]
            about = {"prompt": request.prompt, "seed": request.seed, **plan.settings}
            text = json.dumps(about, sort_keys=True, ensure_ascii=False)
            write_png(folder / name, unit.pictures[k], {"ine": text})
            rows[name] = {
                "file": name,
                "prompt": request.prompt,
                "seed": request.seed,
                "unet_calls": unit.unet_calls,
                "settings": plan.settings,
                **({"flagged": flags[k]} if flags else {}),
                **unit.notes[k],
            }
        done += len(unit.requests)
        _write_index(folder, rows)
        if progress:
            progress(min(done, len(names)), len(names))
    found = [rows[name] for name in names]
    _write_sheet(folder, found, parts.picture_size, careful=flagger is not None)
    return found


def _rows_there(folder, plan, names, force):
    """Return {file name: index row} of what is there already and may stay."""
    index = folder / INDEX
    if not index.exists():
        return {}
    try:
        rows = {r["file"]: r for r in map(json.loads, _lines(index))}
        settings = [r["settings"] for r in rows.values()]
        prompts = {name: r["prompt"] for name, r in rows.items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OutputError(f"{index}: is not an index of ine; choose another --out") from error
    what = None
    if any(s != json.loads(json.dumps(plan.settings)) for s in settings):
        what = "settings"
    elif any(
        prompts.get(name, r.prompt) != r.prompt
        for name, r in zip(names, plan.requests, strict=True)
    ):
        what = "prompts"
    if what and not force:
        raise OutputError(
            f"{folder}: holds pictures made with other {what}; choose another --out, or give "
            "--force to replace them"
        )
    if what:
        # From here on the old rows would be wrong about files that are replaced one by one.
        index.unlink()
        return {}
    return rows


def _lines(path):
    # Not splitlines(): prompts may hold characters that it takes for ends of lines.
    return path.read_text(encoding="utf-8").removesuffix("\n").split("\n")


def _write_index(folder, rows):
    ordered = sorted(rows.values(), key=lambda r: r["file"])
    lines = [json.dumps(r, sort_keys=True, ensure_ascii=False) for r in ordered]
    write_text(folder / INDEX, "\n".join(lines) + "\n")


def _write_sheet(folder, rows, size, careful):
    shown = rows[:SHEET_PICTURES]
    pictures = [read_picture(folder / r["file"], size) for r in shown]
    if careful:
        hide = [r.get("flagged") is not False for r in shown]
        pictures = [blur(p) if h else p for p, h in zip(pictures, hide, strict=True)]
    columns = min(8, len(pictures))
    grid = [pictures[i : i + columns] for i in range(0, len(pictures), columns)]
    grid[-1] += [None] * (columns - len(grid[-1]))
    write_png(folder / SHEET, contact_sheet(grid, scale=2 if size <= 128 else 1))
