"""`ine evaluate`: run a grid in one or several processes, resume it, score it."""

import json
import logging
import re
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ine.cli import options
from ine.cli.command import IneCommand
from ine.cli.evaluate_plan import duration, print_plan
from ine.cli.progress import bar
from ine.cli.writing import join_folder

if TYPE_CHECKING:
    from ine.evaluation.result import Run
    from ine.evaluation.run import Progress

log = logging.getLogger("ine")

TELL_EVERY = 30
"""Seconds between lines of progress if there is no terminal for a bar."""


class Shard(click.ParamType):
    """One part of several, "i/n" with 0 <= i < n."""

    name = "i/n"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        """Return (i, n), or fail."""
        if not isinstance(value, str):
            return value
        found = re.fullmatch(r"(\d+)/(\d+)", value)
        if not found or not int(found[1]) < int(found[2]):
            self.fail(f"{value!r}: expected i/n with 0 <= i < n, such as 0/2", param, ctx)
        return int(found[1]), int(found[2])


@click.command(cls=IneCommand)
@click.argument("grid", metavar="GRID.yaml")
@click.option(
    "--out",
    type=options.OutPath(),
    metavar="DIR",
    help="Run folder; several processes may share it. Default: ine-evaluate/NAME of the grid.",
)
@click.option(
    "--store",
    type=options.OutPath(),
    metavar="DIR",
    help="Folder for pictures that several grids share; without it the run folder.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Show cells, pictures, U-Net evaluations (NFE) and time; make nothing.",
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
    help="Do only part I (from 0) of N of the work; the process that completes the grid scores it.",
)
@options.overrides
@options.force
@options.device
@options.dtype
@options.json_output
def evaluate(
    grid: str,
    out: Path | None,
    store: Path | None,
    dry_run: bool,
    limit: int | None,
    only: tuple[str, ...],
    shard: tuple[int, int] | None,
    overrides: tuple[str, ...],
    force: bool,
    device: str,
    dtype: str,
    as_json: bool,
) -> None:
    """Run a grid of models, guidances, negatives, prompt sets and seeds; score it.

    GRID.yaml is a file or the name of a shipped grid. Pictures are stored under what made them:
    give an interrupted command again to resume it, change a rule to score the stored pictures
    again, and share pictures between grids with --store. Start the command several times, or with
    `accelerate launch`, to share the work. --force reuses the run folder of another grid.
    """
    from ine.evaluation.entering import enter_folder
    from ine.evaluation.grid_file import load_grid
    from ine.evaluation.prepare import prepare
    from ine.evaluation.results import write_results
    from ine.evaluation.run import Share, run, run_and_score
    from ine.report.grid import write_grid_report
    from ine.runtime import process_place

    file = load_grid(grid, overrides)
    folder = out or Path("ine-evaluate") / file.grid.name
    if dry_run:
        given: dict[str, Any] = {
            "store": store,
            "only": only,
            "limit": limit,
            "device": device,
            "dtype": dtype,
        }
        print_plan(prepare(file, folder, lenient=True, **given), as_json)
        return
    rank, count, own = process_place(device)
    plan = prepare(file, folder, store=store, only=only, limit=limit, device=own, dtype=dtype)
    enter_folder(plan, force, join_folder(folder, file.digest[:12]))
    share = Share(rank=rank, count=count, shard=shard)
    with ProgressReport(quiet=rank > 0) as progress:
        if rank > 0:  # the first one scores
            run(plan, share, progress)
            return
        scored = run_and_score(plan, share, progress)
    if scored is None:
        log.info("this shard is done, others are not, so nothing is scored yet")
        return
    write_results(scored)
    write_grid_report(scored)
    _print_scored(scored, folder, as_json)


def _print_scored(scored: "Run", folder: Path, as_json: bool) -> None:
    """Print the figures of a grid."""
    from ine.evaluation.results import figure_record
    from ine.report.costs import numbers_line
    from ine.report.terminal import tables
    from ine.report.text import text_table

    if as_json:
        figures = [figure_record(scored, figure) for figure in scored.figures]
        shown = {"out": str(folder), "figures": figures}
        click.echo(json.dumps(shown, indent=2, ensure_ascii=False))
        return
    for table in tables(scored):
        click.echo(text_table(table))
    again = numbers_line(scored.about["numbers"])
    if again:
        click.echo(again)
    click.echo(f"results: {folder} (report.html, results.csv, pictures.jsonl)")


class ProgressReport:
    """A progress bar on a terminal, else a line now and then; called with `Progress`."""

    def __init__(self, quiet: bool = False) -> None:
        """Report nothing if `quiet`."""
        self.quiet, self.last = quiet, time.monotonic()
        self.stack = ExitStack()
        self.update: Callable[..., None] | None = None

    def __enter__(self) -> "ProgressReport":
        """Return itself."""
        return self

    def __exit__(self, *error: Any) -> None:
        """Close the bar."""
        self.stack.close()

    def __call__(self, progress: "Progress") -> None:
        """Report how far a run is."""
        if self.update is None:
            self.update = self.stack.enter_context(bar(progress.total, "pictures", self.quiet))
        self.update(progress.done)
        now = time.monotonic()
        ended = progress.done == progress.total and progress.made
        if not self.quiet and progress.made and (now - self.last > TELL_EVERY or ended):
            self.last = now
            log.info("%s", progress_line(progress))


def progress_line(progress: "Progress") -> str:
    """Return a line about a `Progress`: pictures, pictures a second, time left."""
    rate = progress.made / max(progress.seconds, 1e-9)
    left = (progress.total - progress.done) / rate
    after = f", {duration(left)} left" if progress.done < progress.total else ""
    return f"{progress.done} of {progress.total} pictures, {rate:.2f} pictures/s here{after}"
