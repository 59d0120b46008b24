"""What an embedding's file says about the inversion that made it."""

from ine import __version__
from ine.embeddings.fit import fingerprints
from ine.inversion.history import Inversion
from ine.models.parts import DiffusionParts
from ine.recipe import ConceptRecipe
from ine.runtime import library_versions


def image_steps(recipe: ConceptRecipe, result: Inversion) -> int:
    """Return how many pictures went through the U-Net, with gradients: steps times batch."""
    return result.steps * recipe.inversion.batch * recipe.inversion.accumulation


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
        "ine.rule": rule,
        "ine.people": "true" if recipe.people else None,
        "ine.strength": recipe.strength,
        "ine.pictures": pictures,
        "ine.seed": seed,
        "ine.versions": library_versions(),
        "modelspec.prediction_type": "v" if base.prediction_type != "epsilon" else "epsilon",
        "modelspec.is_negative_embedding": "true",
    }


def _share(value: float | None) -> str | None:
    return None if value is None else f"{value:.3f}"
