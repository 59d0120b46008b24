"""`ine embedding`: inspect an embedding file, check it, convert it for other programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ine.cli import options
from ine.cli.choices import TARGETS
from ine.cli.command import IneSubgroup
from ine.cli.printing import printable
from ine.cli.verify import verify

if TYPE_CHECKING:
    import torch

    from ine.embeddings.embedding import ConceptEmbedding
    from ine.embeddings.reading import FileEmbedding

WARNING = (
    "Used as a PROMPT this embedding brings the concept back, also on models that unlearned it. "
    "Keep embeddings of real harms private."
)

UNMARKED = (
    "The file does not say whether it belongs into the prompt or into the negative prompt. Used as "
    "a PROMPT, an embedding brings what it stands for."
)
"""The warning for files of other programs, for which `WARNING` may not hold."""

LINES = ("base", "unet", "method", "steps", "recovery", "seed", "recipe_hash", "versions")
"""Header keys under `ine.` that are shown, in order; "not stated" if a file lacks one."""


DEFENCE_LINES = {
    **{key: key for key in ("guidance", "strength", "preset", "window", "left", "undefended")},
    "look_ahead": "look ahead",
    "restart": "restarts",
    "last_strength": "last resort",
    "left_without_restart": "unrestarted",
    "preservation": "preserved",
}
"""Header key under `ine.defence.` -> what it is called; shown where `ine defend` wrote it."""


@click.group(cls=IneSubgroup)
def embedding() -> None:
    """Inspect, check and convert embedding files.

    FILE is an embedding of `ine` or of another program: .safetensors, .pt, .bin, or a picture
    of A1111 with an embedding inside.
    """


@embedding.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with the whole header.")
def show(file: Path, as_json: bool) -> None:
    """Show what FILE holds and where it comes from."""
    from ine.embeddings.reading import read_file

    facts = describe(file, read_file(file))
    if as_json:
        click.echo(json.dumps(facts, indent=2, ensure_ascii=False))
    else:
        click.echo("\n".join(as_lines(facts)))


@embedding.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--to",
    type=click.Choice(TARGETS),
    default="universal",
    show_default=True,
    help="Layout: one .safetensors that every program loads; A1111's .pt; a folder for "
    "load_textual_inversion; or clip_l with clip_g, for SDXL vectors only.",
)
@click.option("--name", metavar="WORD", help="New trigger; default the file's own.")
@click.option("--author", metavar="TEXT", help="Author, for the header that UIs show.")
@click.option(
    "--negative",
    is_flag=True,
    help="Mark it as one for the negative prompt, if its file does not say so; files of ine do.",
)
@options.out
@options.force
@options.json_output
def convert(
    file: Path,
    to: str,
    name: str | None,
    author: str | None,
    negative: bool,
    out: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Write the embedding in FILE in the layout of another program.

    The file is named after the trigger, since most programs take the file name as the trigger.
    Names that some program would misread are refused. The written file is read back and compared.
    """
    from ine.embeddings.export import convert_embedding
    from ine.embeddings.uses import diffusers_calls, uses_of

    written, made = convert_embedding(file, to, name, out, force, author, negative)
    uses = uses_of(made, to)
    calls = diffusers_calls(written) if to == "diffusers" else []
    if as_json:
        facts = _converted_facts(written, made, uses, calls)
        click.echo(json.dumps(facts, indent=2, ensure_ascii=False))
        return
    for path, vectors in zip(written, _per_file(made.vectors, written), strict=True):
        click.echo(f"wrote {path}: {vectors}, trigger {made.trigger!r}")
    if uses:
        click.echo(f"\nIn the {'' if made.negative else 'prompt, or in the '}negative prompt:")
        wide = max(len(program) for program, _, _ in uses)
        for program, _, typed in uses:
            click.echo(f"  {program:<{wide}}  {typed}")
    click.echo("\n".join(_call_lines(calls)), nl=bool(calls))
    click.echo(f"\n{_warning(made)}")


