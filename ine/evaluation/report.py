"""One report for everything that shows pictures and figures: HTML, JSON and Markdown.

The page is one file: its style and pictures are inside, it runs no script, and its content
security policy forbids any connection. A caller builds a `Report` of plain values; nothing
here knows models or judges.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import jinja2
import numpy as np

from ine import __version__
from ine.evaluation.metrics import Estimate, Rate
from ine.files import write_json, write_text
from ine.pictures import blur as blurred
from ine.pictures import png_data_uri

TERMINAL_WIDTH = 100
BLURS = ("show", "click", "hide")
PIXEL_ART_SIDE = 160
"""Pictures up to this side are enlarged without smoothing, so that mini's look like mini's."""


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

    def __post_init__(self):
        for label, cells in self.rows:
            _check_width(f"grid {self.title!r}, row {label!r}", cells, self.column_labels)


@dataclass(frozen=True)
class Noted:
    """A figure of a table with a few words beneath it."""

    figure: Estimate | Rate
    note: str


@dataclass(frozen=True)
class Table:
    """Text and figures; the first column names the rows."""

    title: str
    caption: str
    columns: list[str]
    rows: list[list[str | Estimate | Rate | Noted]]
    notes: list[str] = field(default_factory=list)
    better: dict[str, str] = field(default_factory=dict)
    """{column: "high" or "low"} for shares in [0, 1]: those columns are coloured."""

    def __post_init__(self):
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


@dataclass(frozen=True)
class Drawing:
    """A drawing with its caption; its figures belong into a table beside it."""

    title: str
    caption: str
    svg: str
    """An `<svg>` element with all text escaped, from code like `ine.evaluation.frontier`."""


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

    def __post_init__(self):
        for key, value in self.provenance.items():
            if not isinstance(value, str | list | tuple):
                raise ValueError(f"provenance {key!r} is {value!r}; expected text or lines of text")


def _check_width(where, cells, columns):
    if len(cells) != len(columns):
        raise ValueError(f"{where}: {len(cells)} cells for {len(columns)} columns")


def write_report(report, folder, blur="show"):
    """Write `report.html`, `report.json` and `report.md` into a folder, each atomically.

    Args:
        report: What to show.
        folder: Made if missing; files of these names are replaced.
        blur: What happens to pictures in which the detector fired. "show": a red frame only,
            for stand-in concepts. "click": blurred in the page until clicked; the picture
            itself is in the file. "hide": for real harms; only a coarse mosaic of it is in
            the file, and no click brings it back.

    Returns:
        The path of `report.html`.

    Raises:
        OutputError: The folder cannot be written.
    """
    if blur not in BLURS:
        raise ValueError(f"blur {blur!r}: expected one of {', '.join(BLURS)}")
    folder = Path(folder)
    write_json(folder / "report.json", report_figures(report))
    write_text(folder / "report.md", report_markdown(report))
    write_text(folder / "report.html", report_html(report, blur))
    return folder / "report.html"


def page_template(name):
    """Return a template of this folder, in which every value is escaped and none may be missing."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def report_html(report, blur="show"):
    """Return the page as text; arguments as in `write_report`."""
    cells = [c for s in report.sections for g in s.grids for _, row in g.rows for c in row if c]
    return page_template("report.html.j2").render(
        report=report,
        blur=blur,
        version=__version__,
        any_flagged=any(c.flagged for c in cells),
        any_colour=any(t.better for s in report.sections for t in s.tables),
        drawn=lambda c: _drawn(c, blur),
        alt_text=_alt_text,
        flagged_of=flagged_of,
        is_figure=_is_figure,
        bare=_bare,
        note_of=_note,
        value_of=lambda figure: decimal(_point(figure)).replace("-", "\N{MINUS SIGN}"),
        interval_of=lambda figure: interval(figure, "\N{EN DASH}").replace("-", "\N{MINUS SIGN}"),
        hover_text=_hover_text,
        shade=_shade,
        bar=_bar,
        numeric=_numeric,
        support_line=_support_line,
    )


def _drawn(cell, blur):
    """Return what the page needs of a picture; None where it is not at hand."""
    picture = cell.picture() if callable(cell.picture) else cell.picture
    if picture is None:
        return None
    if cell.flagged and blur == "hide":
        picture = blurred(picture)
    height, width = picture.shape[:2]
    return {
        "uri": png_data_uri(picture),
        "width": width,
        "height": height,
        "pixelated": max(width, height) <= PIXEL_ART_SIDE,
    }


def _alt_text(row, column, cell):
    words = [f"{row}, {column}", "flagged by the detector" if cell.flagged else "", cell.note]
    return "; ".join(w for w in words if w)


