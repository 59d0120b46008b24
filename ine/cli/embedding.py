"""`ine embedding`: what is in an embedding file, and the same in other programs' layouts."""

import json
from pathlib import Path

import click

from ine.cli import options
from ine.cli.printing import printable
from ine.cli.verify import verify

WARNING = (
    "Used as a PROMPT this embedding brings the concept back, also on models that unlearned it. "
    "Keep embeddings of real harms private."
)

LINES = ("base", "unet", "method", "steps", "recovery", "seed", "recipe_hash", "versions")
"""Header keys under `ine.` that are shown, in order; "not stated" where a file lacks one."""


@click.group()
def embedding():
    """Look into embedding files, and convert them.

    FILE is an embedding of `ine` or of another program: .safetensors, .pt, .bin, or a picture
    of A1111 with an embedding inside.
    """


@embedding.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with the whole header.")
def show(file, as_json):
    """Show what FILE holds and where it comes from."""
    from ine.embedding import read_embedding

    facts = describe(file, read_embedding(file))
    if as_json:
        click.echo(json.dumps(facts, indent=2, ensure_ascii=False))
    else:
        click.echo("\n".join(as_lines(facts)))


@embedding.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--to",
    type=click.Choice(["universal", "a1111-pt", "diffusers", "sdxl"]),
    default="universal",
    show_default=True,
    help="Layout: one .safetensors that every program loads; A1111's .pt; a folder for "
    "load_textual_inversion; or clip_l with clip_g, for SDXL vectors only.",
)
@click.option("--name", metavar="WORD", help="New trigger; default the file's own.")
@click.option("--author", metavar="TEXT", help="Author, for the header that UIs show.")
@options.out
@options.force
@options.json_output
def convert(file, to, name, author, out, force, as_json):
    """Write the embedding in FILE in the layout that another program asks for.

    The file is named after the trigger, since most programs take the one for the other. Names
    that some program would misread are refused. What was written is read back and compared.
    """
    from ine.formats.export import convert_embedding
    from ine.formats.uses import uses_of

    written, made = convert_embedding(file, to, name, out, force, author)
    uses = uses_of(made, to)
    if as_json:
        facts = {
            "files": [str(path) for path in written],
            "trigger": made.trigger,
            "family": made.family,
            "vectors": [list(v.shape) for v in made.vectors],
            "uses": [dict(zip(("program", "place", "type"), use, strict=True)) for use in uses],
            "warning": WARNING,
        }
        click.echo(json.dumps(facts, indent=2, ensure_ascii=False))
        return
    for path, vectors in zip(written, _per_file(made.vectors, written), strict=True):
        click.echo(f"wrote {path}: {vectors}, trigger {made.trigger!r}")
    if uses:
        click.echo("\nIn the negative prompt:")
        wide = max(len(program) for program, _, _ in uses)
        for program, _, typed in uses:
            click.echo(f"  {program:<{wide}}  {typed}")
    click.echo(f"\n{WARNING}")


def _per_file(vectors, files):
    """Return what each file holds, "4 x 768": all of it, or one encoder's vectors each."""
    sizes = [f"{len(v)} x {v.shape[1]}" for v in vectors]
    return sizes if len(files) == len(sizes) else [" + ".join(sizes)]


@embedding.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), help="Where to write; without it, to stdout."
)
@options.force
def card(file, out, force):
    """Write a model card for FILE: figures, intended use, limits, and the warning.

    All of it is from the file's header; what that does not say is "not stated". Nothing is
    uploaded anywhere.
    """
    from ine.embedding import read_embedding
    from ine.files import check_free, sha256_of, write_text
    from ine.formats.card import model_card

    text = model_card(read_embedding(file), sha256_of(file.read_bytes()))
    if out is None:
        click.echo(text, nl=False)
        return
    check_free(out, force)
    write_text(out, text)
    click.echo(f"wrote {out}")


def describe(file, found):
    """Return the facts of a `ConceptEmbedding` as plain values for JSON."""
    return {
        "file": str(file),
        "concept": found.concept,
        "trigger": found.trigger,
        "vectors": [list(v.shape) for v in found.vectors],
        "family": found.family,
        "norms": [[round(x, 6) for x in v.norm(dim=1).tolist()] for v in found.vectors],
        "metadata": dict(sorted(found.metadata.items())),
        "warning": WARNING,
    }


def as_lines(facts):
    """Return the facts as lines for a person."""
    rows = {
        "concept": facts["concept"],
        "trigger": facts["trigger"],
        "vectors": " + ".join(f"{n} x {d}" for n, d in facts["vectors"]),
        "family": facts["family"],
    }
    for key in LINES:
        rows[key.replace("_", " ")] = facts["metadata"].get(f"ine.{key}", "not stated")
    rows["norms"] = " + ".join(
        " ".join(f"{norm:.3f}" for norm in norms) for norms in facts["norms"]
    )
    rows["written by"] = f"ine {facts['metadata'].get('ine.version', 'not stated')}"
    return [f"{name:<12}{printable(value)}" for name, value in rows.items()] + ["", WARNING]


embedding.add_command(verify)
