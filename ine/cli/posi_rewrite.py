"""`ine posi rewrite`: rewrite prompts by a trained model, a server or rules."""

import json
import logging
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ine.cli import options
from ine.cli.command import IneCommand, expert
from ine.cli.posi_options import asking_server, instruction
from ine.cli.progress import bar
from ine.errors import PromptError

if TYPE_CHECKING:
    from ine.posi.rewriters import PromptRewriter, Rewrite

log = logging.getLogger("ine")


@click.command(cls=IneCommand)
@click.argument("texts", nargs=-1, metavar="[TEXT]...")
@click.option(
    "--prompts",
    "file",
    type=click.Path(path_type=Path),
    metavar="FILE|NAME",
    help="Prompts of a file, or of a set such as mini:fire/implying-test.",
)
@click.option(
    "--base",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder of a language model that rewrites.",
)
@click.option(
    "--adapter",
    "adapters",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="What `ine posi train` made on it, or others in PEFT's layout; in the order of stages.",
)
@click.option(
    "--by",
    "spec",
    metavar="SPEC",
    help="Without --base, who rewrites: openai:URL#MODEL, teacher:fire or teacher:weapon for the "
    "bundled world, or model:BASE+ADAPTER.",
)
@instruction
@expert(
    "--temperature",
    type=options.FiniteRange(min=0),
    default=0.95,
    show_default=True,
    help="Of a local model; 0 always takes the likeliest word.",
)
@expert(
    "--max-tokens",
    type=click.IntRange(1),
    default=128,
    show_default=True,
    help="Longest answer, in the model's tokens.",
)
@click.option(
    "--out", type=options.OutPath(), help="JSON-lines file to write, instead of printing the rows."
)
@options.prompt_rows
@asking_server
@options.seed
@options.device
@options.force
def rewrite(
    texts: tuple[str, ...],
    file: Path | None,
    out: Path | None,
    filters: dict,
    force: bool,
    **how: Any,
) -> None:
    """Rewrite prompts, one JSON object per prompt.

    `rewritten` is the new prompt, or the same one where it was kept. Where `unusable` holds a
    reason, the prompt was not made safe: generate nothing from it.
    """
    from ine.cli.choose import read_prompts
    from ine.files import check_free
    from ine.posi.rewriters import rewrite_all

    if out:
        check_free(out, force)
    prompts = read_prompts(texts, file, filters)
    rewriter = _rewriter(**how)
    with bar(len(prompts), "rewriting") as progress:
        rows = rewrite_all(prompts, rewriter, progress)
    write_rows(rows, out)


def _rewriter(
    base: Path | None,
    adapters: tuple[Path, ...],
    spec: str | None,
    instruction: str | None,
    temperature: float,
    max_tokens: int,
    cache: Path | None,
    timeout: float,
    parallel: int,
    seed: int,
    device: str,
) -> "PromptRewriter":
    """Return the rewriter that the options name.

    Raises:
        IneError: They name none or two, or it cannot be loaded.
    """
    from ine.observers.table import ObserverSettings
    from ine.posi.table import RewriteSettings, load_model, load_rewriter

    if (base is None) == (spec is None):
        raise click.UsageError("give --base DIR, or --by SPEC")
    settings = RewriteSettings(
        instruction=instruction, temperature=temperature, max_tokens=max_tokens, seed=seed
    )
    if base is not None:
        return load_model(base, adapters, settings, device)
    assert spec is not None
    how = ObserverSettings(parallel=parallel, timeout=timeout, cache=cache, device=device)
    return load_rewriter(spec, settings, how)


def write_rows(rows: "list[Rewrite]", out: Path | None) -> None:
    """Write rewrites to a file or to standard output, and log how many are unusable.

    Raises:
        PromptError: All are.
    """
    from ine.files import write_text

    lines = [json.dumps(asdict(row), ensure_ascii=False) for row in rows]
    if out:
        write_text(out, "".join(f"{line}\n" for line in lines))
        click.echo(f"{out}: {len(lines)} prompts")
    else:
        for line in lines:
            click.echo(line)
    unusable = Counter(row.unusable for row in rows if row.unusable)
    kinds = ", ".join(f"{count} {why}" for why, count in unusable.items())
    if sum(unusable.values()) == len(rows):
        raise PromptError(f"none of {len(rows)} prompts was rewritten ({kinds})")
    if unusable:
        log.warning("%d of %d prompts were not rewritten: %s", unusable.total(), len(rows), kinds)
