"""What a metric is: columns per picture from stored readings, figures from columns, a table column.

To add a metric, subclass `Metric` in a file of this folder and add it to `METRICS` in
`ine.evaluation.metrics.table`.

Shape letters: B pictures of a unit, P pictures.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ine.detectors.raw import PictureDetections, RawOutput
from ine.detectors.rule import AnyOf, Rule
from ine.evaluation.cells import Cell, Configuration
from ine.evaluation.grid import Grid, GridPrompts
from ine.evaluation.pictures import Columns, Pictures
from ine.evaluation.plan import Plan
from ine.evaluation.prompt_sets import Item
from ine.evaluation.result import Figure, Run
from ine.evaluation.stats import BOOTSTRAP, Estimate, cluster_bootstrap, decimal, share_of
from ine.evaluation.units import UnitOfWork
from ine.store.archives import StoredUnit


@dataclass(frozen=True, kw_only=True)
class Column:
    """A number per picture, and how `pictures.jsonl` has it."""

    name: str
    kind: type = float
    digits: int | None = None
    """Decimals that are kept of a float."""

    keyed: bool = False
    """Whether there is one per rule or measure."""

    sparse: bool = False
    """Whether it is written only where it is true."""

    def rounded(self, values: np.ndarray) -> np.ndarray:
        """Return values as they are kept, (P,)."""
        if self.digits is None:
            return values
        return np.array([round(float(value), self.digits) for value in values])


@dataclass(frozen=True, kw_only=True)
class UnitView:
    """One stored unit of a cell, as a metric reads it."""

    plan: Plan
    cell: Cell
    unit: UnitOfWork
    before: UnitOfWork
    """The undefended unit of the same prompts and seeds."""

    items: tuple[Item, ...]
    """One per picture of the unit."""

    about: StoredUnit

    @property
    def judge(self) -> str | None:
        """The detector that looks instead of the rules' own."""
        return self.plan.judge(self.plan.sets[self.cell.prompts].spec.role)

    @cached_property
    def raw(self) -> RawOutput:
        """What detectors saw, as `ine judge` keeps it of files."""
        plan, key = self.plan, self.unit.key
        looks = {name: plan.store.look(key, name) for name in plan.detectors_of(self.cell.prompts)}
        rows = [
            PictureDetections(
                picture=f"{key}/{number}",
                sha256="",
                size=(0, 0),
                found={name: found[number] for name, (_, found) in looks.items()},
            )
            for number in range(len(self.unit.requests))
        ]
        detectors = {name: settings for name, (settings, _) in looks.items()}
        return RawOutput(detectors=detectors, pictures=tuple(rows))


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The pictures of a row on one prompt set: all its seeds, and the negatives of a group."""

    plan: Plan
    run: Run
    configuration: Configuration
    prompts: str
    parts: list[Pictures]

    @property
    def spec(self) -> GridPrompts:
        """The grid's entry of the prompt set."""
        return self.plan.sets[self.prompts].spec

    @property
    def judge(self) -> str | None:
        """The detector that looks instead of the rules' own."""
        return self.plan.judge(self.spec.role)

    @cached_property
    def clusters(self) -> list[str]:
        """What is independent, one label per picture."""
        return [label for part in self.parts for label in part.clusters]

    @cached_property
    def cells(self) -> list[Cell]:
        """The cells that are pooled, member by member, in the order of the pictures."""
        return [
            cell
            for member in self.run.members(self.configuration)
            for cell in self.plan.units_of
            if (cell.configuration, cell.prompts) == (member, self.prompts)
        ]

    @cached_property
    def items(self) -> list[Item]:
        """The `Item` of each picture."""
        prompts = self.plan.sets[self.prompts]
        return [item for cell in self.cells for item in prompts.items(cell.seed)]

    def has(self, name: str, of: str = "") -> bool:
        """Return whether all pictures have a column."""
        return all(part.has(name, of) for part in self.parts)

    def column(self, name: str, of: str = "") -> np.ndarray:
        """Return a column of all pictures, (P,) float64."""
        return np.concatenate([part.column(name, of).astype(np.float64) for part in self.parts])

    def rule_facts(self, rule: Rule | AnyOf) -> dict[str, str]:
        """Return what a figure says of its rule."""
        return {"rule": rule.name, "judge": self.judge or rule.detector, "note": rule.note}

    def figure(self, metric: str, estimate: Estimate, **more: Any) -> Figure:
        """Return a figure of this sample; `more` are other fields of `Figure`."""
        return Figure(
            configuration=self.configuration,
            prompts=self.prompts,
            role=self.spec.role,
            expects=self.spec.expects,
            metric=metric,
            estimate=estimate,
            **{"interval": BOOTSTRAP, **more},
        )

    def mean(self, metric: str, values: np.ndarray, **more: Any) -> Figure:
        """Return the figure of a mean, (P,) values."""
        return self.figure(metric, cluster_bootstrap(values, self.clusters), **more)

    def share(self, metric: str, values: np.ndarray, **more: Any) -> Figure:
        """Return the figure of a share, (P,) values of 0 and 1."""
        estimate, interval = share_of(values, self.clusters)
        return self.figure(metric, estimate, interval=interval, **more)


