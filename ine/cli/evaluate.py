"""`ine evaluate`: run a grid, resume it, share it, score it."""

import json
import logging
import re
import time
from pathlib import Path

import click

from ine.cli import options
from ine.cli.progress import bar

log = logging.getLogger("ine")

TELL_EVERY = 30
"""Seconds between lines of progress where there is no terminal for a bar."""

ROUNDS = 3
"""How often pictures are made again that somebody removes between making and scoring."""


FOLDER = click.Path(path_type=Path, readable=False)
"""Whether it can be read and written turns out when it is, with advice."""


class Shard(click.ParamType):
    """One part of several, "i/n" with 0 <= i < n."""

    name = "i/n"

    def convert(self, value, param, ctx):
        """Return (i, n), or fail."""
        if not isinstance(value, str):
            return value
        found = re.fullmatch(r"(\d+)/(\d+)", value)
        if not found or not int(found[1]) < int(found[2]):
            self.fail(f"{value!r}: expected i/n with 0 <= i < n, such as 0/2", param, ctx)
        return int(found[1]), int(found[2])


@click.command()
@click.argument("grid", metavar="GRID.yaml")
@click.option(
    "--out",
    type=FOLDER,
    metavar="DIR",
    help="Run folder; several processes may share it. Default ine-evaluate/NAME, after the grid.",
)
@click.option(
    "--store",
    type=FOLDER,
    metavar="DIR",
    help="Folder for pictures that several grids share; without it the run folder.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Show cells, pictures, U-Net evaluations and the time they take; make nothing.",
)
@click.option("--limit", type=click.IntRange(1), metavar="N", help="At most N pictures per cell.")
@click.option(
    "--only",
    multiple=True,
    metavar="KEY=VALUE",
    help="Only cells with this model, guidance, negative, strength, prompts, role, expects or "
    "seed; may be repeated: of one key any, of several keys all.",
)
@click.option(
    "--shard",
    type=Shard(),
    metavar="I/N",
    help="Make only part I (from 0) of N of the work; whoever completes it scores.",
)
@options.force
@options.device
@options.dtype
@options.json_output
def evaluate(grid, out, store, dry_run, limit, only, shard, force, device, dtype, as_json):
    """Run a grid: models x guidances x negatives x prompt sets x seeds; score it.

    GRID.yaml is a file or the name of a shipped grid. Pictures are kept by what made them: a run
    that was interrupted goes on where it stopped, a changed rule scores what is there, and other
    grids with the same --store use it too. Start it several times, or with `accelerate launch`,
    to share the work. --force gives the run folder of another grid to this one.
    """
    from ine.evaluation.engine import Share, enter_folder, prepare, run
    from ine.evaluation.grid import load_grid
    from ine.evaluation.grid_report import write_grid_report
    from ine.evaluation.report import text_table
    from ine.evaluation.results import figure_record, tables, write_results
    from ine.runtime import process_place

    file = load_grid(grid)
    folder = out or Path("ine-evaluate") / file.grid.name
    if dry_run:
        given = {"store": store, "only": only, "limit": limit, "device": device, "dtype": dtype}
        tell_plan(prepare(file, folder, lenient=True, **given), as_json)
        return
    rank, count, own = process_place(device)
    plan = prepare(file, folder, store=store, only=only, limit=limit, device=own, dtype=dtype)
    enter_folder(plan, force)
    share = Share(rank=rank, count=count, shard=shard)
    with telling(quiet=rank > 0) as tell:
        if rank > 0:  # the first one scores
            run(plan, share, tell)
            return
        scored = _scored(plan, share, tell, run)
    if scored is None:
        log.info("this shard is done; others are not, so nothing is scored yet")
        return
    write_results(scored)
    write_grid_report(folder, store=plan.store.folder)
    if as_json:
        figures = [figure_record(scored, figure) for figure in scored.figures]
        shown = {"out": str(folder), "figures": figures}
        click.echo(json.dumps(shown, indent=2, ensure_ascii=False))
        return
    for table in tables(scored):
        click.echo(text_table(table))
    click.echo(f"results: {folder} (report.html, results.csv, pictures.jsonl)")


