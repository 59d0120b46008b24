"""`ine posi pairs`: make pairs of a toxic and a clean prompt from prompt files and a teacher."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ine.cli import choose, options
from ine.cli.command import IneCommand
from ine.cli.posi_options import asking_server, instruction
from ine.cli.progress import bar
from ine.cli.writing import claim_file

if TYPE_CHECKING:
    from ine.posi.making import MadePairs


@click.command(cls=IneCommand)
@click.option(
    "--toxic",
    multiple=True,
    required=True,
    type=click.Path(path_type=Path),
    metavar="FILE|NAME",
    help="Prompts that shall change: a file or a set such as mini:fire/explicit; may be repeated.",
)
@click.option(
    "--benign",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE|NAME",
    help="Prompts that shall stay as they are; may be repeated.",
)
@click.option(
    "--teacher",
    "spec",
    required=True,
    metavar="SPEC",
    help="Who rewrites: openai:URL#MODEL, or teacher:fire, teacher:weapon for the bundled world.",
)
@click.option(
    "--out",
    type=options.OutPath(),
    required=True,
    help="JSON file of the pairs; those held back are beside it as NAME-test.json.",
)
@click.option(
    "--test",
    "share",
    type=options.FiniteRange(0, 1, max_open=True),
    default=0.2,
    show_default=True,
    metavar="SHARE",
    help="Share of the prompts to hold back, whole families of similar prompts at a time.",
)
@instruction
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Only the first N of each set.")
@options.prompt_rows
@asking_server
@options.seed
@options.force
def pairs(
    toxic: tuple[Path, ...],
    benign: tuple[Path, ...],
    spec: str,
    out: Path,
    share: float,
    instruction: str | None,
    limit: int | None,
    filters: dict,
    cache: Path | None,
    timeout: float,
    parallel: int,
    seed: int,
    force: bool,
) -> None:
    """Make pairs of prompts for `ine posi train --stage sft`.

    A teacher rewrites the toxic prompts; the benign ones are paired with themselves. Pairs are
    screened, and each prompt is kept once. Prompts that differ in few words are a family, and a
    family is either trained on or held back.
    """
    from ine.files import check_free
    from ine.observers.table import ObserverSettings
    from ine.posi.making import make_pairs
    from ine.posi.pair_files import INSTRUCTION, write_pairs
    from ine.posi.table import RewriteSettings, load_rewriter

    held = out.with_name(f"{out.stem}-test{out.suffix}")
    for path in (out, held):
        check_free(path, force)
    claim_file(out)
    asked = instruction or INSTRUCTION
    how = ObserverSettings(parallel=parallel, timeout=timeout, cache=cache)
    change, stay = (choose.rows_of_all(files, filters, limit) for files in (toxic, benign))
    teacher = load_rewriter(spec, RewriteSettings(instruction=asked), how)
    with bar(len(change), "rewriting") as progress:
        made = make_pairs(change, stay, teacher, test_share=share, seed=seed, progress=progress)
    write_pairs(held, made.test, asked)
    write_pairs(out, made.train, asked)
    _print(made, out, held)


def _print(made: "MadePairs", out: Path, held: Path) -> None:
    click.echo(f"{out}: {len(made.train)} pairs to train on")
    click.echo(f"{held}: {len(made.test)} pairs of other families")
    left = {
        "refused by screening": made.refused,
        "repeated": made.duplicates,
        "not changed by the teacher": made.unchanged,
        **{f"without a usable answer ({why})": count for why, count in made.unusable.items()},
    }
    for why, count in left.items():
        if count:
            click.echo(f"left out: {count} {why}")
