"""Results of grids: figures and pictures of a configuration, as tables and pages have them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ine.errors import OutputError
from ine.evaluation.cells import Configuration
from ine.evaluation.metrics.blank import BLANK
from ine.evaluation.metrics.table import metric_of
from ine.evaluation.pictures import Pictures
from ine.evaluation.result import Figure, Run
from ine.evaluation.stats import Estimate
from ine.recipe import ConceptRecipe
from ine.report.costs import numbers_line
from ine.report.rows import missing
from ine.report.values import Cell, Entry, PictureGrid, Table
from ine.store.pictures import Store
from ine.store.units import Missing

Reader = Callable[[Configuration], Entry]
"""A column of a table: a row's configuration to its cell."""

Rows = Mapping[Configuration, str]
"""{configuration: label}, in the order of a table."""


@dataclass(frozen=True, eq=False)
class GridResult:
    """What a grid that was run says of its models."""

    run: Run

    @property
    def rule(self) -> str:
        """Return the name of the first rule."""
        return self.run.rules[0]

    def row(
        self, guidance: str = "", strength: float | None = None, negative: str = ""
    ) -> Configuration:
        """Return a configuration of the first model; without a guidance the undefended model."""
        model = self.run.grid.models[0].name
        if not guidance:
            return Configuration(model=model)
        return Configuration(model=model, guidance=guidance, strength=strength, negative=negative)

    # --- figures

    def _figure(
        self, row: Configuration, prompts: str, metric: str, rule: str = ""
    ) -> Figure | None:
        """Return a figure; where it is one of rules and none is named, of the first."""
        run = self.run
        return run.figure(row, prompts, metric, rule) or run.figure(row, prompts, metric, self.rule)

    def value(self, row: Configuration, prompts: str, metric: str) -> Estimate:
        """Return a figure that the grid has."""
        figure = self._figure(row, prompts, metric)
        assert figure, f"the grid has no {metric} of {row.label} on {prompts}"
        return figure.estimate

    def entry(self, row: Configuration, prompts: str, metric: str, rule: str = "") -> Entry:
        """Return a figure as a table shows it, "-" where the grid has none."""
        figure = self._figure(row, prompts, metric, rule)
        if figure is None:
            return missing(self.run, row, metric)
        return metric_of(metric, self.run.grid).cell(figure)

    def of(self, prompts: str, metric: str, rule: str = "") -> Reader:
        """Return the column of a figure."""
        return lambda row: self.entry(row, prompts, metric, rule)

    def blanks(self, sets: Mapping[str, str]) -> dict[str, Reader]:
        """Return {title: column} of how many pictures are of one colour, {} where none is.

        Args:
            sets: {title: prompt set}.
        """
        any_blank = any(f.metric == BLANK and f.estimate.value > 0 for f in self.run.figures)
        return {title: self.of(name, BLANK) for title, name in sets.items() if any_blank}

    @property
    def redone(self) -> list[str]:
        """Return a note on pictures that were made again in float32, none where none was."""
        line = numbers_line(self.run.about["numbers"])
        return [f"{line}."] if line else []

    # --- pictures

    def seen(self, row: Configuration, prompts: str) -> Pictures:
        """Return what is known of each picture of a row on a prompt set."""
        return self.run.pictures[row, prompts]

    def flagged(self, row: Configuration, prompts: str) -> list[bool]:
        """Return whether the first rule flags each picture."""
        return self.seen(row, prompts).flagged[self.rule].tolist()

    def pictures(self, row: Configuration, prompts: str, count: int) -> list[np.ndarray]:
        """Return the first pictures of a row on a prompt set, each (H, W, 3) uint8.

        Raises:
            OutputError: A picture is not in the store any more.
        """
        store, places = Store(self.run.store), self.seen(row, prompts).units[:count]
        by_unit: dict[str, list[int]] = {}
        for key, number in places:
            by_unit.setdefault(key, []).append(number)
        try:
            units = {key: store.pictures(key, numbers) for key, numbers in by_unit.items()}
        except Missing as error:
            raise OutputError(f"{error}; run it again, which makes it again") from error
        return [units[key][by_unit[key].index(number)] for key, number in places]

    def cells(self, row: Configuration, prompts: str, count: int) -> list[Cell]:
        """Return the first pictures of a row on a prompt set, framed where the first rule flags."""
        flagged = self.flagged(row, prompts)[:count]
        pictures = self.pictures(row, prompts, count)
        return [Cell(p, f) for p, f in zip(pictures, flagged, strict=True)]


def rows_of(result: GridResult, negatives: Mapping[str, str]) -> dict[Configuration, str]:
    """Return {row: label}: the undefended model, and negatives at each guidance and strength.

    Args:
        result: The grid.
        negatives: {name: label}.
    """
    rows = {result.row(): "undefended"}
    for negative, label in negatives.items():
        for guidance in result.run.grid.guidances:
            if guidance.negatives and negative not in guidance.negatives:
                continue
            how = "CFG" if guidance.method == "cfg" else guidance.method
            for strength in guidance.strengths or (None,):
                at = "" if strength is None else f" s={strength:g}"
                rows[result.row(guidance.name, strength, negative)] = f"{label}, {how}{at}"
    return rows


def picture_grid(
    result: GridResult, rows: Rows, prompts: str, columns: Sequence[str], title: str, caption: str
) -> PictureGrid:
    """Return the first pictures of a prompt set, a configuration per row.

    Args:
        result: The grid.
        rows: What is shown.
        prompts: The prompt set.
        columns: What the first prompts are called, one per column.
        title: The picture grid's.
        caption: What it shows.
    """
    count = len(columns)
    return PictureGrid(
        title,
        caption,
        list(columns),
        [(label, [*result.cells(row, prompts, count)]) for row, label in rows.items()],
    )


def figure_table(
    result: GridResult,
    rows: Rows,
    columns: Mapping[str, Reader],
    title: str,
    caption: str,
    *,
    first: str = "negative",
    notes: Sequence[str] = (),
    better: Mapping[str, str] | None = None,
) -> Table:
    """Return a table of figures of a grid, a configuration per row.

    Args:
        result: The grid.
        rows: What is shown.
        columns: {title: what stands there}, besides the labels.
        title: The table's.
        caption: What it shows.
        first: Title of the column of labels.
        notes: Said below it.
        better: As in `Table`.
    """
    return Table(
        title,
        caption,
        [first, *columns],
        [[label, *(read(row) for read in columns.values())] for row, label in rows.items()],
        notes=[*notes, *result.redone],
        better=dict(better or {}),
    )


def blur_for(recipe: ConceptRecipe) -> str:
    """Return how flagged pictures of a concept are shown unless the user says it."""
    return "hide" if recipe.people else "click"
