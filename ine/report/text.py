"""Tables as plain text for the terminal, and figures as one line of text."""

import math
import textwrap
from itertools import zip_longest

from ine.evaluation.stats import Estimate, Rate, decimal
from ine.report.values import Entry, Table, noted

WIDTH = 100
HELD = "\N{NO-BREAK SPACE}"
"""Stands for a space at which no line may break."""


def interval(figure: Estimate | Rate, dash: str = "-") -> str:
    """Return a figure's interval as printed: .31-.51, -.12 to .02, or "no interval"."""
    if math.isnan(figure.low):
        return "no interval"
    low, high = decimal(figure.low), decimal(figure.high)
    return f"{low} to {high}" if low.startswith("-") else f"{low}{dash}{high}"


def figure_text(cell: Entry, before_note: str = ", ") -> str:
    """Return a table's cell as one line of text: .41 (.31-.51)."""
    found = noted(cell)
    if found is None:
        return str(cell)
    text = f"{decimal(found.figure.value)} ({interval(found.figure)})"
    return f"{text}{before_note}{found.note}" if found.note else text


def text_table(table: Table) -> str:
    """Return a table as aligned plain text, at most 100 columns wide, for the terminal.

    Long cells are wrapped, but not within an interval. About 16 columns fit; a table of more gets
    wider lines.
    """
    rows = [[_held(cell) for cell in row] for row in [table.columns, *table.rows]]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    while sum(widths) + 2 * (len(widths) - 1) > WIDTH and max(widths) > 4:
        widths[widths.index(max(widths))] -= 1
    lines = _wrapped(table.title, WIDTH)
    for number, row in enumerate(rows):
        cells = [_wrapped(cell, size) or [""] for cell, size in zip(row, widths, strict=True)]
        for words in zip_longest(*cells, fillvalue=""):
            padded = zip(words, widths, table.numeric, strict=True)
            line = "  ".join(w.rjust(size) if right else w.ljust(size) for w, size, right in padded)
            lines.append(line.rstrip())
        if number == 0:
            lines.append("  ".join("-" * size for size in widths))
    for note in (table.caption, *table.footnotes):
        lines += _wrapped(note, WIDTH)
    return "\n".join(lines).replace(HELD, " ") + "\n"


def _held(cell: Entry) -> str:
    """Return a cell's text; what stands in brackets behind a figure is held together."""
    found = noted(cell)
    if found is None:
        return " ".join(str(cell).split())
    between = interval(found.figure).replace(" ", HELD)
    return f"{decimal(found.figure.value)} ({between}) {found.note}".strip()


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, max(1, width), break_on_hyphens=False)
