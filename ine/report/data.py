"""A report as plain values for JSON, every figure with its interval and N; and read back."""

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

from ine import __version__
from ine.evaluation.stats import Estimate, Rate
from ine.report.values import Cell, Drawing, Entry, Noted, PictureGrid, Report, Section, Table

LEFT_OUT = {Cell: ("picture",), Drawing: ("svg",)}
"""What stands in the page only."""


def report_figures(report: Report) -> dict[str, Any]:
    """Return a report as plain values: all but pictures and drawings."""
    steps = [{"text": text, "command": line} for text, line in report.next_steps]
    return {**_plain(report), "ine": __version__, "next_steps": steps}


def _plain(value: Any) -> Any:
    """Return values, and what they are made of, as JSON has them."""
    if isinstance(value, Noted):
        return {**_plain(value.figure), "note": value.note}
    if isinstance(value, Rate):
        return {"share": value.share, **_fields(value)}
    if isinstance(value, PictureGrid):
        rows = [{"label": label, "cells": _plain(cells)} for label, cells in value.rows]
        own = {"title": value.title, "caption": value.caption}
        return {**own, "columns": list(value.column_labels), "rows": rows}
    if is_dataclass(value):
        return _fields(value)
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, np.generic):
        value = value.item()
    # JSON has no NaN and no infinity.
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _fields(value: Any) -> dict[str, Any]:
    left_out = LEFT_OUT.get(type(value), ())
    return {f.name: _plain(getattr(value, f.name)) for f in fields(value) if f.name not in left_out}


def report_of(data: Mapping[str, Any]) -> Report:
    """Return the report of plain values, without pictures, drawings, and how to go on.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: They are not those of a report.
    """
    return Report(
        title=data["title"],
        lead=data["lead"],
        sections=[
            Section(s["title"], s["paragraphs"], tables=[_table(t) for t in s["tables"]])
            for s in data["sections"]
            if s["tables"] or not s["grids"]
        ],
        provenance=data["provenance"],
    )


def _table(data: Mapping[str, Any]) -> Table:
    rows = [[_entry(cell) for cell in row] for row in data["rows"]]
    own = {name: data[name] for name in ("title", "caption", "columns", "notes", "better")}
    return Table(**own, rows=rows)


def _entry(cell: str | dict[str, Any]) -> Entry:
    if isinstance(cell, str):
        return cell
    known: dict[str, Any] = {k: math.nan if v is None else v for k, v in cell.items()}
    note, share = known.pop("note", ""), known.pop("share", None)
    figure = Estimate(**known) if share is None else Rate(**known)
    return Noted(figure, note) if note else figure