def floors_of(figures: Sequence[Figure]) -> str:
    """Return "MODEL FLOOR, ..." of figures that have a floor, each once."""
    floors = (f"{f.configuration.model} {decimal(f.floor)}" for f in figures if f.floor is not None)
    return ", ".join(dict.fromkeys(floors))


def notes_of(figures: Sequence[Figure]) -> list[str]:
    """Return the notes of figures as sentences, each once."""
    return list(dict.fromkeys(f"Note: {figure.note}." for figure in figures if figure.note))


class Metric:
    """One metric, or several that rest on the same columns. Override what differs."""

    columns: tuple[Column, ...] = ()
    """What is kept per picture, in the order of `pictures.jsonl`."""

    by_rule = False
    """Whether there is a figure per rule."""

    shown: tuple[str, ...] = ()
    """Names of its figures, unless they depend on the grid; the first ones have heat maps."""

    heading = ""
    """Heading of its column in a table, unless it is the figure's name."""

    mean_of = ""
    """Column that its figures are the mean of, that of their rule if there is one per rule."""

    about = ""
    """What a table says below its figures, before their notes; "" for nothing."""

    mapped: tuple[str, ...] = ()
    """What a test set may expect to get a heat map on the page."""

    better = ""
    """"low", "high", or "" if no colour stands for its values."""

    undefended = "-"
    """A table's cell for the undefended model, which has no figure."""

    def needs(self, plan: Plan, prompts: str) -> tuple[str, ...]:
        """Return the readings of a prompt set's pictures that it needs, besides detectors'."""
        return ()

    def read(self, view: UnitView) -> Columns:
        """Return its columns of a unit's pictures, (B,) each, from the store."""
        return {}

    def figures(self, sample: Sample, rule: Rule | AnyOf | None) -> Iterator[Figure]:
        """Yield the figures of a row on a prompt set.

        Args:
            sample: The row's pictures.
            rule: The rule, None unless `by_rule`.
        """
        yield from ()

    def names(self, grid: Grid) -> tuple[str, ...]:
        """Return the names of its figures in a grid; the first ones have heat maps."""
        return self.shown

    def owns(self, name: str, grid: Grid) -> bool:
        """Return whether a figure of this name is of this metric."""
        return name in self.names(grid)

    def header(self, figure: Figure) -> str:
        """Return the heading of its column in a table."""
        return self.heading or figure.metric

    def cell(self, figure: Figure) -> Estimate | str:
        """Return what stands in a table."""
        return figure.estimate

    def beside(self, figure: Figure) -> str:
        """Return what stands beside the figure in a heat map, "" for nothing."""
        return ""

    def notes(self, figures: Sequence[Figure]) -> list[str]:
        """Return what a table says below figures of this metric."""
        return [self.about, *notes_of(figures)] if self.about else []

    def values(self, run: Run, figure: Figure) -> Callable[[Pictures], np.ndarray] | None:
        """Return a function that gives what a figure is the mean of, (P,); None for no mean."""
        if not self.mean_of:
            return None
        return lambda pictures: pictures.column(self.mean_of, figure.rule)
