"""`ine report`: the page of a run folder again, and two run folders compared."""

import json
from pathlib import Path

import click

from ine.cli import options

DIFFERS = 1
"""Exit code of `ine report diff` where something differs."""


class ShowsByDefault(click.Group):
    """A group in which `ine report RUN` is `ine report show RUN`."""

    def parse_args(self, ctx, args):
        """Put "show" before what is neither a command nor a call for help."""
        if args and args[0] not in (*self.commands, *self.get_help_option_names(ctx)):
            args = ["show", *args]
        return super().parse_args(ctx, args)


run_folder = click.Path(path_type=Path)


@click.group(cls=ShowsByDefault)
def report():
    """Write the report of a run folder again, or compare two of them.

    `ine report RUN` is short for `ine report show RUN`. RUN is a folder that `ine evaluate` has
    finished; no model is needed.
    """


@report.command()
@click.argument("run", type=run_folder, metavar="RUN")
@click.option(
    "--store",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder that has the pictures, if it is not the one that the run was made with.",
)
@click.option(
    "--flagged",
    "blur",
    type=click.Choice(["click", "hide", "show"]),
    help="Flagged pictures: blurred until clicked, not in the file, or shown (click; hide for "
    "concepts about people, and where the run does not say).",
)
@click.option(
    "--columns",
    type=click.IntRange(1, 50),
    metavar="N",
    help="Prompts in each grid of pictures (6, fewer where there are many configurations).",
)
@options.json_output
def show(run, store, blur, columns, as_json):
    """Write report.html, report.json and report.md into RUN."""
    from ine.evaluation.grid_report import write_grid_report

    path = write_grid_report(run, store=store, blur=blur, columns=columns)
    if as_json:
        click.echo(path.with_name("report.json").read_text(encoding="utf-8"), nl=False)
    else:
        click.echo(path)


@report.command()
@click.argument("first", type=run_folder, metavar="A")
@click.argument("second", type=run_folder, metavar="B")
@options.json_output
@click.pass_context
def diff(ctx, first, second, as_json):
    """Compare two run folders, figure by figure.

    Where the pictures of both are of the same prompts and seeds, they are compared in pairs, else
    by their intervals. The exit code is 0 if nothing differs and 1 if something does: a
    configuration that only one has, a figure that differs by more than its interval, or what was
    run. Figures within their interval, versions and machines are told and do not count.
    """
    from ine.evaluation.grid_diff import diff_record, diff_runs, diff_summary, diff_tables
    from ine.evaluation.report import text_table
    from ine.evaluation.run_folder import read_run

    found = diff_runs(read_run(first), read_run(second))
    if as_json:
        click.echo(json.dumps(diff_record(found), indent=2, ensure_ascii=False))
    else:
        for table in diff_tables(found):
            click.echo(text_table(table))
        click.echo(diff_summary(found))
    if not found.nothing:
        ctx.exit(DIFFERS)
