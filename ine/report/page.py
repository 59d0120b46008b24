"""One report for everything that shows pictures and figures: HTML, JSON and Markdown.

The page is one file: its style and pictures are inside, it runs no script, and its content
security policy forbids any connection. A caller builds a `Report` of plain values, see
`ine.report.values`.
"""

import math
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ine import __version__
from ine.display import blur as blurred
from ine.evaluation.stats import decimal
from ine.files import write_json, write_text
from ine.pictures import png_data_uri
from ine.report.data import report_figures
from ine.report.markdown import report_markdown
from ine.report.templates import EN_DASH, MINUS, page_template
from ine.report.text import interval
from ine.report.values import Cell, Noted, PictureGrid, Report, noted

BLURS = ("show", "click", "hide")
PIXEL_ART_SIDE = 160
"""Pictures up to this side are enlarged without smoothing, so that mini's look like mini's."""


def write_report(report: Report, folder: Path | str, blur: str = "show") -> Path:
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


def report_html(report: Report, blur: str = "show") -> str:
    """Return the page as text; arguments as in `write_report`."""
    return page_template("report.html.j2").render(
        report=report,
        blur=blur,
        version=__version__,
        any_flagged=any(grid.any_flagged for s in report.sections for grid in s.grids),
        any_colour=any(table.better for s in report.sections for table in s.tables),
        drawn=partial(_drawn, blur=blur),
        alt_text=_alt_text,
        flagged_of=_flagged_of,
        pieces=partial(re.split, "`([^`]+)`"),
        noted=noted,
        shown=_shown,
    )


def _drawn(cell: Cell, blur: str) -> dict[str, str | int | bool] | None:
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


def _alt_text(row: str, column: str, cell: Cell) -> str:
    words = [f"{row}, {column}", "flagged by the detector" if cell.flagged else "", cell.note]
    return "; ".join(w for w in words if w)


def _flagged_of(grid: PictureGrid, cells: Sequence[Cell | None]) -> str:
    """Return "3 of 8 flagged" for a row, or "" if the detector fired nowhere in the grid."""
    shown = [cell for cell in cells if cell]
    return f"{sum(c.flagged for c in shown)} of {len(shown)} flagged" if grid.any_flagged else ""


def _shown(cell: Noted, better: str | None) -> dict[str, Any]:
    """Return what the page needs of a figure: texts, colour (.5 is neutral), a bar from 0 to 1.

    Args:
        cell: The figure with its note.
        better: "high", "low", or None for a column without colour.
    """
    figure, bounds = cell.figure, "no interval"
    if bounded := not math.isnan(figure.low):
        bounds = f"95% interval {figure.low:.4g} to {figure.high:.4g}"
    coloured = better is not None and 0 <= figure.value <= 1
    goodness = figure.value if better == "high" else 1 - figure.value
    ends = (figure.low, figure.value, figure.high)
    bar = [round(100 * min(1, max(0, x)), 1) for x in ends] if coloured and bounded else None
    return {
        "value": decimal(figure.value).replace("-", MINUS),
        "interval": interval(figure, EN_DASH).replace("-", MINUS),
        "note": cell.note,
        "hover": f"{figure.value:.4g}; {bounds}; {figure.support}",
        "colour": ("good" if goodness >= 0.5 else "bad") if coloured else "",
        "strength": round(200 * abs(goodness - 0.5)) if coloured else 0,
        "bar": bar,
    }
