"""Reading the run folder of `ine evaluate` back as a `Run`.

Everything comes from the files that `ine.evaluation.results` wrote; no model is loaded.
"""

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from ine.errors import OutputError
from ine.evaluation.about import About
from ine.evaluation.cells import Configuration
from ine.evaluation.entering import HEAD, SOURCE
from ine.evaluation.grid import Grid, with_rounds
from ine.evaluation.metrics.preservation import measure_of
from ine.evaluation.metrics.table import COLUMNS
from ine.evaluation.pictures import Columns, Pictures
from ine.evaluation.result import Choice, Figure, Run
from ine.evaluation.results import ABOUT, CHOSEN, FIGURES, PICTURES, Record
from ine.evaluation.stats import Estimate
from ine.files import JSON_LIMIT, read_within
from ine.yaml_files import read_yaml


def read_run(folder: Path, store: Path | None = None) -> Run:
    """Return the `Run` of a folder.

    Args:
        folder: Where `ine evaluate` wrote its results.
        store: Where its pictures are, if not where the run says.

    Raises:
        OutputError: It is not a run folder, or is not finished, or a file of it is damaged.
    """
    folder = Path(folder)
    head = _json(folder, HEAD)
    if not isinstance(head, dict) or head.get("kind") != "grid-run":
        raise OutputError(f"{folder / HEAD}: is not of `ine evaluate`; give its run folder")
    about: About = _json(folder, ABOUT)
    text = _text(folder, SOURCE)
    grid = _grid(folder, text)
    try:
        if about["digest"] != head["digest"]:
            raise OutputError(
                f"{folder}: its results are of another grid than {HEAD} says; run `ine evaluate` "
                "there again"
            )
        _ = [(s["role"], s["expects"], s["rows"]) for s in about["sets"].values()]
        _ = dict(about["rules"]), dict(about["models"])
        figures = tuple(_figure(line) for line in _lines(folder, FIGURES))
        pictures = _pictures(_lines(folder, PICTURES))
        choices = tuple(_choice(line) for line in _json(folder, CHOSEN))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise OutputError(
            f"{folder}: its results are damaged or of another version ({error!r}); run "
            "`ine evaluate` there again, which generates only pictures that are missing"
        ) from error
    return Run(
        folder=folder,
        store=Path(store) if store else folder / head.get("store", ""),
        version=str(head.get("ine")),
        grid=grid,
        text=text,
        about=about,
        figures=figures,
        choices=choices,
        pictures=pictures,
        floors=_floors(figures, grid),
    )


def _grid(folder: Path, text: str) -> Grid:
    try:
        return with_rounds(Grid.model_validate(read_yaml(text)))
    except (ValidationError, ValueError) as error:
        raise OutputError(
            f"{folder / SOURCE}: is no grid that this version of ine reads; run `ine evaluate` "
            f"there again ({str(error).splitlines()[0]})"
        ) from error


def _text(folder: Path, name: str) -> str:
    path = folder / name
    try:
        return read_within(path, JSON_LIMIT)
    except FileNotFoundError as error:
        what = "is no folder" if not folder.is_dir() else f"has no {name}"
        raise OutputError(
            f"{folder}: {what}; give the run folder of an `ine evaluate` that has ended"
        ) from error
    except (OSError, ValueError) as error:
        raise OutputError(f"{path}: cannot be read ({error})") from error


def _json(folder: Path, name: str) -> Any:
    try:
        return json.loads(_text(folder, name))
    except (ValueError, RecursionError) as error:
        raise OutputError(f"{folder / name}: is damaged ({error}); run it again") from error


def _lines(folder: Path, name: str) -> Iterator[Record]:
    """Yield the values of a file of JSON lines, one at a time."""
    path = folder / name
    if not path.is_file():
        _text(folder, name)
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                yield json.loads(line)
            except (ValueError, RecursionError) as error:
                raise OutputError(f"{path}: line {number} is damaged; run it again") from error


def _configuration(line: Record) -> Configuration:
    return Configuration(**{field.name: line[field.name] for field in fields(Configuration)})


def _float(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _choice(line: Record) -> Choice:
    return Choice(
        configuration=_configuration(line),
        flagged=_float(line["flagged"]),
        kept=_float(line["kept"]),
        **{name: line[name] for name in ("options", "rule", "keep", "level", "reached")},
    )


def _figure(line: Record) -> Figure:
    value, low, high = (_float(line[name]) for name in ("value", "low", "high"))
    texts = ("prompts", "role", "expects", "metric", "rule", "judge", "category")
    return Figure(
        configuration=_configuration(line),
        estimate=Estimate(value, low, high, int(line["pictures"]), int(line["clusters"])),
        **{name: line[name] for name in (*texts, "interval", "floor", "raw", "note")},
    )


def _floors(figures: Iterable[Figure], grid: Grid) -> dict[tuple[str, str, str], float]:
    """Return the floors that figures of preservation name."""
    return {
        (f.configuration.model, f.prompts, measure_of(f.metric)): f.floor
        for f in figures
        if f.floor is not None and measure_of(f.metric) in grid.metrics.preservation
    }


def _pictures(lines: Iterable[Record]) -> dict[tuple[Configuration, str], Pictures]:
    """Return {(configuration, prompt set): `Pictures`}; columns, so that many fit in memory."""
    found: dict[tuple[Configuration, str], _Lists] = {}
    for line in lines:
        found.setdefault((_configuration(line), line["prompts"]), _Lists()).add(line)
    return {key: lists.packed() for key, lists in found.items()}


class _Lists:
    """The pictures of one configuration and prompt set while they are read."""

    def __init__(self) -> None:
        self.rows: list[tuple[tuple[int, str, int, int], str, str, tuple[str, int]]] = []
        """(key, cluster, noun, unit) of each."""

        self.columns: dict[tuple[str, str], list[Any]] = {}

    def add(self, line: Record) -> None:
        key = (line["grid_seed"], line["id"], line["image"], line["seed"])
        self.rows.append((key, line["cluster"], line["noun"], (line["unit"], line["place"])))
        for column in COLUMNS:
            if column.keyed:
                for of, value in line[column.name].items():
                    self.columns.setdefault((column.name, of), []).append(value)
            elif column.sparse or column.name in line:
                self.columns.setdefault((column.name, ""), []).append(line.get(column.name, False))

    def packed(self) -> Pictures:
        kinds = {column.name: column.kind for column in COLUMNS}
        columns: Columns = {
            (name, of): np.array(values, dtype=kinds[name])
            for (name, of), values in self.columns.items()
        }
        keys, clusters, nouns, units = zip(*self.rows, strict=True)
        return Pictures(keys=keys, clusters=clusters, nouns=nouns, units=units, columns=columns)
