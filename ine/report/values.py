"""What a report shows, as plain values: nothing here knows models, judges or how it is written."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from ine.evaluation.stats import Estimate, Rate


@dataclass(frozen=True)
class Cell:
    """One picture of a grid."""

    picture: np.ndarray | Callable[[], np.ndarray | None]
    """uint8 (H, W, 3), or a function that reads it when the page is written, so that a page of
    many holds one at a time; where that gives None, the place says that it is not at hand."""

    flagged: bool = False
    """Whether the detector fired."""

    note: str = ""
    """A few words under the picture, such as the detector's score."""


@dataclass(frozen=True)
class PictureGrid:
    """Pictures in rows (models, guidance) and columns (prompts, seeds)."""

    title: str
    caption: str
    column_labels: list[str]
    rows: list[tuple[str, list[Cell | None]]]
    """Label and one cell per column; None leaves a place empty."""

    def __post_init__(self) -> None:
        for label, cells in self.rows:
            _check_width(f"grid {self.title!r}, row {label!r}", cells, self.column_labels)

    @cached_property
    def any_flagged(self) -> bool:
        """Whether the detector fired anywhere."""
        return any(cell.flagged for _, cells in self.rows for cell in cells if cell)


@dataclass(frozen=True)
class Noted:
    """A figure of a table with a few words beneath it."""

    figure: Estimate | Rate
    note: str = ""


Entry = str | Estimate | Rate | Noted
"""A cell of a table."""


def noted(cell: Entry) -> Noted | None:
    """Return the figure of a table's cell with its note, None where the cell is text."""
    if isinstance(cell, str):
        return None
    return cell if isinstance(cell, Noted) else Noted(cell)


@dataclass(frozen=True)
class Table:
    """Text and figures; the first column names the rows."""

    title: str
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Entry]]
    notes: list[str] = field(default_factory=list)
    better: dict[str, str] = field(default_factory=dict)
    """{column: "high" or "low"} for shares in [0, 1]: those columns are coloured."""

    def __post_init__(self) -> None:
        for row in self.rows:
            _check_width(f"table {self.title!r}, row {row[:1]}", row, self.columns)
            for cell in row:
                if not isinstance(cell, str | Estimate | Rate | Noted):
                    raise ValueError(
                        f"table {self.title!r}: {cell!r} is a {type(cell).__name__}; expected "
                        "text, Estimate, Rate or Noted"
                    )
        for column, direction in self.better.items():
            if column not in self.columns or direction not in ("high", "low"):
                raise ValueError(
                    f"table {self.title!r}: better {column!r}: {direction!r}; expected one of "
                    f"{self.columns} with 'high' or 'low'"
                )

    @cached_property
    def numeric(self) -> list[bool]:
        """Whether each column holds figures."""
        return [any(noted(row[n]) for row in self.rows) for n in range(len(self.columns))]

    @cached_property
    def footnotes(self) -> list[str]:
        """The notes, and on what the figures rest, since a printed page has no hover texts."""
        figures = [n.figure for row in self.rows for cell in row if (n := noted(cell))]
        if not figures:
            return self.notes
        clusters = [f.clusters for f in figures if isinstance(f, Estimate)]
        of = f" in {_spread(clusters)} clusters" if clusters else ""
        return [*self.notes, f"N = {_spread(f.count for f in figures)}{of}."]


def _spread(numbers: Iterable[int]) -> str:
    numbers = sorted(set(numbers))
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"


@dataclass(frozen=True)
class Drawing:
    """A drawing with its caption; its figures belong into a table beside it."""

    title: str
    caption: str
    svg: str
    """An `<svg>` element with all text escaped, from code like `ine.report.frontier`."""


@dataclass(frozen=True)
class Section:
    """A heading with text, then pictures, drawings, and tables."""

    title: str
    paragraphs: list[str] = field(default_factory=list)
    grids: list[PictureGrid] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    drawings: list[Drawing] = field(default_factory=list)


@dataclass(frozen=True)
class Report:
    """What is shown, in order: lead, sections, how to go on, where it came from."""

    title: str
    lead: str
    sections: list[Section]
    provenance: dict[str, str | list[str]]
    """Versions, seeds, recipe hash; a list is shown line by line (commands)."""

    next_steps: list[tuple[str, str]] = field(default_factory=list)
    """(sentence, command) pairs under "How to go on"; a command may be empty."""

    def __post_init__(self) -> None:
        for key, value in self.provenance.items():
            if not isinstance(value, str | list | tuple):
                raise ValueError(f"provenance {key!r} is {value!r}; expected text or lines of text")


def _check_width(where: str, cells: Sequence[object], columns: Sequence[str]) -> None:
    if len(cells) != len(columns):
        raise ValueError(f"{where}: {len(cells)} cells for {len(columns)} columns")
