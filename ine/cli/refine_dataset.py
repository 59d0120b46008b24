"""`ine refine dataset`: build, check and show training sets of refinement."""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ine.cli import choose, options
from ine.cli.command import IneCommand, IneSubgroup, expert
from ine.cli.guiding import DefenceOptions, defending_beside_observer
from ine.cli.model import ModelOptions
from ine.cli.progress import bar
from ine.cli.refine_generator import GeneratorOptions, generating, generator_of
from ine.cli.sampling import SamplingOptions
from ine.cli.writing import claim_file, claim_folder
from ine.errors import PromptError

if TYPE_CHECKING:
    from ine.refining.dataset_check import Checked

log = logging.getLogger("ine")

PLACE = click.argument("place", metavar="SET", type=click.Path(path_type=Path))


@click.group(cls=IneSubgroup)
def dataset() -> None:
    """Build, check and show training sets: prompts with pictures and answers.

    A set is a .parquet file as ToxiClean-IT is published, or a folder with rows.jsonl and pictures.
    """


@dataset.command(cls=IneCommand)
@click.option(
    "--prompts",
    required=True,
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Prompts, screened: a text, csv, jsonl or json file, or a set such as "
    "mini:fire/implying-tuning; may be repeated.",
)
@options.prompt_rows
@expert(
    "--limit", type=click.IntRange(1), metavar="N", help="Only the first N prompts of each file."
)
@click.option(
    "--teacher",
    required=True,
    metavar="SPEC",
    help="Who answers: openai:URL#MODEL, vlm:FOLDER_OR_ID, or teacher:CONCEPT, rules for the "
    "bundled model; the key of a server is read from INE_OBSERVER_KEY.",
)
@click.option(
    "--rule",
    "rules",
    multiple=True,
    metavar="NAME",
    help="Rule that every picture is scored by, see `ine judge list`; may be repeated.",
)
@expert(
    "--words",
    multiple=True,
    metavar="CONCEPT",
    help="Recipe whose words are looked for in every prompt; may be repeated.",
)
@defending_beside_observer
@options.opening
@options.sampler
@generating
@expert(
    "--per-prompt",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Pictures of each prompt.",
)
@options.seed
@click.option(
    "--out",
    type=options.OutPath(),
    required=True,
    help="A folder (rows.jsonl and pictures), or a .parquet file.",
)
@expert(
    "--store",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder that keeps pictures, readings and replies, also for training; by default beside "
    "--out.",
)
@expert("--force", is_flag=True, help="Replace a set that is there.")
@options.json_output
def build(
    prompts: tuple[Path, ...],
    filters: Mapping[str, Any],
    limit: int | None,
    teacher: str,
    rules: tuple[str, ...],
    words: tuple[str, ...],
    defence: DefenceOptions,
    model: ModelOptions,
    sampling: SamplingOptions,
    generating: GeneratorOptions,
    per_prompt: int,
    seed: int,
    out: Path,
    store: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Build a set: a picture of every prompt, what rules see, and a teacher's answer.

    Answers that are neither keep nor a prompt are left out and counted. Give an interrupted command
    again to go on.
    """
    from ine.observers.table import ObserverSettings
    from ine.refining.dataset_check import check_set
    from ine.refining.dataset_files import read_set, write_set
    from ine.refining.settings import RefineSettings
    from ine.refining.table import load_rewriter
    from ine.store.pictures import Store
    from ine.training.building import build_set, signals_of
    from ine.training.kept_pictures import KeptPictures

    _check_out(out, force)
    (claim_file if out.suffix == ".parquet" else claim_folder)(out)
    rows = choose.rows_of_all(prompts, filters, limit)
    signals = signals_of(rules, words)
    settings = RefineSettings()
    kept = store or out.with_name(f"{out.name}.store")
    how = ObserverSettings(device=model.device, cache=kept)
    asked = load_rewriter(teacher, settings, how)
    pictures = KeptPictures(
        generator_of(generating, defence, model, sampling, settings), Store(kept)
    )
    with bar(len(rows) * per_prompt, "rows") as update:
        built = build_set(
            rows,
            pictures,
            asked,
            signals,
            settings,
            per_prompt=per_prompt,
            seed=seed,
            on_done=update,
        )
    written = write_set(out, built.rows)
    _print(check_set(read_set(out)), as_json, out=str(written), dropped=built.dropped)


@dataset.command(cls=IneCommand)
@PLACE
@click.option(
    "--test",
    "tests",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Prompts that figures will be measured on, which must not be in the set; may be repeated.",
)
@options.json_output
def check(place: Path, tests: tuple[Path, ...], as_json: bool) -> None:
    """Check a set; the exit code is 8 if something is wrong with it.

    Duplicates, prompts of the test files, unbalanced keeps, answers that cannot be used or that
    contradict each other or the rules, and pictures that are missing or broken are found.
    """
    from ine.refining.dataset_check import check_set
    from ine.refining.dataset_files import read_set

    held = [row.prompt for file in tests for row in choose.rows_of(file, {})]
    checked = check_set(read_set(place), held)
    _print(checked, as_json, out=str(place))
    if checked.problems:
        count = len(checked.problems)
        raise PromptError(f"{place}: {count} problem{'s' if count > 1 else ''}, listed above")


@dataset.command(cls=IneCommand)
@PLACE
@click.option(
    "--rows",
    type=click.IntRange(1),
    default=60,
    show_default=True,
    help="Rows to show, spread over the set.",
)
@click.option(
    "--flagged",
    type=click.Choice(["click", "hide", "show"]),
    default="click",
    show_default=True,
    help="Pictures in which a rule found something: click blurs them until clicked, hide leaves "
    "them out of the file, show shows them.",
)
@click.option(
    "--out",
    type=options.OutPath(),
    required=True,
    metavar="DIR",
    help="Folder for report.html, report.json and report.md.",
)
def show(place: Path, rows: int, flagged: str, out: Path) -> None:
    """Write a page with a set's facts, problems and rows."""
    from ine.refining.dataset_check import check_set
    from ine.refining.dataset_files import read_set
    from ine.studies.training_set import write_set_page

    claim_folder(out)
    found = read_set(place)
    click.echo(f"wrote {write_set_page(found, check_set(found), out, rows, flagged)}")


def _check_out(out: Path, force: bool) -> None:
    """Raise `OutputError` if there is a set already and `--force` is not given."""
    from ine.files import check_free
    from ine.refining.dataset_lines import ROWS

    check_free(out if out.suffix == ".parquet" else out / ROWS, force)


def _print(checked: "Checked", as_json: bool, **more: Any) -> None:
    """Print what a set holds and what is wrong with it."""
    if as_json:
        click.echo(json.dumps({**asdict(checked), **more}, indent=2, ensure_ascii=False))
        return
    click.echo(
        f"{more['out']}: {checked.rows} rows, {checked.keeps} kept, {checked.rewrites} rewritten, "
        f"{checked.refused} left out by screening"
    )
    for why, count in more.get("dropped", {}).items():
        click.echo(f"left out: {count} answers that are neither keep nor a prompt ({why})")
    for problem in checked.problems:
        click.echo(f"problem: {problem.line()}")
