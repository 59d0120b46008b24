"""What the pictures of a grid cost, which of them are blank, and which had to be made again."""

import math
from collections.abc import Mapping

import numpy as np

from ine.evaluation.cells import Configuration
from ine.evaluation.metrics.blank import ABOUT as ABOUT_BLANK
from ine.evaluation.metrics.blank import BLANK
from ine.evaluation.metrics.evaluations import CALLS
from ine.evaluation.result import Run
from ine.finite import REDONE
from ine.pictures import blank_line
from ine.report.rows import entry_of, rows_by_configuration, sets_shown
from ine.report.values import Entry, Section, Table


def cost_section(run: Run) -> Section | None:
    """Return what a picture of each configuration costs; None where nothing was made."""
    sets = sets_shown(run)

    def cell(c: Configuration, name: str) -> Entry | None:
        return entry_of(run, c, name, CALLS) if name else ratio_text(run, c)

    rows = rows_by_configuration(run, [*sets, ""], cell)
    table = Table(
        "U-Net evaluations of a picture",
        "Rows of the U-Net's batch, mean: what time is spent on. A gate or a restart costs "
        "more where it opens, so sets differ.",
        ["configuration", *sets, "times the undefended"],
        rows,
    )
    return Section("Cost", tables=[table]) if rows else None


def cost_ratio(run: Run, configuration: Configuration) -> float:
    """Return U-Net evaluations as a multiple of the undefended model's, over all sets of both.

    NaN where no set has both.
    """
    both = (configuration, configuration.undefended)
    sets = [name for name in run.sets if all(run.parts(c, name) for c in both)]
    if not sets:
        return math.nan
    ours, plain = (
        np.concatenate([p.calls for name in sets for p in run.parts(c, name)]) for c in both
    )
    return float(ours.mean() / plain.mean())


def ratio_text(run: Run, configuration: Configuration) -> str | None:
    """Return `cost_ratio` as a cell of a table; None where it is not known."""
    ratio = cost_ratio(run, configuration)
    return None if math.isnan(ratio) else f"{ratio:.2f}"


# --- blank pictures, and those that were made again


def blank_section(run: Run) -> Section | None:
    """Return which pictures are wholly one colour, and how many were made again in float32."""
    numbers = run.about.get("numbers")
    if not numbers:  # of a version that did not count them
        return None
    blank = blank_line(numbers[BLANK], numbers["pictures"]) or (
        f"None of {numbers['pictures']} pictures is blank (wholly one colour)"
    )
    again = numbers_line(numbers)
    words = [f"{blank}. {again}{'.' if again else ''}".strip()]
    if not numbers[BLANK]:
        return Section("Blank pictures", words)
    sets = list(run.sets)
    rows = rows_by_configuration(run, sets, lambda c, name: entry_of(run, c, name, BLANK))
    table = Table("Blank pictures by set", "", ["configuration", *sets], rows)
    return Section("Blank pictures", [*words, ABOUT_BLANK], tables=[table])


def numbers_line(numbers: Mapping[str, int]) -> str:
    """Return how many pictures were generated again in float32, "" for none.

    Args:
        numbers: The entry of that name in `about`.
    """
    if not numbers.get(REDONE):
        return ""
    return (
        f"{numbers[REDONE]} of {numbers['pictures']} pictures were made again in float32, since "
        "numbers behind them were not finite in a narrower type"
    )
