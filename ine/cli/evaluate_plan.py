"""`ine evaluate --dry-run`: the cells of a grid, what is missing of them, and what it costs."""

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from ine.evaluation.cells import Cell
    from ine.evaluation.plan import Plan


@dataclass
class Estimate:
    """What is left to do of a plan; NFE is the number of function evaluations of the U-Net."""

    plan: "Plan"
    stored: dict[str, bool]
    """{key of a unit: whether it is finished}."""

    counted: set[str] = field(default_factory=set)
    """Units whose cost is counted already: cells share units."""

    rates: dict[str, float | None] = field(default_factory=dict)
    """{model: seconds of an evaluation, None if its weights are not here}."""

    nfe: float = 0
    seconds: float = 0.0
    complete: bool = True
    """False if a prompt set is not on this machine, so that its size is unknown."""

    def add(self, cell: "Cell") -> dict[str, Any]:
        """Add the cost of a cell; return its line as plain values, None for what is unknown."""
        plan, configuration = self.plan, cell.configuration
        known_guidance = not configuration.is_defended or plan.guidances[configuration]
        cost = plan.cost(configuration)
        units = plan.units_of.get(cell)
        pictures = plan.pictures(cell)
        self._add_nfe(configuration.model, self._missing(units, pictures) * cost.nfe)
        return {
            "configuration": configuration.label,
            "prompts": cell.prompts,
            "seed": cell.seed,
            "pictures": pictures,
            "there": None
            if units is None
            else sum(len(unit.requests) for unit in units if self.stored[unit.key]),
            "calls": cost.nfe,
            "exact": cost.exact and bool(known_guidance),
        }

    def _missing(self, units: Any, pictures: int | None) -> int:
        """Return how many pictures of a cell have to be made, those that fill a unit included."""
        if units is None:
            self.complete = self.complete and pictures is not None
            return pictures or 0
        fresh = [u for u in units if not self.stored[u.key] and u.key not in self.counted]
        self.counted |= {unit.key for unit in fresh}
        return sum(unit.sampler.batch for unit in fresh)

    def _add_nfe(self, model: str, nfe: float) -> None:
        """Add evaluations of a model, and the time that they take."""
        from ine.evaluation.rates import rate_of

        self.nfe += nfe
        if nfe and model not in self.rates:
            self.rates[model] = rate_of(self.plan, model)
        self.seconds += nfe * ((self.rates[model] if nfe else None) or 0)


def plan_lines(plan: "Plan") -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return (a plain record per cell, totals) of a plan; None for what is unknown."""
    stored = {unit.key: plan.store.has_unit(unit.key) for unit in plan.units}
    estimate = Estimate(plan=plan, stored=stored)
    lines = [estimate.add(cell) for cell in plan.cells]
    counts = [line["pictures"] for line in lines]
    complete = estimate.complete and None not in counts
    timed = complete and all(rate is not None for rate in estimate.rates.values())
    seconds = estimate.seconds
    total = {
        "cells_count": len(lines),
        "pictures": sum(counts) if complete else None,
        "there": sum(line["there"] or 0 for line in lines),
        "evaluations": round(estimate.nfe) if complete else None,
        "seconds": round(seconds, 1) if timed else None,
        "eta": f", about {duration(seconds)} on one process" if timed and estimate.nfe else "",
    }
    return lines, total


def print_plan(plan: "Plan", as_json: bool) -> None:
    """Print the cells of a grid, what is finished of them, and what the rest costs."""
    from ine.report.text import text_table
    from ine.report.values import Table

    lines, total = plan_lines(plan)
    if as_json:
        shown = {"grid": plan.file.grid.name, "cells": lines, **total}
        click.echo(json.dumps({**shown, "missing": list(plan.missing)}, indent=2))
        return
    columns = ["cell", "prompts", "pictures", "finished", "NFE per picture"]
    rows = [
        [
            line["configuration"],
            f"{line['prompts']}, seed {line['seed']}",
            _known(line["pictures"]),
            _known(line["there"]),
            f"{'' if line['exact'] else 'about '}{line['calls']:g}",
        ]
        for line in lines
    ]
    click.echo(text_table(Table(plan.file.grid.name, plan.file.grid.about, columns, rows)))
    click.echo(
        f"{total['cells_count']} cells, {_known(total['pictures'])} pictures, "
        f"{_known(total['there'])} of them finished; {_known(total['evaluations'])} U-Net "
        f"evaluations (NFE) to do{total['eta']}"
    )
    for problem in plan.missing:
        click.echo(f"missing: {problem}")


def duration(seconds: float) -> str:
    """Return "40 s", "12 min", "3 h 20 min" or "2 d 3 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def _known(value: float | None) -> str:
    return "?" if value is None else f"{value}"
