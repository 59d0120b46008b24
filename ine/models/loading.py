"""Load a base model: the bundled one, a pipeline folder, a hub id, or a single file."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from ine.errors import ModelError
from ine.models.folder import load_component
from ine.models.inpainting import everything_masked
from ine.models.parts import MINI, DiffusionParts, find_model, read_model_json, vae_dtype
from ine.models.single_file import load_single_file
from ine.models.tokenizers import load_tokenizer
from ine.schedules import check_schedule
from ine.weights.foreign import component_class, foreign_class

MOST_SIDE = 1024
"""Largest side of a latent; 8192 pixels."""


def load_parts(
    model: str | Path = MINI,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> DiffusionParts:
    """Load a base model, frozen and in evaluation mode.

    Args:
        model: "mini" (bundled), a diffusers pipeline folder, a whole model in one file, or a hub
            id.
        device: Device of the weights.
        dtype: Floating type of the weights; mini and runs on a CPU need float32.

    Raises:
        ModelError: The folder or id is not a Stable Diffusion pipeline, or is not on this
            machine and cannot be fetched.
    """
    folder = find_model(model)
    if folder.is_file():
        return load_single_file(model, device, dtype)
    index = _read_index(model, folder)
    tokenizers, encoders = _load_encoders(model, folder, index, device, dtype)
    schedule = _load_schedule(folder, index)
    unet = _load(UNet2DConditionModel, folder / "unet", device, dtype)
    vae_config = folder / "vae" / "config.json"
    upcast = read_model_json(vae_config) if vae_config.is_file() else {}
    vae = _load(AutoencoderKL, folder / "vae", device, vae_dtype(upcast, dtype))
    parts = DiffusionParts(
        name=str(model),
        tokenizers=tokenizers,
        text_encoders=encoders,
        unet=unet,
        vae=vae,
        scheduler_config=schedule,
        zeros_for_nothing=index.get("force_zeros_for_empty_prompt") is True,
    )
    _check_pieces(parts)
    return replace(parts, inpainting_input=everything_masked(unet, vae))


def _read_index(model: str | Path, folder: Path) -> dict[str, Any]:
    """Return the index of a pipeline folder; refuse a pipeline that ine cannot use."""
    index = read_model_json(folder / "model_index.json")
    if name := foreign_class(index):
        raise ModelError(
            f"{model}: is a {name}, which ine cannot use; give a pipeline of Stable Diffusion 1.x, "
            "2.x or XL"
        )
    return index


def _load_schedule(folder: Path, index: Mapping[str, Any]) -> dict[str, Any]:
    """Return the scheduler configuration of a pipeline folder, checked."""
    # diffusers makes the class that the index names, whatever the configuration says.
    named = {"_class_name": component_class(index, "scheduler")}
    check_schedule(folder / "model_index.json", named)
    path = folder / "scheduler" / "scheduler_config.json"
    settings = read_model_json(path)
    check_schedule(path, settings)
    return settings


def _load_encoders(
    model: str | Path,
    folder: Path,
    index: Mapping[str, Any],
    device: str | torch.device,
    dtype: torch.dtype,
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Return (tokenizers, text encoders) of a pipeline folder, one or two each."""
    tokenizers, encoders = [], []
    for suffix in ("", "_2"):
        named = component_class(index, f"text_encoder{suffix}")
        if named is None:
            continue
        if named not in ("CLIPTextModel", "CLIPTextModelWithProjection"):
            raise ModelError(
                f"{model}: has a text encoder of class {str(named)[:80]}, expected a "
                "CLIPTextModel; give a Stable Diffusion model"
            )
        kind = CLIPTextModelWithProjection if suffix else CLIPTextModel
        encoder = _load(kind, folder / f"text_encoder{suffix}", device, dtype)
        room = encoder.config.max_position_embeddings
        rows = len(encoder.get_input_embeddings().weight)
        tokenizers.append(load_tokenizer(folder / f"tokenizer{suffix}", room, rows))
        encoders.append(encoder)
    if not encoders:
        raise ModelError(f"{model}: has no CLIP text encoder; ine needs a Stable Diffusion model")
    return tuple(tokenizers), tuple(encoders)


def _check_pieces(parts: DiffusionParts) -> None:
    """Refuse components that do not belong to one model."""
    states = sum(encoder.config.hidden_size for encoder in parts.text_encoders)
    if parts.width != states:
        raise ModelError(
            f"{parts.name}: its U-Net reads text states of width {parts.width}, its text encoders "
            f"make {states}; its folders are of different models, get the model again"
        )
    size = parts.unet.config.sample_size
    sides = size if isinstance(size, list | tuple) else [size, size]
    if len(sides) != 2 or not all(type(n) is int and 0 < n <= MOST_SIDE for n in sides):
        raise ModelError(
            f"{parts.name}: the sample_size of its U-Net is {str(size)[:80]}, expected the side of "
            "a latent; get the model again"
        )


def _load(kind: Any, folder: Path, device: str | torch.device, dtype: torch.dtype) -> Any:
    module, info = load_component(kind, folder, dtype)
    # The libraries fill gaps with random numbers and go on.
    if gaps := sorted(info["missing_keys"]):
        raise ModelError(
            f"{folder}: lacks {len(gaps)} weights of a {kind.__name__}, {gaps[0]} the first; get "
            "the model again"
        )
    # A text encoder's file may hold more than is used (position_ids, a projection).
    extra = [] if hasattr(module, "get_input_embeddings") else sorted(info["unexpected_keys"])
    if extra:
        raise ModelError(
            f"{folder}: has {len(extra)} weights that its configuration has no place for, "
            f"{extra[0]} the first; get the model again"
        )
    module = module.to(device).eval().requires_grad_(False)
    for parameter in module.parameters():
        # Mapped tensors are aligned differently; with them a copy of the model would predict
        # differently in the last bits.
        parameter.data = parameter.data.clone()
    return module
