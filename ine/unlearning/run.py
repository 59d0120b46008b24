"""`ine unlearn` from recipe to file."""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError

from ine import __version__
from ine.detectors.rules import find_rule
from ine.detectors.table import Detector, load_detector
from ine.embeddings.fit import fingerprints
from ine.errors import IneError, RecipeError, did_you_mean
from ine.files import check_free
from ine.models.parts import DiffusionParts
from ine.recipe import ConceptRecipe
from ine.unlearning.duo import DuoSettings, duo
from ine.unlearning.duo_pairs import Pairs, make_pairs
from ine.unlearning.duo_units import remove_units
from ine.unlearning.esd import EsdSettings, esd
from ine.unlearning.pairs import erase_texts
from ine.unlearning.training import TrainingOptions
from ine.unlearning.uce import UceSettings, uce
from ine.weights.files import write_unet_weights

Settings = UceSettings | EsdSettings | DuoSettings

SETTINGS: dict[str, type[Settings]] = {"uce": UceSettings, "esd": EsdSettings, "duo": DuoSettings}
"""Method -> class of its settings; the recipe's `erase` section has a field of each name."""


def unlearn_concept(
    base: DiffusionParts,
    recipe: ConceptRecipe,
    method: str,
    settings: dict[str, Any],
    out: Path,
    *,
    seed: int = 0,
    force: bool = False,
    on_step: Callable[[int, float], None] | None = None,
    detector: Detector | None = None,
    pairs_dir: Path | None = None,
    on_pairs: Callable[[int, int, int], None] | None = None,
) -> dict[str, Any]:
    """Erase a concept and write the weights that changed, in the authors' layout.

    Args:
        base: The base model's parts; not changed.
        recipe: The concept, with an `erase` section.
        method: "uce", "esd" or "duo".
        settings: Fields of `UceSettings`, `EsdSettings` or `DuoSettings`.
        out: The `.safetensors` file. UCE writes cross-attention keys and values, ESD the trained
            group, both under diffusers' names; DUO a LoRA under diffusers' names.
        seed: Seed of all random numbers (UCE draws none).
        force: Replace the file; of an interrupted training only one with other settings.
        on_step: Called with (iteration, loss).
        detector: DUO: the detector of the recipe's rule; by default it is loaded.
        pairs_dir: DUO: folder that keeps the pairs for other runs, such as other betas; by
            default they are kept beside `out` and removed at the end.
        on_pairs: DUO: called with (pairs found, wanted, pictures tried).

    Returns:
        A summary for `--json`.

    Raises:
        IneError: The method diverged, or there is an interrupted training with other settings.
        OutputError: `out` exists, or cannot be written.
        PicturesError: DUO: too few pairs were found.
        RecipeError: A setting is wrong.
    """
    check_free(out, force)
    texts = erase_texts(recipe)
    chosen = check_settings(recipe, method, settings)
    state, pairs_folder = (Path(out).with_name(Path(out).name + s) for s in (".state", ".pairs"))
    training = TrainingOptions(seed=seed, state=state, on_step=on_step, force=force)
    pairs: Pairs | None = None
    if isinstance(chosen, UceSettings):
        tensors = uce(base, texts, chosen)
    elif isinstance(chosen, EsdSettings):
        tensors = esd(base, texts, chosen, **training)
    else:
        folder = pairs_dir or pairs_folder
        pairs = _pairs(base, recipe, chosen, detector, seed, folder, on_pairs)
        tensors = duo(base, pairs, chosen, **training)
    _write(base, recipe, method, chosen, tensors, out, seed)
    if method != "uce":
        state.unlink(missing_ok=True)
    if pairs:
        remove_units(pairs_folder)
    return _summary(out, method, chosen, len(tensors), pairs)


def _summary(
    out: Path, method: str, settings: Settings, tensors: int, pairs: Pairs | None
) -> dict[str, Any]:
    """Return what `--json` prints."""
    found = {"out": str(out), "method": method, "tensors": tensors, "settings": repr(settings)}
    if pairs:
        found |= {"pairs": pairs.count, "pictures": pairs.tried, "edits": pairs.edits}
    return found


