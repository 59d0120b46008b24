"""`ine demo`: all steps on the bundled model, with a report."""

import logging
from pathlib import Path

import click

from ine.cli import options
from ine.cli.command import IneCommand
from ine.cli.printing import echo_report
from ine.cli.writing import claim_folder

log = logging.getLogger("ine")

CONCEPTS, METHODS = ("fire", "weapon"), ("uce", "esd")


@click.command(cls=IneCommand)
@click.option(
    "--out",
    type=options.OutPath(),
    default=Path("ine-demo"),
    show_default=True,
    help="Folder for weights, embedding, gate, pictures and report.html.",
)
@click.option(
    "--full",
    is_flag=True,
    help="Both erasers and concepts, with controls and several seeds; takes hours.",
)
@click.option(
    "--concept",
    "concepts",
    multiple=True,
    type=click.Choice(CONCEPTS),
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
def demo(
    out: Path,
    full: bool,
    concepts: tuple[str, ...],
    methods: tuple[str, ...],
    seed: int,
    as_json: bool,
) -> None:
    """Unlearn, defend, generate, judge and report on the bundled model.

    Nothing is downloaded; it takes at most two minutes on two cores. Give an interrupted command
    again to resume it. It is `ine unlearn` and `ine defend`, with fewer pictures.
    """
    if not full and (concepts or methods):
        raise click.UsageError("--concept and --method choose parts of --full; give --full too")
    if full and seed:
        raise click.UsageError("--seed is for the quick demo; --full runs several seeds of its own")
    if full:
        from ine.studies.full import run_full

        page = run_full(out, concepts=concepts or CONCEPTS, methods=methods or METHODS)
        echo_report(page, as_json)
        return
    from ine.studies.demo import run_demo

    claim_folder(out)
    page, table, seconds = run_demo(out, seed=seed, tell=log.info)
    echo_report(page, as_json, table, seconds=seconds)
