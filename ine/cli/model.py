"""The model that a command works on: base and unlearned weights, named, checked and opened once."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ine.embeddings.embedding import ConceptEmbedding
    from ine.models.parts import DiffusionParts
    from ine.recipe import ConceptRecipe
    from ine.weights.stack import WeightStack

    Unet = Path | WeightStack

log = logging.getLogger("ine")


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """What the options `--model`, `--unet`, `--device` and `--dtype` say."""

    model: str | None = None
    unet: "Unet | None" = None
    device: str = "auto"
    dtype: str = "auto"

    def choose(
        self,
        embeddings: Sequence["ConceptEmbedding"] = (),
        recipe: "ConceptRecipe | None" = None,
        default: str | None = None,
    ) -> "ChosenModel":
        """Return the model that these options stand for; nothing is loaded or downloaded.

        `--model` comes first, then the base that an embedding was made for, then the recipe's,
        then the one that the unlearned weights name.

        Args:
            embeddings: Those that are used on the model.
            recipe: The concept's recipe.
            default: The base if nothing else is given.

        Raises:
            CheckpointError: The weights cannot be used.
            ModelError: Nothing names a base.
        """
        check_unet(self.unet)
        if default and not (self.model or embeddings or recipe or self.unet):
            name, origin = default, "no --model"
        else:
            name, origin = base_name(self.model, embeddings, recipe, self.unet)
        return ChosenModel(name=name, origin=origin, options=self, embeddings=tuple(embeddings))


@dataclass(frozen=True, kw_only=True)
class ChosenModel:
    """A model that is named and not yet loaded."""

    name: str
    origin: str
    """What named it, such as "--model" or "recipe fire"."""

    options: ModelOptions
    embeddings: tuple["ConceptEmbedding", ...] = ()

    def open(self, keep_base: bool = True, check_fits: bool = True) -> "OpenModel":
        """Load the base, apply the unlearned weights, and check that the embeddings fit.

        Args:
            keep_base: False applies the weights to the base itself, which saves the memory of a
                U-Net.
            check_fits: False accepts embeddings that do not fit, and logs no notes on others.

        Raises:
            EmbeddingError: An embedding does not fit the model.
        """
        from ine.embeddings.fit import check_fits_and_log

        options = self.options
        base = load_base(self.name, self.origin, options.device, options.dtype)
        parts = apply_unet(base, options.unet, keep_base)
        if check_fits:
            check_fits_and_log(self.embeddings, parts)
        return OpenModel(base=base, parts=parts)


@dataclass(frozen=True, kw_only=True)
class OpenModel:
    """A loaded model."""

    base: "DiffusionParts"
    parts: "DiffusionParts"
    """With the unlearned weights; the base itself without any."""


def base_name(
    model: str | None = None,
    embeddings: Sequence["ConceptEmbedding"] = (),
    recipe: "ConceptRecipe | None" = None,
    unet: "Unet | None" = None,
) -> tuple[str, str]:
    """Return (name of the base model, what named it), in the order of `ModelOptions.choose`.

    Raises:
        CheckpointError: The weights cannot be read.
        ModelError: Nothing names a base.
    """
    if model:
        return model, "--model"
    for embedding in embeddings:
        if embedding.metadata.get("ine.base"):
            return embedding.metadata["ine.base"], f"embedding {embedding.trigger}"
    if recipe:
        return recipe.base, f"recipe {recipe.name}"
    if unet and (named := _base_of_weights(unet)):
        return named, unet.name
    raise _no_base(embeddings, unet)


def _base_of_weights(unet: "Unet") -> str | None:
    """Return the base that unlearned weights name."""
    from ine.errors import ModelError
    from ine.weights.read import read_weights

    weights = read_weights(unet)
    named = weights.metadata.get("ine.base")
    if not named and getattr(weights, "whole", False):
        raise ModelError(
            f"no base model is named: {unet} is a whole model, which can be the base itself; "
            f"give --model {unet} alone, or name with --model the base to apply it to"
        )
    return named


def _no_base(embeddings: Sequence["ConceptEmbedding"], unet: "Unet | None") -> Exception:
    """Return the error that says what might have named a base and does not."""
    from ine.errors import ModelError

    silent = [f"embedding {e.trigger}" for e in embeddings] + ([str(unet)] if unet else [])
    if not silent:
        return ModelError("no base model is named; give --model")
    verb = "does not say" if len(silent) == 1 else "do not say"
    return ModelError(
        f"no base model is named: {' and '.join(silent)} {verb} what it was made for; give --model"
    )


def check_unet(unet: "Unet | None") -> None:
    """Raise `CheckpointError` if the file of `--unet` is missing or holds no weights."""
    from ine.weights.read import weights_metadata

    if unet:
        weights_metadata(unet)


def load_base(
    name: str, origin: str, device: str = "auto", dtype: str = "auto"
) -> "DiffusionParts":
    """Return the parts of the base model, and log which it is and what named it."""
    from ine.models.loading import load_parts
    from ine.runtime import pick_device, pick_dtype

    where = pick_device(device)
    log.info("base model %s (from %s)", name, origin)
    return load_parts(name, where, pick_dtype(dtype, where))


def apply_unet(
    base: "DiffusionParts", unet: "Unet | None", keep_base: bool = True
) -> "DiffusionParts":
    """Return the base with the weights of `--unet` applied; the base itself without any."""
    if not unet:
        return base
    from ine.weights.apply import apply_weights

    parts, weights = apply_weights(base, unet, keep_base)
    if not weights.is_base:
        log.info("%s", weights.describe())
    return parts
