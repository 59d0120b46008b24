"""A folder of generated pictures: PNGs that carry their settings, an index, a contact sheet."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path

from ine.errors import OutputError, PicturesError
from ine.files import write_text
from ine.judging.detectors import load_detector
from ine.judging.rules import find_rule
from ine.pictures import blur, contact_sheet, read_picture, read_png_text, write_png
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


def flagger_for(concepts, rules=()):
    """Return what finds pictures that are not to be shown.

    Args:
        concepts: Names of concepts, or of embeddings of them ("nudity-neg"); shipped recipes
            about people (`people: true`) bring their rule.
        rules: Names of further rules, as embeddings of a user's own such recipe state them.

    Where a rule or a detector cannot be had, nothing is known about any picture.

    Returns:
        None where no concept is about people; else a function from pictures (B, H, W, 3) uint8
        to one of True, False and None (not known) for each.
    """
    shipped = list_recipes()
    named = dict.fromkeys(c.removesuffix("-neg") for c in concepts)
    recipes = [load_recipe(shipped[c]) for c in named if c in shipped]
    names = dict.fromkeys([*(r.pictures.rule for r in recipes if r.people), *rules])
    if not names:
        return None
    try:
        found = [find_rule(name) for name in names]
        looks = [(rule, load_detector(rule.detector)) for rule in found]
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

    A folder that was begun with the same settings is gone on with, unit by unit. A picture that
    is there counts as made only if it says inside that it is the planned one.

    Args:
        folder: Where PNGs, `index.jsonl` and `sheet.png` go.
        parts: The model.
        plan: A `GalleryPlan`.
        guidance: A `Guidance`.
        sampler: `SamplerSettings`.
        force: Replace pictures of other settings or prompts, and files of other origin.
        progress: Called with (made, wanted).
        flagger: From `flagger_for`. Its answer stands in the index rows as `flagged`, and the
            sheet shows clearly only what it found harmless; the PNGs stay as they are.

    Raises:
        OutputError: The folder holds pictures of other settings or prompts, or files of other
            origin under the names that are to be written, or cannot be written.
        ValueError: The plan asks for no picture.
    """
    if not plan.requests:
        raise ValueError("a gallery needs at least one request, the plan has none")
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
            write_png(folder / name, unit.pictures[k], {"ine": _text_inside(request, plan)})
            rows[name] = {
                "file": name,
                "prompt": request.prompt,
                "seed": request.seed,
                "unet_calls": unit.unet_calls[k],
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


def _text_inside(request, plan):
    """Return what a PNG says about itself."""
    about = {"prompt": request.prompt, "seed": request.seed, **plan.settings}
    return json.dumps(about, sort_keys=True, ensure_ascii=False)


def _rows_there(folder, plan, names, force):
    """Return {file name: index row} of what is there already and may stay.

    With `force`, what may not stay is removed here, so that nothing of it is taken for a picture
    of this plan when the run is interrupted.
    """
    rows, what = _read_index(folder, plan, names)
    strange = _strangers(folder, plan, names)
    if not force and what:
        raise OutputError(
            f"{folder}: holds pictures made with other {what}; choose another --out, or give "
            "--force to replace them"
        )
    if not force and strange:
        more = f" and {len(strange) - 3} more" if len(strange) > 3 else ""
        raise OutputError(
            f"{folder}: holds {', '.join(strange[:3])}{more}, not made by this command, where its "
            "own pictures are to go; choose another --out, or give --force to replace them"
        )
    # The index goes first: the old rows would be wrong about files that are replaced one by one.
    for name in [*([INDEX, SHEET] if what else []), *strange]:
        _remove(folder / name)
    return {} if what else {n: row for n, row in rows.items() if n not in strange}


def _read_index(folder, plan, names):
    """Return the rows of an index, and which of "settings" and "prompts" differ, or None."""
    index = folder / INDEX
    if not index.exists():
        return {}, None
    try:
        rows = {r["file"]: r for r in map(json.loads, _lines(index))}
        settings = [r["settings"] for r in rows.values()]
        prompts = {name: r["prompt"] for name, r in rows.items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OutputError(f"{index}: is not an index of ine; choose another --out") from error
    if any(s != json.loads(json.dumps(plan.settings)) for s in settings):
        return rows, "settings"
    wanted = zip(names, plan.requests, strict=True)
    if any(prompts.get(name, r.prompt) != r.prompt for name, r in wanted):
        return rows, "prompts"
    return rows, None


def _strangers(folder, plan, names):
    """Return names that are to be written and are there, but not from a run of this plan."""
    wanted = zip(names, plan.requests, strict=True)
    found = [
        name
        for name, request in wanted
        if (folder / name).exists() and not _is_made(folder / name, _text_inside(request, plan))
    ]
    # A sheet is drawn when the index is complete, so one without an index is somebody else's.
    if (folder / SHEET).exists() and not (folder / INDEX).exists():
        found.append(SHEET)
    return found


def _is_made(path, text):
    try:
        return read_png_text(path).get("ine") == text
    except PicturesError:
        return False


def _remove(path):
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be replaced ({error.strerror}); choose another --out"
        ) from error


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
