"""A base model from wherever it is: the bundled one, a pipeline folder, the hub, a single file."""

from dataclasses import replace

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from ine.errors import ModelError
from ine.models.components import load_component
from ine.models.inpainting import everything_masked
from ine.models.parts import MINI, DiffusionParts, find_model, read_model_json, vae_dtype
from ine.models.schedules import check_schedule
from ine.models.single_file import load_single_file
from ine.models.tokenizers import load_tokenizer

MOST_SIDE = 1024
"""Side of a latent, 8192 pixels."""


def load_parts(model=MINI, device="cpu", dtype=torch.float32):
    """Load a base model, frozen and in evaluation mode.

    Args:
        model: "mini" (bundled), a diffusers pipeline folder, a whole model in one file, or a hub
            id.
        device: Where the weights go.
        dtype: Floating type of the weights; mini and CPU runs want float32.

    Raises:
        ModelError: The folder or id is not a Stable Diffusion pipeline, or is not on this
            machine and cannot be fetched.
    """
    folder = find_model(model)
    if folder.is_file():
        return load_single_file(model, device, dtype)
    index = read_model_json(folder / "model_index.json")
    tokenizers, encoders = [], []
    for suffix in ("", "_2"):
        # [library, class], or twice null where there is none.
        found = index.get(f"text_encoder{suffix}") or [None]
        named = found[-1] if isinstance(found, list) else found
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
    schedule = folder / "scheduler" / "scheduler_config.json"
    settings = read_model_json(schedule)
    check_schedule(schedule, settings)
    unet = _load(UNet2DConditionModel, folder / "unet", device, dtype)
    vae_config = folder / "vae" / "config.json"
    upcast = read_model_json(vae_config) if vae_config.is_file() else {}
    vae = _load(AutoencoderKL, folder / "vae", device, vae_dtype(upcast, dtype))
    parts = DiffusionParts(
        name=str(model),
        tokenizers=tuple(tokenizers),
        text_encoders=tuple(encoders),
        unet=unet,
        vae=vae,
        scheduler_config=settings,
        zeros_for_nothing=index.get("force_zeros_for_empty_prompt") is True,
    )
    _check_pieces(parts)
    return replace(parts, beside=everything_masked(unet, vae))


def _check_pieces(parts):
    """Refuse pieces that do not belong to one model."""
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


def _load(kind, folder, device, dtype):
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
        # Mapped tensors are not aligned like ordinary ones, and a copy of such a model would
        # predict differently in the last bits.
        parameter.data = parameter.data.clone()
    return module