def _warning(found: FileEmbedding | ConceptEmbedding) -> str:
    """Return the warning about an embedding that is used as a prompt."""
    return WARNING if found.negative else UNMARKED


def _converted_facts(
    written: Sequence[Path],
    made: ConceptEmbedding,
    uses: Sequence[tuple[str, str, str]],
    calls: Sequence[str],
) -> dict[str, Any]:
    """Return what was written and how programs use it, as plain values for JSON."""
    return {
        "files": [str(path) for path in written],
        "trigger": made.trigger,
        "family": made.family,
        "vectors": [list(v.shape) for v in made.vectors],
        "negative": made.negative,
        "uses": [dict(zip(("program", "place", "type"), use, strict=True)) for use in uses],
        "calls": calls,
        "warning": _warning(made),
    }


def _call_lines(calls: list[str]) -> list[str]:
    """Return how a folder for diffusers is loaded, as lines for a person."""
    if not calls:
        return []
    head = "The call:"
    if len(calls) > 1:
        head = (
            "Both calls are needed. After one alone diffusers says nothing, and the other text "
            "encoder\nreads the trigger as ordinary words:"
        )
    return ["", head, *(f"  {call}" for call in calls)]


def _per_file(vectors: Sequence[torch.Tensor], files: Sequence[Path]) -> list[str]:
    """Return what each file holds, "4 x 768": all of it, or one encoder's vectors each."""
    sizes = [f"{len(v)} x {v.shape[1]}" for v in vectors]
    return sizes if len(files) == len(sizes) else [" + ".join(sizes)]


@embedding.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--out", type=options.OutPath(), help="File to write; without it, standard output.")
@options.force
def card(file: Path, out: Path | None, force: bool) -> None:
    """Write a model card for FILE: figures, intended use, limits, and the warning.

    It is made from the file's header; what is missing there is "not stated". Nothing is uploaded.
    """
    from ine.embeddings.card import model_card
    from ine.embeddings.embedding import read_embedding
    from ine.files import check_free, sha256_of, write_text

    text = model_card(read_embedding(file), sha256_of(file.read_bytes()))
    if out is None:
        click.echo(text, nl=False)
        return
    check_free(out, force)
    write_text(out, text)
    click.echo(f"wrote {out}")


def describe(file: Path, found: FileEmbedding) -> dict[str, Any]:
    """Return the facts of an embedding file as plain values for JSON."""
    import numpy as np

    from ine.families import family_of

    norms = [np.linalg.norm(v.astype(np.float64), axis=1) for v in found.vectors]
    return {
        "file": str(file),
        "concept": found.concept,
        "trigger": found.trigger,
        "vectors": [list(v.shape) for v in found.vectors],
        "family": family_of(sum(v.shape[1] for v in found.vectors)).name,
        "negative": found.negative,
        "norms": [[round(x, 6) for x in row.tolist()] for row in norms],
        "metadata": dict(sorted(found.metadata.items())),
        "warning": _warning(found),
    }


def as_lines(facts: dict[str, Any]) -> list[str]:
    """Return the facts as lines for a person."""
    rows = {
        "concept": facts["concept"],
        "trigger": facts["trigger"],
        "vectors": " + ".join(f"{n} x {d}" for n, d in facts["vectors"]),
        "family": facts["family"],
        "belongs in": "the negative prompt" if facts["negative"] else "not stated",
    }
    for key in LINES:
        rows[key.replace("_", " ")] = facts["metadata"].get(f"ine.{key}", "not stated")
    for key, name in DEFENCE_LINES.items():
        if value := facts["metadata"].get(f"ine.defence.{key}"):
            rows[name] = value
    rows["norms"] = " + ".join(
        " ".join(f"{norm:.3f}" for norm in norms) for norms in facts["norms"]
    )
    rows["written by"] = f"ine {facts['metadata'].get('ine.version', 'not stated')}"
    return [f"{name:<12}{printable(value)}" for name, value in rows.items()] + [
        "",
        facts["warning"],
    ]


embedding.add_command(verify)
