"""Rows of tables: one per configuration, and what stands where there is no figure."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from ine.evaluation.cells import Configuration
from ine.evaluation.metrics.table import metric_of
from ine.evaluation.reported import reported
from ine.evaluation.result import Run
from ine.report.values import Entry

Column = TypeVar("Column")
NOT_MADE = "-"


def rows_by_configuration(
    run: Run, columns: Sequence[Column], cell: Callable[[Configuration, Column], Entry | None]
) -> list[list[Entry]]:
    """Return a row per reported configuration: its label and its cells, "-" where one is None.

    A configuration of which all cells are None has no row.
    """
    rows: list[list[Entry]] = []
    for c in reported(run):
        cells = [cell(c, column) for column in columns]
        if any(entry is not None for entry in cells):
            rows.append([run.label(c), *(NOT_MADE if e is None else e for e in cells)])
    return rows


def sets_shown(run: Run) -> list[str]:
    """Return the test sets; all sets where there is no test set."""
    return [n for n, facts in run.sets.items() if facts["role"] == "test"] or list(run.sets)


def entry_of(
    run: Run, c: Configuration, prompts: str, metric: str, rule: str = "", category: str = ""
) -> Entry | None:
    """Return a figure as a table shows it; None if the run does not have it."""
    figure = run.figure(c, prompts, metric, rule, category)
    return metric_of(metric, run.grid).cell(figure) if figure else None


def missing(run: Run, c: Configuration, metric: str) -> str:
    """Return what stands where a configuration has no figure of a metric."""
    return NOT_MADE if c.is_defended else metric_of(metric, run.grid).undefended