def _scored(plan, share, tell, run):
    """Return the `Scored` grid, None where other shards have still to do."""
    from ine.errors import OutputError
    from ine.evaluation.score import score
    from ine.evaluation.store import Missing

    for _ in range(ROUNDS):
        if not run(plan, share, tell):
            return None
        try:
            return score(plan)
        except Missing as error:
            log.warning("%s; it is made again", error)
            problem = error
    raise OutputError(f"{problem}, again and again; does something clean up this folder?")


class telling:
    """A bar on a terminal, else a line now and then; called with `Progress`."""

    def __init__(self, quiet=False):
        self.quiet, self.update, self.last = quiet, None, time.monotonic()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if self.update:
            self.context.__exit__(*error)

    def __call__(self, progress):
        """Tell how far a run is."""
        if self.update is None:
            self.context = bar(progress.total, "pictures", self.quiet)
            self.update = self.context.__enter__()
        self.update(progress.done)
        now = time.monotonic()
        ended = progress.done == progress.total and progress.made
        if not self.quiet and progress.made and (now - self.last > TELL_EVERY or ended):
            self.last = now
            log.info("%s", told(progress))


def told(progress):
    """Return a line about a `Progress`: pictures, pictures a second, time left."""
    rate = progress.made / max(progress.seconds, 1e-9)
    left = (progress.total - progress.done) / rate
    after = f", {duration(left)} left" if progress.done < progress.total else ""
    return f"{progress.done} of {progress.total} pictures, {rate:.2f} pictures/s here{after}"


def duration(seconds):
    """Return "40 s", "12 min", "3 h 20 min" or "2 d 3 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def tell_plan(plan, as_json):
    """Print the expansion of a grid: what there is to do, and what is there already."""
    from ine.evaluation.report import Table, text_table

    lines, total = plan_lines(plan)
    if as_json:
        shown = {"grid": plan.file.grid.name, "cells": lines, **total}
        click.echo(json.dumps({**shown, "missing": list(plan.missing)}, indent=2))
        return
    columns = ["cell", "prompts", "pictures", "there", "U-Net evaluations a picture"]
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
        f"{_known(total['there'])} of them there; {_known(total['evaluations'])} U-Net evaluations "
        f"to make{total['eta']}"
    )
    for problem in plan.missing:
        click.echo(f"missing: {problem}")


def plan_lines(plan):
    """Return (a plain record per cell, totals) of a plan; what is not known is None."""
    from ine.evaluation.engine import rate_of

    lines, rates, seconds, evaluations = [], {}, 0.0, 0
    there = {unit.key: plan.store.has_unit(unit.key) for unit in plan.units}
    counted, known = set(), True
    for cell in plan.expansion.cells:
        configuration = cell.configuration
        guidance_known = not configuration.is_defended or plan.expansion.guidances[configuration]
        cost = plan.cost(configuration)
        units = plan.units_of.get(cell)
        pictures = plan.pictures(cell)
        made = None
        if units is not None:
            made = sum(len(u.requests) for u in units if there[u.key])
            fresh = [u for u in units if not there[u.key] and u.key not in counted]
            counted |= {u.key for u in fresh}
            # Repetitions that fill a unit are made too.
            calls = sum(u.sampler.batch for u in fresh) * cost.calls
        elif pictures is None:
            known, calls = False, 0
        else:
            calls = pictures * cost.calls
        evaluations += calls
        model = configuration.model
        if calls and model not in rates:
            rates[model] = rate_of(plan, model)
        if calls and rates[model] is not None:
            seconds += calls * rates[model]
        lines.append(
            {
                "configuration": configuration.label,
                "prompts": cell.prompts,
                "seed": cell.seed,
                "pictures": pictures,
                "there": made,
                "calls": cost.calls,
                "exact": cost.exact and bool(guidance_known),
            }
        )
    counts = [line["pictures"] for line in lines]
    whole = known and None not in counts
    timed = all(rate is not None for rate in rates.values()) and whole
    total = {
        "cells_count": len(lines),
        "pictures": sum(counts) if whole else None,
        "there": sum(line["there"] or 0 for line in lines),
        "evaluations": round(evaluations) if whole else None,
        "seconds": round(seconds, 1) if timed else None,
        "eta": f", about {duration(seconds)} on one process" if timed and evaluations else "",
    }
    return lines, total


def _known(value):
    return "?" if value is None else f"{value}"
