"""From what is stored of a grid to figures: pictures' readings, intervals, choices; no U-Net.

Configurations are chosen on tune sets and reported on test sets. Rows of several seeds, or of the
negatives of one group, are pooled; what is resampled stays the prompt (phrase x noun).
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from ine import __version__
from ine.evaluation.about import about_of
from ine.evaluation.cells import Cell, Configuration
from ine.evaluation.choosing import choose, matched
from ine.evaluation.metrics.base import Sample, UnitView
from ine.evaluation.metrics.blank import BLANK
from ine.evaluation.metrics.preservation import floors
from ine.evaluation.metrics.table import COLUMNS, METRICS
from ine.evaluation.pictures import Columns, Pictures, join_pictures
from ine.evaluation.plan import Plan
from ine.evaluation.result import Figure, Run
from ine.finite import REDONE


def score(plan: Plan) -> Run:
    """Return the result of a grid, from the store alone.

    Raises:
        Missing: Something is not stored; `ine.evaluation.run.run` makes it.
    """
    made: set[str] = set()
    exact = _pictures(plan, made)
    run = Run(
        folder=plan.folder,
        store=plan.store.folder,
        version=__version__,
        grid=plan.file.grid,
        text=plan.file.text,
        about=about_of(plan, made, numbers_of(exact)),
        figures=(),
        choices=(),
        pictures=exact,
        floors=floors(plan, plan.units_of),
    )
    choices = tuple(choose(plan, run, rows_of(plan)))
    figures = tuple(figures_of(plan, run))
    # Pictures are kept with as many digits as in `pictures.jsonl`; figures come from all of them.
    kept = {key: _rounded(pictures) for key, pictures in exact.items()}
    return replace(run, choices=choices, figures=figures, pictures=kept)


def _pictures(plan: Plan, made: set[str]) -> dict[tuple[Configuration, str], Pictures]:
    """Return the pictures of every configuration and prompt set; `made` gets what made them."""
    found: dict[tuple[Configuration, str], list[Pictures]] = {}
    for cell in plan.units_of:
        found.setdefault((cell.configuration, cell.prompts), []).append(
            score_cell(plan, cell, made)
        )
    return {key: join_pictures(parts) for key, parts in found.items()}


def numbers_of(pictures: Mapping[tuple[Configuration, str], Pictures]) -> dict[str, int]:
    """Return how many pictures there are, how many of them blank, and how many made again."""
    return {**_counted(pictures, BLANK), **_counted(pictures, REDONE)}


def _counted(pictures: Mapping[tuple[Configuration, str], Pictures], name: str) -> dict[str, int]:
    """Return how many pictures have a sparse column set, and of how many; a unit counts once."""
    found: dict[tuple[str, int], bool] = {}
    for own in pictures.values():
        if own.has(name):
            found |= dict(zip(own.units, map(bool, own.column(name)), strict=True))
    return {"pictures": len(found), name: sum(found.values())}


def _rounded(pictures: Pictures) -> Pictures:
    kinds = {column.name: column for column in COLUMNS}
    columns = {
        (name, of): kinds[name].rounded(values) for (name, of), values in pictures.columns.items()
    }
    return replace(pictures, columns=columns)


def score_cell(plan: Plan, cell: Cell, made: set[str] | None = None) -> Pictures:
    """Return the pictures of a cell; its units are read one after the other.

    Args:
        plan: The grid.
        cell: The cell.
        made: Gets a text for each device and set of versions that made them.

    Raises:
        Missing: Something is not stored.
    """
    items = plan.sets[cell.prompts].items(cell.seed)
    units: list[tuple[str, int]] = [("", 0)] * len(items)
    columns: Columns = {}
    plain = plan.units_of[replace(cell, configuration=cell.configuration.undefended)]
    for unit, before in zip(plan.units_of[cell], plain, strict=True):
        about = plan.store.about(unit.key)
        if made is not None:
            made.add(_made_by(about.made))
        own = tuple(items[place] for place in unit.places)
        view = UnitView(plan=plan, cell=cell, unit=unit, before=before, items=own, about=about)
        _fill(columns, view, len(items))
        for number, place in enumerate(unit.places):
            units[place] = (unit.key, number)
    return Pictures(
        keys=tuple((cell.seed, item.id, item.image, item.seed) for item in items),
        clusters=tuple(item.cluster for item in items),
        nouns=tuple(item.noun for item in items),
        units=tuple(units),
        columns=columns,
    )


def _fill(columns: Columns, view: UnitView, count: int) -> None:
    """Put what is read of a unit's pictures into the columns of all `count` pictures."""
    for metric in METRICS:
        for name, values in metric.read(view).items():
            column = columns.setdefault(name, np.zeros(count, dtype=values.dtype))
            column[list(view.unit.places)] = values


def _made_by(made: Mapping[str, object]) -> str:
    threads = f", {made['threads']} threads" if made.get("threads") else ""
    return f"{made.get('device')}{threads}; {made.get('versions')}"


# --- rows


def rows_of(plan: Plan) -> tuple[Configuration, ...]:
    """Return every row: each configuration, then each group of negatives."""
    groups = {n.name: n.group for n in plan.file.grid.negatives if n.group}
    pooled: dict[Configuration, list[Configuration]] = {}
    for configuration in plan.configurations:
        if configuration.negative in groups:
            group = replace(configuration, negative=groups[configuration.negative])
            pooled.setdefault(group, []).append(configuration)
    here = {cell.configuration for cell in plan.units_of}
    single = [c for c in plan.configurations if c in here]
    return (*single, *(group for group, members in pooled.items() if here.issuperset(members)))


def figures_of(plan: Plan, run: Run) -> Iterator[Figure]:
    """Yield every figure of a grid, row by row; those that are read off sweeps at the end."""
    rows = rows_of(plan)
    for configuration in rows:
        for prompts in plan.sets:
            parts = run.parts(configuration, prompts)
            if parts:
                yield from _of_sample(
                    Sample(
                        plan=plan,
                        run=run,
                        configuration=configuration,
                        prompts=prompts,
                        parts=parts,
                    )
                )
    yield from matched(plan, run, rows)


def _of_sample(sample: Sample) -> Iterator[Figure]:
    for rule in sample.plan.file.rules:
        for metric in METRICS:
            if metric.by_rule:
                yield from metric.figures(sample, rule)
    for metric in METRICS:
        if not metric.by_rule:
            yield from metric.figures(sample, None)
