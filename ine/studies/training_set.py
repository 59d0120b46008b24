"""The page of a training set of refinement: what it holds, what is wrong, and its rows."""

from pathlib import Path

import numpy as np

from ine.errors import IneError
from ine.refining.dataset import RefiningSet, Row, Signal
from ine.refining.dataset_check import Checked
from ine.report.page import write_report
from ine.report.values import Cell, PictureGrid, Report, Section, Table
from ine.runtime import library_versions


def write_set_page(
    found: RefiningSet, checked: Checked, folder: Path, most: int = 60, blur: str = "click"
) -> Path:
    """Write the page of a training set; return its path.

    Args:
        found: The set.
        checked: What `check_set` said of it.
        folder: Where the page goes.
        most: Rows that are shown, spread over the set.
        blur: See `ine.report.page.write_report`; pictures in which a rule found something count as
            flagged.
    """
    return write_report(set_report(found, checked, most), folder, blur)


def set_report(found: RefiningSet, checked: Checked, most: int) -> Report:
    """Return the report of a training set; arguments as in `write_set_page`."""
    count = len(found.rows)
    shown = [k * count // min(most, count) for k in range(min(most, count))]
    problems = [problem.line() for problem in checked.problems] or ["Nothing was found."]
    facts = Table(
        "What it holds",
        "",
        ["rows", "count"],
        [
            ["all", str(checked.rows)],
            ["kept", str(checked.keeps)],
            ["rewritten", str(checked.rewrites)],
            ["with what rules saw", str(checked.seen)],
            ["left out by screening", str(checked.refused)],
        ],
    )
    grid = PictureGrid(
        "Rows",
        "The prompt, its picture, and under it the answer and what rules saw.",
        ["picture"],
        [(f"{k + 1}: {found.rows[k].query}", [_cell(found.rows[k])]) for k in shown],
    )
    return Report(
        title=f"ine refine dataset: {found.name}",
        lead=f"{checked.rows} rows, {checked.keeps} of them kept; {len(shown)} are shown.",
        sections=[
            Section("Facts", tables=[facts]),
            Section("Problems", paragraphs=problems),
            Section("Rows", grids=[grid]),
        ],
        provenance={"versions": library_versions()},
    )


def _cell(row: Row) -> Cell:
    said = [_said(signal) for signal in (*row.textual, *row.visual)]
    flagged = any(signal.unsafe for signal in row.visual)
    return Cell(lambda: _picture(row), flagged, "; ".join([f"answer: {row.response}", *said]))


def _picture(row: Row) -> np.ndarray | None:
    """Return a picture, None where it cannot be read; the page says so in its place."""
    try:
        return row.picture
    except IneError:
        return None


def _said(signal: Signal) -> str:
    return f"{signal.rule} {signal.score:.2f}{' (unsafe)' if signal.unsafe else ''}"
