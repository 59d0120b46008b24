"""`ine embedding verify`: does a file fit a model, and is it alive there?"""

import json
from pathlib import Path

import click

from ine.cli import choose, options
from ine.cli.printing import printable
from ine.cli.progress import bar


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@options.unet
@options.model
@click.option(
    "--concept",
    metavar="NAME",
    help="The recipe of what it stands for; without it and --words, the one in the file.",
)
@click.option(
    "--words",
    multiple=True,
    metavar="TEXT",
    help="What it stands for, as a prompt, where there is no recipe; may be repeated.",
)
@click.option(
    "--pictures",
    type=click.IntRange(1),
    help="Pictures with the concept, and as many without (mini 16, else 8).",
)
@click.option(
    "--controls",
    type=click.IntRange(2),
    default=12,
    show_default=True,
    help="Shuffled embeddings to compare with, and as many random ones.",
)
@options.seed
@options.sampling
@options.device
@options.dtype
@options.json_output
def verify(
    file,
    unet,
    model,
    concept,
    words,
    pictures,
    controls,
    seed,
    steps,
    scheduler,
    guidance_scale,
    batch,
    device,
    dtype,
    as_json,
):
    """Tell in one line whether FILE fits a model and is alive there.

    The base model makes a few latents with the concept and without; alive are vectors that
    explain the former to the U-Net better than shuffled and random vectors do. Exit code 0: fits
    and is alive. 6: does not fit, or cannot be read. 11: fits, but is not alive.
    """
    if concept and words:
        raise click.UsageError("--concept and --words: give one of them")
    from ine.embedding import read_embedding
    from ine.errors import LIFELESS, EmbeddingError
    from ine.verification import verify_embedding

    found = read_embedding(file)
    recipe = None if words else recipe_of(found, concept)
    name, source = choose.base_name(model, (found,), recipe=recipe, unet=unet)
    choose.check_unet(unet)
    base = choose.load_base(name, source, device, dtype)
    parts = choose.lay(base, unet)
    sampler = choose.sampler(parts, scheduler, steps, guidance_scale, batch)
    count = pictures or parts.traits.probes
    with bar(2 * controls + 2, "conditions") as update:
        result = verify_embedding(
            base,
            parts,
            found,
            subject_for(recipe, words, count, seed),
            controls=controls,
            settings=sampler,
            seed=seed,
            progress=lambda done, wanted: update(done),
        )
    if as_json:
        about = {"file": str(file), "model": parts.name, "unet": parts.unet_name}
        click.echo(json.dumps({**about, **result.as_dict()}, indent=2, ensure_ascii=False))
    else:
        click.echo("\n".join(as_lines(result, parts)))
    code = EmbeddingError.exit_code if not result.fits else 0 if result.alive else LIFELESS
    click.get_current_context().exit(code)


def recipe_of(embedding, name=None):
    """Return the recipe that says what an embedding stands for: `name`, else the file's.

    Raises:
        RecipeError: There is none.
    """
    from ine.errors import RecipeError

    found = choose.recipe_of(name, (embedding,))
    if found:
        return found
    raise RecipeError(
        f"embedding {embedding.trigger!r}: no recipe says what {embedding.concept!r} stands for; "
        "give --concept RECIPE, or --words TEXT such as --words 'blurry, bad anatomy'"
    )


def subject_for(recipe, words, count, seed):
    """Return the `Subject` of a recipe, or of words where there is none."""
    from ine.verification import subject_of, subject_of_words

    return subject_of(recipe, count, seed) if recipe else subject_of_words(words, count)


def as_lines(result, parts):
    """Return the verdict and its grounds as lines for a person."""
    lines = [f"{result.trigger} on {parts.name} ({parts.unet_name}): {result.verdict}"]
    lines += [f"note        {note}" for note in result.notes]
    if result.norms:
        norms = " + ".join(" ".join(f"{n:.2f}" for n in row) for row in result.norms)
        lines.append(f"norms       {norms} of the median word's")
        near = "; ".join(", ".join(f"{w} {c:.2f}" for w, c in row) for row in result.nearest)
        lines.append(f"nearest     {near}")
    if result.embedding:
        for name, rows in (
            ("embedding", [result.embedding]),
            ("word", [result.word]),
            ("shuffled", result.shuffled),
            ("random", result.random),
        ):
            recalls, moves = [r.recall for r in rows], [r.move for r in rows]
            most = f" (most {max(recalls):+.3f})" if len(rows) > 1 else ""
            lines.append(
                f"{name:<12}recalls {sum(recalls) / len(rows):+.3f}{most}, "
                f"moves {sum(moves) / len(rows):.2f} of the word"
            )
    return [printable(line) for line in lines]