def _pairs(
    base: DiffusionParts,
    recipe: ConceptRecipe,
    settings: DuoSettings,
    detector: Detector | None,
    seed: int,
    folder: Path,
    progress: Callable[[int, int, int], None] | None,
) -> Pairs:
    """Return the pairs that DUO trains on; units in the folder are read back."""
    return make_pairs(
        base,
        recipe,
        detector or load_detector(find_rule(recipe.pictures.rule).detector),
        settings.pairs,
        strength=settings.strength,
        scale=settings.edit_scale,
        tries=settings.tries,
        seed=seed,
        folder=folder,
        progress=progress,
    )


def _write(
    base: DiffusionParts,
    recipe: ConceptRecipe,
    method: str,
    settings: Settings,
    tensors: dict[str, torch.Tensor],
    out: Path,
    seed: int,
) -> None:
    """Write the trained tensors, unless one is not finite."""
    tensors = {name: tensor.float().cpu() for name, tensor in tensors.items()}
    check_finite(tensors, method, settings)
    write_unet_weights(out, tensors, _metadata(base, recipe, settings, seed))


def _metadata(
    base: DiffusionParts, recipe: ConceptRecipe, settings: Settings, seed: int
) -> dict[str, str]:
    """Return what the weights file says about itself."""
    return {
        "ine.version": __version__,
        "ine.method": method_name(settings),
        "ine.concept": recipe.name,
        "ine.base": base.name,
        "ine.recipe_hash": recipe.hash,
        "ine.settings": repr(settings),
        "ine.seed": str(seed),
        **fingerprints(base),
    }


UCE_NAMES = {
    "sequence": "UCE (sequence variant)",
    "paper": "UCE",
    "last-token": "UCE (last-token variant)",
}
"""Variant -> name in files; the plain name is the published variant's."""


def method_name(settings: Settings) -> str:
    """Return the method's name for the file's metadata: "UCE", "ESD-x", "DUO-beta500".

    The name of a variant that nobody published says so.
    """
    if isinstance(settings, UceSettings):
        return UCE_NAMES[settings.variant]
    if isinstance(settings, EsdSettings):
        ours = "" if settings.neutral == "empty" else " (neutral prompts)"
        return f"ESD-{settings.group}{ours}"
    return f"DUO-beta{settings.beta:g}"


def check_finite(tensors: dict[str, torch.Tensor], method: str, settings: Settings) -> None:
    """Raise `IneError` if a trained tensor holds NaN or infinity."""
    bad = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if bad:
        if isinstance(settings, UceSettings):
            advice = f"use a larger ridge than {settings.ridge:g} or smaller scales"
        else:
            advice = f"use a smaller lr than {settings.lr:g}"
        raise IneError(
            f"{method}: {len(bad)} of {len(tensors)} tensors hold values that are not finite, "
            f"{bad[0]} the first; nothing was written; {advice}"
        )


def check_settings(recipe: ConceptRecipe, method: str, settings: dict[str, Any]) -> Settings:
    """Return the checked settings of a method.

    Raises:
        RecipeError: Names every wrong setting with its key path.
    """
    kind: type[Settings] = SETTINGS[method]
    known = [field.name for field in fields(kind)]
    # Pydantic leaves out unknown keys of a dataclass without a word.
    problems = [(k, f"unknown key{did_you_mean(k, known)}") for k in settings if k not in known]
    try:
        chosen = TypeAdapter(kind).validate_python(settings)
    except ValidationError as error:
        problems += [
            (".".join(map(str, item["loc"])), f"{item['msg']}, found {item['input']!r:.60}")
            for item in error.errors()
        ]
    if problems:
        listed = "; ".join(f"erase.{method}.{key}: {what}" for key, what in problems)
        raise RecipeError(f"recipe {recipe.name}: {listed}")
    if isinstance(chosen, UceSettings):
        return chosen.resolved(len(erase_texts(recipe).preserve))
    return chosen.resolved() if isinstance(chosen, DuoSettings) else chosen
