"""`ine report`: write the report of a run folder again, as a page of results, or compare two."""

import json
from pathlib import Path

import click

from ine.cli import options
from ine.cli.command import DefaultingGroup

DIFFERS = 1
"""Exit code of `ine report diff` where something differs."""


class ShowsByDefault(DefaultingGroup):
    """A group in which `ine report RUN` is `ine report show RUN`."""

    default = "show"


run_folder = click.Path(path_type=Path)


@click.group(cls=ShowsByDefault)
def report() -> None:
    """Write the report of a run folder again, or compare two of them.

    `ine report RUN` is short for `ine report show RUN`. RUN is a folder of a finished
    `ine evaluate`; no model is needed.
    """


@report.command()
@click.argument("runs", type=run_folder, metavar="RUN...", nargs=-1, required=True)
@click.option(
    "--store",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder that holds the pictures, if they were moved after the run.",
)
@click.option(
    "--flagged",
    "blur",
    type=click.Choice(["click", "hide", "show"]),
    help="Flagged pictures: click blurs them until clicked, hide leaves them out of the file, show "
    "shows them (click; hide for concepts about people, and if the run does not say).",
)
@click.option(
    "--columns",
    type=click.IntRange(1, 50),
    metavar="N",
    help="Prompts in each grid of pictures (6, fewer if there are many configurations).",
)
@click.option(
    "--markdown",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the tables of all RUNs to this page instead. A RUN may also be a folder in which "
    "`ine demo`, `ine compare` or `ine audit` wrote a report.",
)
@options.json_output
def show(
    runs: tuple[Path, ...],
    store: Path | None,
    blur: str | None,
    columns: int | None,
    markdown: Path | None,
    as_json: bool,
) -> None:
    """Write report.html, report.json and report.md into RUN, or tables into one page."""
    from ine.report.grid import write_grid_report
    from ine.report.results_page import write_results_page

    if markdown is not None:
        if store or blur or columns or as_json:
            raise click.UsageError("--markdown writes tables alone; give it no other option")
        write_results_page(runs, markdown)
        click.echo(markdown)
        return
    if len(runs) > 1:
        raise click.UsageError("several RUNs go into one page: give --markdown FILE")
    path = write_grid_report(runs[0], store=store, blur=blur, columns=columns)
    if as_json:
        click.echo(path.with_name("report.json").read_text(encoding="utf-8"), nl=False)
    else:
        click.echo(path)


@report.command()
@click.argument("first", type=run_folder, metavar="A")
@click.argument("second", type=run_folder, metavar="B")
@options.json_output
@click.pass_context
def diff(ctx: click.Context, first: Path, second: Path, as_json: bool) -> None:
    """Compare two run folders, figure by figure.

    Pictures of the same prompts and seeds are compared in pairs, others by their intervals. The
    exit code is 1 if a configuration is in one run only, if a figure differs by more than its
    interval, or if the runs had other settings; else 0. Differences within an interval, versions
    and machines are printed and do not count.
    """
    from ine.evaluation.run_folder import read_run
    from ine.report.diff import diff_runs
    from ine.report.diff_shown import diff_record, diff_summary, diff_tables
    from ine.report.text import text_table

    found = diff_runs(read_run(first), read_run(second))
    if as_json:
        click.echo(json.dumps(diff_record(found), indent=2, ensure_ascii=False))
    else:
        for table in diff_tables(found):
            click.echo(text_table(table))
        click.echo(diff_summary(found))
    if not found.nothing:
        ctx.exit(DIFFERS)
