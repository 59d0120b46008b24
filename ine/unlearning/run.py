"""`ine unlearn` from recipe to file."""

from dataclasses import fields
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError

from ine import __version__
from ine.embedding import fingerprints
from ine.errors import IneError, RecipeError, did_you_mean
from ine.files import check_free
from ine.judging.detectors import load_detector
from ine.judging.rules import find_rule
from ine.models.checkpoints import write_unet_weights
from ine.unlearning.duo import DuoSettings, duo
from ine.unlearning.duo_pairs import make_pairs, remove_units
from ine.unlearning.esd import EsdSettings, esd
from ine.unlearning.pairs import erase_texts
from ine.unlearning.uce import UceSettings, uce

SETTINGS = {"uce": UceSettings, "esd": EsdSettings, "duo": DuoSettings}
"""Method -> class of its settings; the recipe's `erase` section has a field of each name."""


def unlearn_concept(
    base,
    recipe,
    method,
    settings,
    out,
    *,
    seed=0,
    force=False,
    on_step=None,
    detector=None,
    pairs_dir=None,
    on_pairs=None,
):
    """Erase a concept and write the weights that changed, in the authors' layout.

    Args:
        base: The base model's parts; not changed.
        recipe: A `ConceptRecipe` with an `erase` section.
        method: "uce", "esd" or "duo".
        settings: Fields of `UceSettings`, `EsdSettings` or `DuoSettings`.
        out: The `.safetensors` file; UCE's hold cross-attention keys and values, ESD's the
            trained group, both under plain diffusers names, DUO's a LoRA under diffusers' names.
        seed: Where all randomness comes from (UCE needs none).
        force: Replace what is there; of an interrupted training only that of other settings.
        on_step: Called with (iteration, loss).
        detector: DUO: the detector of the recipe's rule; loaded when it is not given.
        pairs_dir: DUO: folder where the pairs are kept for other runs, such as other betas; by
            default they lie beside `out` and are removed at the end.
        on_pairs: DUO: called with (pairs found, wanted, pictures made).

    Returns:
        A summary for `--json`.

    Raises:
        IneError: The method diverged, or an interrupted training of other settings is there.
        OutputError: `out` is there already, or cannot be written.
        PicturesError: DUO: too few pairs were found.
        RecipeError: A setting is wrong.
    """
    check_free(out, force)
    texts = erase_texts(recipe)
    chosen = check_settings(recipe, method, settings)
    state = Path(out).with_name(Path(out).name + ".state")
    pairs_folder = Path(out).with_name(Path(out).name + ".pairs")
    told = {}
    if method == "uce":
        tensors = uce(base, texts, chosen)
    elif method == "esd":
        tensors = esd(base, texts, chosen, seed=seed, state=state, on_step=on_step, force=force)
    else:
        pairs = make_pairs(
            base,
            recipe,
            detector or load_detector(find_rule(recipe.pictures.rule).detector),
            chosen.pairs,
            strength=chosen.strength,
            scale=chosen.edit_scale,
            tries=chosen.tries,
            seed=seed,
            folder=pairs_dir or pairs_folder,
            progress=on_pairs,
        )
        told = {"pairs": pairs.count, "pictures": pairs.tried, "edits": pairs.edits}
        tensors = duo(base, pairs, chosen, seed=seed, state=state, on_step=on_step, force=force)
    if method != "uce":
        tensors = {name: tensor.float().cpu() for name, tensor in tensors.items()}
    check_finite(tensors, method, chosen)
    write_unet_weights(
        out,
        tensors,
        {
            "ine.version": __version__,
            "ine.method": method_name(method, chosen),
            "ine.concept": recipe.name,
            "ine.base": base.name,
            "ine.recipe_hash": recipe.hash,
            "ine.settings": repr(chosen),
            "ine.seed": str(seed),
            **fingerprints(base),
        },
    )
    if method != "uce":
        state.unlink(missing_ok=True)
    if method == "duo":
        remove_units(pairs_folder)
    summary = {"out": str(out), "method": method, "tensors": len(tensors)}
    return {**summary, "settings": repr(chosen), **told}


def method_name(method, settings):
    """Return what a file says that made it: "UCE", "ESD-x", "DUO-beta500"."""
    detail = {"uce": "", "esd": "-{0.group}", "duo": "-beta{0.beta:g}"}[method]
    return method.upper() + detail.format(settings)


def check_finite(tensors, method, settings):
    """Raise `IneError` if a tensor that is to be written holds NaN or infinity."""
    bad = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if bad:
        advice = {
            "esd": lambda: f"use a smaller lr than {settings.lr:g}",
            "uce": lambda: f"use a larger ridge than {settings.ridge:g} or smaller scales",
            "duo": lambda: f"use a smaller lr than {settings.lr:g}",
        }[method]()
        raise IneError(
            f"{method}: {len(bad)} of {len(tensors)} tensors hold values that are not finite, "
            f"{bad[0]} the first; nothing was written; {advice}"
        )


def check_settings(recipe, method, settings):
    """Return the settings of a method; every problem is named with its key path."""
    kind = SETTINGS[method]
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
    return chosen.resolved() if method == "duo" else chosen
