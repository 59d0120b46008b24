"""The files of a scored grid: figures, choices, pictures, and what is needed to run it again."""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ine.evaluation.metrics.base import Column
from ine.evaluation.metrics.table import COLUMNS as PICTURE_COLUMNS
from ine.evaluation.result import Choice, Figure, Run, known
from ine.files import atomic_path

FIGURES, CSV, CHOSEN, PICTURES, ABOUT = (
    "results.jsonl",
    "results.csv",
    "chosen.json",
    "pictures.jsonl",
    "about.json",
)
COLUMNS = (
    *("model", "guidance", "strength", "negative", "prompts", "role", "expects", "metric"),
    *("rule", "judge", "category", "value", "low", "high", "pictures", "clusters", "interval"),
    *("floor", "raw", "chosen", "note"),
)

Record = dict[str, Any]
"""A line of JSON."""


def figure_record(run: Run, figure: Figure) -> Record:
    """Return a `Figure` as plain values, the columns of `results.csv`."""
    estimate = figure.estimate
    return {
        **asdict(figure.configuration),
        "prompts": figure.prompts,
        "role": figure.role,
        "expects": figure.expects,
        "metric": figure.metric,
        "rule": figure.rule,
        "judge": figure.judge,
        "category": figure.category,
        "value": known(estimate.value),
        "low": known(estimate.low),
        "high": known(estimate.high),
        "pictures": estimate.count,
        "clusters": estimate.clusters,
        "interval": figure.interval,
        "floor": known(figure.floor),
        "raw": known(figure.raw),
        "chosen": figure.configuration in run.chosen,
        "note": figure.note,
    }


def choice_record(choice: Choice) -> Record:
    """Return a `Choice` as plain values."""
    row = choice.configuration
    return {
        "model": row.model,
        "guidance": row.guidance,
        "negative": row.negative,
        "strength": row.strength,
        "options": choice.options,
        "rule": choice.rule,
        "flagged": known(choice.flagged),
        "keep": choice.keep,
        "kept": known(choice.kept),
        "level": choice.level,
        "reached": choice.reached,
    }


def picture_records(run: Run) -> Iterator[Record]:
    """Yield one plain record per picture; no prompt's text is among them."""
    for (configuration, prompts), pictures in run.pictures.items():
        columns = {column: pictures.named(column.name) for column in PICTURE_COLUMNS}
        for number, (grid_seed, row, image, seed) in enumerate(pictures.keys):
            yield {
                **asdict(configuration),
                "prompts": prompts,
                "grid_seed": grid_seed,
                "id": row,
                "image": image,
                "seed": seed,
                "cluster": pictures.clusters[number],
                "noun": pictures.nouns[number],
                **_columns(columns, number),
                "unit": pictures.units[number][0],
                "place": pictures.units[number][1],
            }


def _columns(columns: Mapping[Column, Mapping[str, np.ndarray]], number: int) -> Record:
    """Return what is known of one picture."""
    found: Record = {}
    for column, values in columns.items():
        own = {of: column.kind(v[number]) for of, v in values.items()}
        if column.keyed:
            found[column.name] = own
        elif own and (own[""] or not column.sparse):
            found[column.name] = own[""]
    return found


def write_results(run: Run) -> None:
    """Write all files into the run folder; the same store and grid give the same bytes.

    Raises:
        OutputError: A file cannot be written.
    """
    records = [figure_record(run, figure) for figure in run.figures]
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    table.writeheader()
    table.writerows(records)
    # All are written before the first is renamed, `about.json` at last: where the disk is full,
    # those that were there stay, and are not a mixture of two runs.
    with ExitStack() as all_of_them:

        def part(name: str) -> Path:
            return all_of_them.enter_context(atomic_path(run.folder / name))

        part(ABOUT).write_bytes(_json(run.about))
        part(CHOSEN).write_bytes(_json([choice_record(choice) for choice in run.choices]))
        part(CSV).write_bytes(text.getvalue().encode())
        _write_lines(part(PICTURES), picture_records(run))
        _write_lines(part(FIGURES), records)


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _write_lines(path: Path, records: Iterable[Record]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n")
