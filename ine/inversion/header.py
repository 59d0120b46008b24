"""What an embedding's file says about the inversion that made it."""

from collections.abc import Mapping

from ine import __version__
from ine.embeddings.fit import fingerprints
from ine.inversion.history import Inversion
from ine.models.parts import DiffusionParts
from ine.recipe import ConceptRecipe
from ine.runtime import library_versions


def image_steps(recipe: ConceptRecipe, result: Inversion) -> int:
    """Return how many pictures went through the U-Net, with gradients, in all runs together."""
    return result.all_steps * recipe.inversion.batch * recipe.inversion.accumulation


def metadata_of(
    base: DiffusionParts,
    unlearned: DiffusionParts,
    recipe: ConceptRecipe,
    result: Inversion,
    *,
    rule: str,
    pictures: int,
    seed: int,
) -> dict[str, object]:
    """Return the metadata of the embedding; None stands for what was not measured.

    Args:
        base: The base model.
        unlearned: The model that was inverted.
        recipe: The concept.
        result: The vectors.
        rule: Name of the rule that found the concept in the pictures.
        pictures: Number of concept pictures.
        seed: Seed of all random numbers.
    """
    kept = result.kept
    return {
        "ine.version": __version__,
        "ine.base": base.name,
        "ine.unet": unlearned.unet_name,
        **fingerprints(unlearned),
        "ine.method": "textual inversion",
        "ine.recipe_hash": recipe.hash,
        "ine.steps": result.steps,
        "ine.image_steps": image_steps(recipe, result),
        "ine.kept_step": kept.step if kept else result.steps,
        "ine.recovery": _share(kept.recovery if kept else None),
        "ine.tuning_left": _share(kept.left if kept else None),
        "ine.tuning_undefended": _share(kept.undefended if kept else None),
        "ine.tuning_preservation": _share(kept.preservation if kept else None),
        "ine.target_preservation": _share(recipe.inversion.target_preservation or None),
        **_runs(result),
        **_previews(recipe),
        "ine.rule": rule,
        "ine.people": "true" if recipe.people else None,
        "ine.strength": recipe.strength,
        "ine.pictures": pictures,
        "ine.seed": seed,
        "ine.versions": library_versions(),
        "modelspec.prediction_type": "v" if base.prediction_type != "epsilon" else "epsilon",
        "modelspec.is_negative_embedding": "true",
    }


RUN_FIGURES = {"left": "left", "preservation": "preserved", "recovery": "recovered"}
"""What a preview measures -> the header's `ine.runs_...` with the figures of each run's best."""


def run_summary(result: Inversion) -> dict[str, float | int | None]:
    """Return the figures of one of several inversions: of the preview whose vectors it kept."""
    kept = result.kept
    return {
        "run": result.run,
        "steps": result.steps,
        "kept_step": kept.step if kept else None,
        **{name: getattr(kept, name) if kept else None for name in RUN_FIGURES},
    }


def runs_in(header: Mapping[str, str]) -> list[dict[str, str]]:
    """Return the figures that a header states of several inversions, by `RUN_FIGURES`' values."""
    stated = {says: header.get(f"ine.runs_{says}", "").split() for says in RUN_FIGURES.values()}
    known = {says: figures for says, figures in stated.items() if figures}
    count = min((len(figures) for figures in known.values()), default=0)
    return [{says: figures[i] for says, figures in known.items()} for i in range(count)]


def _runs(result: Inversion) -> dict[str, object]:
    """Return what is said of several inversions; nothing of one."""
    if not result.runs:
        return {}
    found: dict[str, object] = {"ine.runs": len(result.runs), "ine.run": result.run}
    for name, says in RUN_FIGURES.items():
        # The recovery of the chosen run alone is measured where something else is chosen by.
        values = [getattr(one.kept, name) if one.kept else None for one in result.runs]
        if None not in values:
            found[f"ine.runs_{says}"] = " ".join(f"{value:.3f}" for value in values)
    return found


def _previews(recipe: ConceptRecipe) -> dict[str, object]:
    """Return how previews were guided, where that is not the default."""
    spec = recipe.inversion
    given = {name: getattr(spec, name) for name in ("preview_guidance", "preview_strength")}
    return {f"ine.{n}": value for n, value in given.items() if n not in spec.by_default}


def _share(value: float | None) -> str | None:
    return None if value is None else f"{value:.3f}"
