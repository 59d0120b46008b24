"""What studies of the bundled model share: its sampler and judges, and files that are made once."""

from collections.abc import Callable, Sequence
from pathlib import Path

from ine.embeddings.embedding import ConceptEmbedding, read_embedding
from ine.embeddings.fit import fingerprints
from ine.evaluation.grid import (
    FEATURE_MEASURE,
    Grid,
    GridGuidance,
    GridJudges,
    GridMetrics,
    GridModel,
    GridNegative,
    GridPrompts,
    GridSampler,
)
from ine.inversion.run import run_inversion
from ine.inversion.sources import RunOptions
from ine.models.parts import DiffusionParts
from ine.recipe import ConceptRecipe
from ine.unlearning.run import unlearn_concept
from ine.weights.apply import apply_weights
from ine.weights.read import weights_metadata
from ine.weights.unlearned import AppliedStack, AppliedWeights

JUDGE, REPORTER = "mini-judge", "mini-judge2"
"""The judge by which choices are made, and the one that only scores what is reported."""

SAMPLER = GridSampler(scheduler="ddim", steps=20, guidance_scale=5.0, batch=48)


def bundled_grid(
    name: str,
    about: str,
    recipe: ConceptRecipe,
    models: Sequence[GridModel],
    prompts: Sequence[GridPrompts],
    negatives: Sequence[GridNegative] = (),
    guidances: Sequence[GridGuidance] = (),
    rules: Sequence[str] = (),
    sampler: GridSampler | None = None,
) -> Grid:
    """Return a grid of the bundled model; the arguments are its fields, `SAMPLER` by default."""
    return Grid(
        kind="grid",
        version=1,
        name=name,
        about=about,
        concept=recipe.name,
        models=tuple(models),
        negatives=tuple(negatives),
        guidances=tuple(guidances),
        prompts=tuple(prompts),
        sampler=sampler or SAMPLER,
        rules=tuple(rules),
        judges=GridJudges(tune=JUDGE, test=REPORTER),
        metrics=GridMetrics(preservation=(FEATURE_MEASURE,), features=JUDGE, subject=True),
    )


def strength_of(recipe: ConceptRecipe) -> float:
    """Return the strength of additive guidance that a recipe advises, else 1."""
    return 1.0 if recipe.strength is None else recipe.strength


def unlearned_by(
    base: DiffusionParts,
    recipe: ConceptRecipe,
    method: str,
    file: Path,
    tell: Callable[[str], None],
    **changes: float,
) -> tuple[DiffusionParts, AppliedWeights | AppliedStack]:
    """Return the unlearned model; the file is made where it is not of this recipe.

    Args:
        base: The model.
        recipe: Its `erase` section has the settings of the eraser.
        method: "uce" or "esd".
        file: Of the weights.
        tell: Called with a line where they are made.
        changes: Settings that differ from the recipe's.
    """
    if not file.exists() or weights_metadata(file).get("ine.recipe_hash") != recipe.hash:
        tell(f"    unlearning {file.name}")
        settings = dict(getattr(recipe.erase, method)) | changes
        unlearn_concept(base, recipe, method, settings, file, force=True)
    return apply_weights(base, file)


def embedding_of(
    base: DiffusionParts,
    unlearned: DiffusionParts,
    recipe: ConceptRecipe,
    file: Path,
    seed: int,
    tell: Callable[[str], None],
) -> ConceptEmbedding:
    """Return the embedding of this recipe and these weights, inverted where the file is not it."""
    unet = fingerprints(unlearned)["ine.unet_fingerprint"]
    wanted = {"ine.recipe_hash": recipe.hash, "ine.unet_fingerprint": unet, "ine.seed": str(seed)}
    if file.exists():
        embedding = read_embedding(file)
        if wanted.items() <= embedding.metadata.items():
            return embedding
    tell(f"    inverting {file.parent.name}/{file.stem}")
    options = RunOptions(out=file, trigger=f"{recipe.name}-neg", seed=seed, force=file.exists())
    embedding, _, summary = run_inversion(base, unlearned, recipe, options)
    counts = summary["pictures"]
    line = f"{counts['kept']} of {counts['tried']} pictures kept"
    if summary["recovery"] is not None:
        line += f"; recovery {summary['recovery']:.2f}"
    if summary["tuning_left"] is not None:
        undefended, left = summary["tuning_undefended"], summary["tuning_left"]
        line += f"; on tuning prompts {undefended:.2f} -> {left:.2f}"
    tell(f"    {line}")
    return embedding
