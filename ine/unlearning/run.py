"""`ine unlearn` from recipe to file."""

from dataclasses import fields
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from ine import __version__
from ine.embedding import fingerprints
from ine.errors import RecipeError, did_you_mean
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
        force: Replace what is there, and begin an interrupted ESD anew.
        on_step: Called with (iteration, loss).

    Returns:
        A summary for `--json`.
    """
    check_free(out, force)
    texts = erase_texts(recipe)
    chosen = check_settings(recipe, method, settings)
    state = Path(out).with_name(Path(out).name + ".state")
    if method == "uce":
        tensors = uce(base, texts, chosen)
    else:
        if force:
            state.unlink(missing_ok=True)
        tensors = esd(base, texts, chosen, seed=seed, state=state, on_step=on_step)
        tensors = {name: tensor.float().cpu() for name, tensor in tensors.items()}
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
    state.unlink(missing_ok=True)
    return {"out": str(out), "method": method, "tensors": len(tensors), "settings": repr(chosen)}


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
