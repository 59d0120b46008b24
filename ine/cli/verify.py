"""`ine embedding verify`: does a file fit a model, and does it have an effect there?"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ine.cli import choose, options
from ine.cli.command import IneCommand
from ine.cli.model import ModelOptions, OpenModel
from ine.cli.printing import printable
from ine.cli.progress import bar
from ine.cli.sampling import SamplingOptions

if TYPE_CHECKING:
    from ine.embeddings.embedding import ConceptEmbedding
    from ine.models.parts import DiffusionParts
    from ine.recipe import ConceptRecipe
    from ine.sampling import SamplerSettings
    from ine.verification.subject import Subject
    from ine.verification.verify import Verification


@click.command(cls=IneCommand)
@click.argument("file", type=click.Path(path_type=Path))
@options.opening
@click.option(
    "--concept",
    metavar="NAME",
    help="Recipe of what it stands for; without it and --words, the one in the file.",
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
    help="Pictures with the concept, and the same number without (mini 16, else 8).",
)
@click.option(
    "--controls",
    type=click.IntRange(2),
    default=12,
    show_default=True,
    help="Shuffled embeddings to compare with, and the same number of random ones.",
)
@options.seed
@options.sampler
@options.json_output
def verify(
    file: Path,
    model: ModelOptions,
    concept: str | None,
    words: tuple[str, ...],
    pictures: int | None,
    controls: int,
    seed: int,
    sampling: SamplingOptions,
    as_json: bool,
) -> None:
    """Say in one line whether FILE fits a model and is alive there.

    The base model makes a few latents with the concept and without. The embedding is alive if its
    vectors explain the former to the U-Net better than shuffled and random vectors do. Exit code
    0: fits and is alive. 6: does not fit, or cannot be read. 11: fits, but is not alive.
    """
    if concept and words:
        raise click.UsageError("--concept and --words: give one of them")
    from ine.embeddings.embedding import read_embedding
    from ine.errors import LIFELESS, EmbeddingError

    found = read_embedding(file)
    recipe = None if words else recipe_of(found, concept)
    # That a file does not fit is a result of this command, not an error.
    opened = model.choose((found,), recipe).open(check_fits=False)
    parts = opened.parts
    sampler = sampling.settings(parts)
    count = pictures or parts.family_info.probes
    subject = subject_for(recipe, words, count, seed)
    result = _verified(opened, found, subject, sampler, controls, seed)
    if as_json:
        about = {"file": str(file), "model": parts.name, "unet": parts.unet_name}
        click.echo(json.dumps({**about, **result.as_dict()}, indent=2, ensure_ascii=False))
    else:
        click.echo("\n".join(as_lines(result, parts)))
    code = EmbeddingError.exit_code if not result.fits else 0 if result.alive else LIFELESS
    click.get_current_context().exit(code)


def _verified(
    opened: OpenModel,
    embedding: "ConceptEmbedding",
    subject: "Subject",
    sampler: "SamplerSettings",
    controls: int,
    seed: int,
) -> "Verification":
    """Verify with a progress bar."""
    from ine.verification.verify import verify_embedding

    with bar(2 * controls + 2, "conditions") as update:
        return verify_embedding(
            opened.base,
            opened.parts,
            embedding,
            subject,
            controls=controls,
            settings=sampler,
            seed=seed,
            progress=lambda done, wanted: update(done),
        )


def recipe_of(embedding: "ConceptEmbedding", name: str | None = None) -> "ConceptRecipe":
    """Return the recipe that says what an embedding stands for: `name`, else the file's.

    Raises:
        RecipeError: No recipe is found.
    """
    from ine.errors import RecipeError

    found = choose.recipe_of(name, (embedding,))
    if found:
        return found
    raise RecipeError(
        f"embedding {embedding.trigger!r}: no recipe says what {embedding.concept!r} stands for; "
        "give --concept RECIPE, or --words TEXT such as --words 'blurry, bad anatomy'"
    )


def subject_for(
    recipe: "ConceptRecipe | None", words: Sequence[str], count: int, seed: int
) -> "Subject":
    """Return the subject of a recipe, or of words if there is no recipe."""
    from ine.verification.subject import subject_of, subject_of_words

    return subject_of(recipe, count, seed) if recipe else subject_of_words(words, count)


def as_lines(result: "Verification", parts: "DiffusionParts") -> list[str]:
    """Return the verdict and its reasons as lines for a person."""
    lines = [f"{result.trigger} on {parts.name} ({parts.unet_name}): {result.verdict}"]
    lines += [f"note        {note}" for note in result.notes]
    if result.norms:
        norms = " + ".join(" ".join(f"{n:.2f}" for n in row) for row in result.norms)
        lines.append(f"norms       {norms} of the median word's")
        near = "; ".join(", ".join(f"{w} {c:.2f}" for w, c in row) for row in result.nearest)
        lines.append(f"nearest     {near}")
    if result.embedding and result.word:
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
