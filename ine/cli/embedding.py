"""`ine embedding`: what is in an embedding file."""

import json
from pathlib import Path

import click

WARNING = (
    "Used as a PROMPT this embedding brings the concept back, also on models that unlearned it. "
    "Keep embeddings of real harms private."
)

LINES = ("base", "unet", "method", "steps", "recovery", "seed", "recipe_hash", "versions")
"""Header keys under `ine.` that are shown, in order; "not stated" where a file lacks one."""


@click.group()
def embedding():
    """Look into embedding files."""


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
    return [f"{name:<12}{_printable(value)}" for name, value in rows.items()] + ["", WARNING]


def _printable(text):
    """Replace control characters: a foreign file's header must not drive the terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)
