"""Models that ine cannot use, recognised by their keys or class, so that errors can name them."""

from collections.abc import Iterable, Mapping
from typing import Any

from ine.errors import CheckpointError
from ine.weights.source import Source, read_json

SD3, FLUX = "Stable Diffusion 3", "Flux"
TRANSFORMER = "a diffusion transformer, such as Stable Diffusion 3 or Flux"
REFINER = "the refiner of Stable Diffusion XL"

WRAPPERS = (
    *("module.", "base_model.model.", "model.diffusion_model.", "model.", "transformer."),
    *("lora_unet_", "lora_transformer_"),
)
"""What may stand before a model's own names, in files of weights and of LoRAs."""

SIGNS = (
    (("joint_blocks.", "joint_blocks_"), SD3),
    (("double_blocks.", "double_blocks_", "single_blocks.", "single_blocks_"), FLUX),
    (("single_transformer_blocks.", "single_transformer_blocks_"), FLUX),
    (("transformer_blocks.", "transformer_blocks_"), TRANSFORMER),
    (("conditioner.embedders.0.model.",), REFINER),
    (("edm_mean", "edm_vpred."), "a model with EDM's noise schedule, such as Playground 2.5"),
    (("control_model.", "controlnet_cond_embedding."), "a ControlNet"),
)
"""(what some name starts with, what such a file is); the first counts."""

SD3_PARTS = ("pos_embed.", "context_embedder.")
"""Parts of Stable Diffusion 3 beside its blocks, as diffusers names them; Flux has no positions
to embed."""


def foreign_file(entries: Iterable[str]) -> str:
    """Return the kind of model that the names in a file belong to if ine cannot use it, or ""."""
    names = [_bare(name) for name in entries]
    title = next(
        (title for signs, title in SIGNS if any(name.startswith(signs) for name in names)), ""
    )
    if title == TRANSFORMER and all(any(n.startswith(p) for n in names) for p in SD3_PARTS):
        return SD3
    return title


def _bare(name: str) -> str:
    for wrapper in WRAPPERS:
        name = name.removeprefix(wrapper)
    return name


def foreign_class(config: Mapping[str, Any]) -> str:
    """Return the class of a model's or pipeline's configuration that ine cannot use, or "".

    A pipeline whose noise is predicted by a transformer has one in the place of its UNet.
    """
    name = str(config.get("_class_name") or "")[:80]
    if component_class(config, "transformer"):
        return name or "pipeline with a transformer"
    others = ("Transformer2DModel", "Transformer3DModel", "TransformerModel", "ControlNetModel")
    return name if name.endswith(others) else ""


def component_class(index: Mapping[str, Any], part: str) -> Any:
    """Return the class that a pipeline's index, `model_index.json`, names for a part, or None."""
    found = index.get(part)  # [library, class], or [null, null] without such a part
    return (found or [None])[-1] if isinstance(found, list) else found


def refuse_foreign(source: Source) -> Source:
    """Raise `CheckpointError` that names the other model in a file or folder."""
    raise CheckpointError(
        f"{source.path}: is {foreign_of(source)}, which ine cannot use; expected weights for the "
        "UNet of Stable Diffusion 1.x, 2.x or XL"
    )


def foreign_of(source: Source) -> str:
    """Return which model that ine cannot use a source belongs to, or ""."""
    if not source.folder:
        return foreign_file(source.entries)
    configs = (read_json(source.folder, name) for name in ("model_index.json", "config.json"))
    found = next((name for name in map(foreign_class, configs) if name), "")
    return f"a {found}" if found else ""
