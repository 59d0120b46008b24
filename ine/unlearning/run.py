"""`ine unlearn` from recipe to file."""

from dataclasses import fields
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError

from ine import __version__
from ine.embedding import fingerprints
from ine.errors import IneError, RecipeError, did_you_mean
from ine.files import check_free
from ine.models.checkpoints import write_unet_weights
from ine.unlearning.esd import EsdSettings, esd
from ine.unlearning.pairs import erase_texts
from ine.unlearning.uce import UceSettings, uce


def unlearn_concept(base, recipe, method, settings, out, *, seed=0, force=False, on_step=None):
    """Erase a concept and write the weights that changed, in the authors' layout.

    Args:
        base: The base model's parts; not changed.
        recipe: A `ConceptRecipe` with an `erase` section.
        method: "uce" or "esd".
        settings: Fields of `UceSettings` or `EsdSettings`.
        out: The `.safetensors` file; UCE's hold cross-attention keys and values, ESD's the
            trained group, both under plain diffusers names.
        seed: Where all randomness comes from (UCE needs none).
        force: Replace what is there; of an interrupted ESD only that of other settings.
        on_step: Called with (iteration, loss).

    Returns:
        A summary for `--json`.

    Raises:
        IneError: The method diverged, or an interrupted ESD of other settings is there.
        OutputError: `out` is there already, or cannot be written.
        RecipeError: A setting is wrong.
    """
    check_free(out, force)
    texts = erase_texts(recipe)
    chosen = check_settings(recipe, method, settings)
    state = Path(out).with_name(Path(out).name + ".state")
    if method == "uce":
        tensors = uce(base, texts, chosen)
    else:
        tensors = esd(base, texts, chosen, seed=seed, state=state, on_step=on_step, force=force)
        tensors = {name: tensor.float().cpu() for name, tensor in tensors.items()}
    check_finite(tensors, method, chosen)
    write_unet_weights(
        out,
        tensors,
        {
            "ine.version": __version__,
            "ine.method": method.upper() + (f"-{chosen.group}" if method == "esd" else ""),
            "ine.concept": recipe.name,
            "ine.base": base.name,
            "ine.recipe_hash": recipe.hash,
            "ine.settings": repr(chosen),
            "ine.seed": str(seed),
            **fingerprints(base),
        },
    )
    if method == "esd":
        state.unlink(missing_ok=True)
    return {"out": str(out), "method": method, "tensors": len(tensors), "settings": repr(chosen)}


def check_finite(tensors, method, settings):
    """Raise `IneError` if a tensor that is to be written holds NaN or infinity."""
    bad = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if bad:
        advice = {
            "esd": lambda: f"use a smaller lr than {settings.lr:g}",
            "uce": lambda: f"use a larger ridge than {settings.ridge:g} or smaller scales",
        }[method]()
        raise IneError(
            f"{method}: {len(bad)} of {len(tensors)} tensors hold values that are not finite, "
            f"{bad[0]} the first; nothing was written; {advice}"
        )


def check_settings(recipe, method, settings):
    """Return `UceSettings` or `EsdSettings`; every problem is named with its key path."""
    kind = {"uce": UceSettings, "esd": EsdSettings}[method]
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
    return chosen
