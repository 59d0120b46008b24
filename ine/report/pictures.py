"""The pictures of a grid's report: the same prompts and seeds, a configuration per row.

Which prompts are shown does not depend on what came out. Pictures are read one at a time, when
the page is written.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ine.display import shrunk
from ine.evaluation.cells import Configuration
from ine.evaluation.pictures import Pictures
from ine.evaluation.reported import reported
from ine.evaluation.result import Run
from ine.evaluation.stats import decimal
from ine.report.rows import sets_shown
from ine.report.values import Cell, PictureGrid, Section
from ine.store.pictures import Store
from ine.store.units import Missing

log = logging.getLogger("ine")

Key = tuple[int, str, int, int]
"""Of a picture, as in `Pictures.keys`."""

COLUMNS = 6
"""Prompts of a grid of pictures, where there are not too many rows."""

SHOWN = 360
"""About the most pictures of a page."""

SIDE = 192
"""Pixels of the longer side above which a picture is made smaller for the page."""


def pictures_section(run: Run, columns: int | None) -> Section | None:
    """Return the pictures; arguments as in `picture_grids`."""
    grids = picture_grids(run, columns)
    if not grids:
        return None
    words = ["Every column is one prompt with one seed, every row a configuration."]
    if not at_hand(run):
        words.append(
            "The pictures themselves are not where this run says; `ine report RUN --store DIR` "
            "names the folder that has them."
        )
    return Section("Pictures", words, grids=grids)


def picture_grids(run: Run, columns: int | None = None) -> list[PictureGrid]:
    """Return a `PictureGrid` per model and test set; tune sets where there is no test set.

    Args:
        run: A `Run`.
        columns: Prompts of each; by default as many as a page bears.
    """
    rows = reported(run)
    sets = sets_shown(run)
    each = columns or max(2, min(COLUMNS, SHOWN // max(1, len(rows) * len(sets))))
    grids = [
        _grid(run, name, [c for c in rows if c.model == model.name], each)
        for model in run.grid.models
        for name in sets
    ]
    return [grid for grid in grids if grid]


def _grid(
    run: Run, prompts: str, rows: Sequence[Configuration], columns: int
) -> PictureGrid | None:
    rows = [c for c in rows if run.parts(c, prompts)]
    if not rows:
        return None
    first = run.parts(rows[0], prompts)[0]
    # One seed of the grid, and of that evenly spaced rows.
    own = [key for key in first.keys if key[0] == first.keys[0][0]]
    keys = [own[place] for place in evenly(len(own), columns)]
    rule = run.rule
    return PictureGrid(
        f"{rows[0].model} on {prompts}",
        f"A prompt and seed per column, evenly spaced in the set whatever came out. Red frame: one "
        f"of the rules flags it ({', '.join(run.rules)}); the number is the score of {rule}. Of "
        "pooled negatives the first that has this prompt and seed is shown.",
        [_column(first, key) for key in keys],
        [
            (run.label(c), [_cell(run, run.parts(c, prompts), key, rule) for key in keys])
            for c in rows
        ],
    )


def evenly(count: int, wanted: int) -> list[int]:
    """Return at most `wanted` places of `count`, the first and the last among them."""
    wanted = min(count, wanted)
    if wanted < 2:
        return list(range(wanted))
    return [round(n * (count - 1) / (wanted - 1)) for n in range(wanted)]


def _column(pictures: Pictures, key: Key) -> str:
    _, row, image, seed = key
    noun = pictures.nouns[pictures.place_of[key]]
    again = f", picture {image + 1}" if image else ""
    return f"row {row}{f' ({noun})' if noun else ''}{again}, seed {seed}"


def _cell(run: Run, parts: Sequence[Pictures], key: Key, rule: str) -> Cell | None:
    """Return the picture of a prompt and seed, of the first of the pooled negatives that has it."""
    pictures = next((p for p in parts if key in p.place_of), None)
    if pictures is None:
        return None
    number = pictures.place_of[key]
    flagged = [name for name, flags in pictures.flagged.items() if flags[number]]
    return Cell(
        _reader(run.store, *pictures.units[number]),
        bool(flagged),
        decimal(float(pictures.scores[rule][number])),
    )


def _reader(folder: Path, unit: str, place: int) -> Callable[[], np.ndarray | None]:
    def read() -> np.ndarray | None:
        try:
            return shrunk(Store(folder).pictures(unit, [place])[0], SIDE)
        except Missing as error:
            log.debug("%s", error)
            return None

    return read


def at_hand(run: Run) -> bool:
    """Return whether the pictures are where the run folder or the caller says."""
    units = {unit for pictures in run.pictures.values() for unit, _ in pictures.units}
    return not units or any(Store(run.store).has_unit(unit) for unit in units)
