"""`ine unlearn` from recipe to file."""

from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from ine import __version__
from ine.embedding import fingerprints
from ine.errors import RecipeError
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
    kind = {"uce": UceSettings, "esd": EsdSettings}[method]
    try:
        chosen = TypeAdapter(kind).validate_python(settings)
    except ValidationError as error:
        first = error.errors()[0]
        raise RecipeError(
            f"recipe {recipe.name}: erase.{method}.{'.'.join(map(str, first['loc']))}: "
            f"{first['msg']}"
        ) from error
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