def flagged_of(grid, cells):
    """Return "3 of 8 flagged" for a row, or "" if the detector fired nowhere in the grid."""
    if not any(c.flagged for _, row in grid.rows for c in row if c):
        return ""
    shown = [c for c in cells if c]
    return f"{sum(c.flagged for c in shown)} of {len(shown)} flagged"


def _is_figure(cell):
    return isinstance(cell, Estimate | Rate | Noted)


def _bare(cell):
    """Return a cell without its note."""
    return cell.figure if isinstance(cell, Noted) else cell


def _note(cell):
    return cell.note if isinstance(cell, Noted) else ""


def _point(figure):
    return figure.share if isinstance(figure, Rate) else figure.value


def decimal(value):
    """Return a figure as printed: .41, -.05, 1.00, 23.4, and "?" for NaN."""
    if math.isnan(value):
        return "?"
    text = f"{abs(value):.2f}" if abs(value) < 9.995 else f"{abs(value):.1f}"
    sign = "-" if value < 0 and float(text) else ""
    return sign + (text[1:] if text.startswith("0.") else text)


def interval(figure, dash="-"):
    """Return a figure's interval as printed: .31-.51, -.12 to .02, or "no interval"."""
    if math.isnan(figure.low):
        return "no interval"
    low, high = decimal(figure.low), decimal(figure.high)
    return f"{low} to {high}" if low.startswith("-") else f"{low}{dash}{high}"


def figure_text(cell):
    """Return a table's cell as one line of text: .41 (.31-.51)."""
    if not _is_figure(cell):
        return cell
    figure, note = _bare(cell), _note(cell)
    return f"{decimal(_point(figure))} ({interval(figure)}){', ' if note else ''}{note}"


def _hover_text(figure):
    bounds = "no interval"
    if not math.isnan(figure.low):
        bounds = f"95% interval {figure.low:.4g} to {figure.high:.4g}"
    return f"{_point(figure):.4g}; {bounds}; {figure.support}"


def _shade(table, column, figure):
    """Return (class, strength in 0..100) of a share's colour, or None; .5 is neutral."""
    direction = table.better.get(column)
    value = _point(figure)
    if direction is None or not 0 <= value <= 1:
        return None
    goodness = value if direction == "high" else 1 - value
    return ("good" if goodness >= 0.5 else "bad", round(200 * abs(goodness - 0.5)))


def _bar(figure):
    """Return (low, point, high) in percent of the scale from 0 to 1; None without interval."""
    if math.isnan(figure.low):
        return None
    return tuple(
        round(100 * min(1, max(0, x)), 1) for x in (figure.low, _point(figure), figure.high)
    )


def _support_line(table):
    """Return one sentence on what the figures rest on; a printed page has no hover texts."""
    figures = [_bare(c) for row in table.rows for c in row if _is_figure(c)]
    if not figures:
        return ""
    line = f"N = {_spread(f.trials if isinstance(f, Rate) else f.count for f in figures)}"
    clusters = [f.clusters for f in figures if isinstance(f, Estimate)]
    return f"{line} in {_spread(clusters)} clusters." if clusters else f"{line}."


def _spread(numbers):
    numbers = sorted(set(numbers))
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"


def _numeric(table):
    """Return for each column whether it holds figures."""
    return [any(_is_figure(row[n]) for row in table.rows) for n in range(len(table.columns))]


def report_figures(report):
    """Return the report as plain values for JSON: every figure with its interval and N."""
    return {
        "title": report.title,
        "lead": report.lead,
        "ine": __version__,
        "sections": [
            {
                "title": section.title,
                "paragraphs": list(section.paragraphs),
                "grids": [_grid_figures(grid) for grid in section.grids],
                "drawings": [{"title": d.title, "caption": d.caption} for d in section.drawings],
                "tables": [_table_figures(table) for table in section.tables],
            }
            for section in report.sections
        ],
        "next_steps": [{"text": text, "command": line} for text, line in report.next_steps],
        "provenance": dict(report.provenance),
    }


def _grid_figures(grid):
    def plain(cell):
        return None if cell is None else {"flagged": bool(cell.flagged), "note": cell.note}

    return {
        "title": grid.title,
        "caption": grid.caption,
        "columns": list(grid.column_labels),
        "rows": [
            {"label": label, "cells": [plain(c) for c in cells]} for label, cells in grid.rows
        ],
    }


def _table_figures(table):
    return {
        "title": table.title,
        "caption": table.caption,
        "columns": list(table.columns),
        "better": dict(table.better),
        "rows": [[_plain(cell) for cell in row] for row in table.rows],
        "notes": list(table.notes),
    }


