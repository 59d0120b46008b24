"""`ine demo`: the whole story on the bundled model, with a report."""

import json
import logging
from pathlib import Path

import click

from ine.cli import options

log = logging.getLogger("ine")

METHODS = ("uce", "esd")


@click.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("ine-demo"),
    show_default=True,
    help="Folder for weights, embedding, cells and report.html.",
)
@click.option("--full", is_flag=True, help="Both erasers and concepts, controls, seeds: hours.")
@click.option(
    "--concept",
    "concepts",
    multiple=True,
    type=click.Choice(["fire", "weapon"]),
    help="--full: only this concept; may be repeated.",
)
@click.option(
    "--method",
    "methods",
    multiple=True,
    type=click.Choice(METHODS),
    help="--full: only this eraser; may be repeated.",
)
@options.seed
@options.json_output
def demo(out, full, concepts, methods, seed, as_json):
    """Unlearn, invert, generate, judge and report on the bundled model.

    Nothing is downloaded; about three minutes on two cores. What is finished in --out is kept,
    so an interrupted demo goes on where it stopped.
    """
    from ine.evaluation.report import text_table

    if not full and (concepts or methods):
        raise click.UsageError("--concept and --method choose parts of --full; give --full too")
    if full and seed:
        raise click.UsageError("--seed is for the quick demo; --full runs several seeds of its own")
    if full:
        from ine.evaluation.full import run_full

        path = run_full(out, concepts=concepts or ("fire", "weapon"), methods=methods or METHODS)
        if as_json:
            click.echo((path.parent / "report.json").read_text())
            return
        click.echo(f"report: {path}")
        return
    from ine.evaluation.demo import run_demo

    path, table, seconds = run_demo(out, seed=seed, tell=log.info)
    if as_json:
        figures = json.loads((path.parent / "report.json").read_text())
        click.echo(json.dumps({"report": str(path), "seconds": seconds, **figures}, indent=2))
        return
    click.echo(text_table(table))
    click.echo(f"report: {path}")