def _plain(cell):
    if isinstance(cell, str):
        return cell
    if isinstance(cell, Noted):
        return {**_plain(cell.figure), "note": cell.note}
    # JSON has no NaN and no infinity.
    low, high = (x if math.isfinite(x) else None for x in (cell.low, cell.high))
    if isinstance(cell, Rate):
        counts = {"hits": cell.hits, "trials": cell.trials}
        return {"share": cell.share, "low": low, "high": high, **counts}
    counts = {"count": cell.count, "clusters": cell.clusters}
    value = cell.value if math.isfinite(cell.value) else None
    return {"value": value, "low": low, "high": high, **counts}


def report_markdown(report):
    """Return the report as Markdown: all but the pictures, which are in `report.html`."""
    blocks = [f"# {_escape(report.title)}", _escape(report.lead)]
    for section in report.sections:
        blocks += [f"## {_escape(section.title)}", *(_escape(p) for p in section.paragraphs)]
        for part in (*section.grids, *section.drawings, *section.tables):
            blocks += [f"### {_escape(part.title)}", _escape(part.caption)]
            blocks += _blocks(part)
    if report.next_steps:
        blocks.append("## How to go on")
    for text, command in report.next_steps:
        blocks += [_escape(text), command and f"```\n{command}\n```"]
    blocks.append("## Where this came from")
    lines = []
    for key, value in report.provenance.items():
        words = isinstance(value, str)
        lines.append(f"- {_escape(key)}:{' ' + _escape(value) if words else ''}")
        lines += [] if words else [f"  - `{line}`" for line in value]
    blocks.append("\n".join(lines))
    return "\n\n".join(b for b in blocks if b) + "\n"


def _escape(text):
    return re.sub(r"([\\`*_\[\]<>|#&])", r"\\\1", " ".join(text.split()))


def _blocks(part):
    if isinstance(part, Drawing):
        return ["The drawing is in report.html."]
    return _grid_blocks(part) if isinstance(part, PictureGrid) else _table_blocks(part)


def _grid_blocks(grid):
    def words(cell):
        if cell is None:
            return ""
        return " ".join(w for w in ("flagged" if cell.flagged else "", cell.note) if w) or "-"

    rows = [[label, *map(words, cells)] for label, cells in grid.rows]
    columns = ["pictures in report.html", *grid.column_labels]
    return [_markdown_table(columns, rows, [False] * len(columns))]


def _table_blocks(table):
    rows = [[figure_text(cell) for cell in row] for row in table.rows]
    notes = [*table.notes, _support_line(table)]
    return [_markdown_table(table.columns, rows, _numeric(table)), *map(_escape, notes)]


def _markdown_table(columns, rows, numeric):
    lines = [map(_escape, columns), ["---:" if n else "---" for n in numeric]]
    lines += [map(_escape, row) for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def text_table(table):
    """Return a table as aligned plain text, at most 100 columns wide, for the terminal.

    Long cells are wrapped. About 16 columns fit; a table of more gets wider lines.
    """
    rows = [[_atoms(cell) for cell in row] for row in [table.columns, *table.rows]]
    columns = list(zip(*rows, strict=True))
    widths = [max(len(" ".join(atoms)) for atoms in column) for column in columns]
    while sum(widths) + 2 * (len(widths) - 1) > TERMINAL_WIDTH and max(widths) > 4:
        widths[widths.index(max(widths))] -= 1
    numeric = _numeric(table)
    lines = _wrapped(table.title, TERMINAL_WIDTH)
    for number, row in enumerate(rows):
        wrapped = [_pack(atoms, width) for atoms, width in zip(row, widths, strict=True)]
        for depth in range(max(len(cell) for cell in wrapped)):
            words = [cell[depth] if depth < len(cell) else "" for cell in wrapped]
            padded = zip(words, widths, numeric, strict=True)
            line = "  ".join(w.rjust(size) if right else w.ljust(size) for w, size, right in padded)
            lines.append(line.rstrip())
        if number == 0:
            lines.append("  ".join("-" * size for size in widths))
    for note in (table.caption, *table.notes, _support_line(table)):
        lines += _wrapped(note, TERMINAL_WIDTH)
    return "\n".join(lines) + "\n"


def _atoms(cell):
    """Return what may not be torn: words of a text, value and interval of a figure."""
    if not _is_figure(cell):
        return cell.split()
    figure = _bare(cell)
    return [decimal(_point(figure)), f"({interval(figure)})", *_note(cell).split()]


def _wrapped(text, width):
    return _pack(text.split(), width) if text else []


def _pack(atoms, width):
    lines = []
    for atom in atoms:
        if lines and len(lines[-1]) + 1 + len(atom) <= width:
            lines[-1] += " " + atom
        else:
            lines += [atom[at : at + width] for at in range(0, len(atom), width)]
    return lines or [""]
