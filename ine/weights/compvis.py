"""CompVis names (`model.diffusion_model.input_blocks.1.1...`) of a diffusers model's tensors.

Each name is derived alone, from the configuration, so that a file with a few tensors is read as
surely as a whole one. diffusers' own converter walks whole blocks, and drops the tensors of
incomplete blocks.
"""

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from ine.weights.open_clip import from_open_clip, to_open_clip
from ine.weights.source import ENCODER_FOLDERS, Source, once_each

UNET = "model.diffusion_model."
VAE = "first_stage_model."
ENCODERS = {
    "cond_stage_model.transformer.": "text_encoder",
    "cond_stage_model.model.": "text_encoder",
    "conditioner.embedders.0.transformer.": "text_encoder",
    "conditioner.embedders.1.model.": "text_encoder_2",
}
"""Prefix of a text encoder's names -> its folder; under `model.` OpenCLIP's names follow."""

BARE = ("input_blocks.", "middle_block.", "output_blocks.")

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "class_embedding.linear_1": "label_emb.0.0",
    "class_embedding.linear_2": "label_emb.0.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


log = logging.getLogger("ine")


def is_compvis(source: Source) -> bool:
    """Return whether keys belong to a CompVis checkpoint's UNet, or to an OpenCLIP encoder.

    An encoder of OpenAI's alone does not count: its names are those of transformers.
    """
    signs = (*BARE, "cond_stage_model.model.", "conditioner.embedders.")
    return any("diffusion_model." in key or key.startswith(signs) for key in source.entries)


def open_compvis(source: Source) -> Source:
    """Keep the UNet and the text encoders of a checkpoint; drop VAE, EMA and schedules."""
    unet, found = {}, {folder: list(state.items()) for folder, state in source.encoders.items()}
    for key, tensor in source.entries.items():
        if "diffusion_model." in key or key.startswith(
            (*BARE, "time_embed.", "out.", "label_emb.")
        ):
            unet[key] = tensor
        for prefix, folder in ENCODERS.items():
            if key.startswith(prefix):
                found.setdefault(folder, []).append((key.removeprefix(prefix), tensor))
    encoders = {folder: once_each(source.path, pairs) for folder, pairs in found.items()}
    whole = bool(unet and encoders) and any(key.startswith(VAE) for key in source.entries)
    made = replace(source, entries=unet, encoders=encoders, whole=whole)
    if any(key.startswith("model_ema.") for key in source.entries):
        made = replace(made, notes=(*made.notes, "averages (model_ema.*) are not used"))
    return replace(made, rename=_rename, done=True)


def _rename(parts: Any, source: Source) -> Source:
    names = unet_names(parts.unet)
    pairs = [
        (names.get(key.rpartition("diffusion_model.")[2], key), tensor)
        for key, tensor in source.entries.items()
    ]
    encoders = dict(source.encoders)
    for folder, encoder in zip(ENCODER_FOLDERS, parts.text_encoders, strict=False):
        encoders[folder], left = from_open_clip(encoder, encoders.get(folder, {}))
        for name, why in left.items():
            log.debug("%s: %s of %s is not used, it %s", source.path.name, name, folder, why)
    return replace(source, entries=once_each(source.path, pairs), encoders=encoders)


def unet_names(unet: Any) -> dict[str, str]:
    """Return {CompVis name without its prefix: name in the UNet's state dict}.

    Args:
        unet: A `UNet2DConditionModel`; its weights are not read.
    """
    places = unet_places(unet.config)
    made = {}
    for name in unet.state_dict():
        place = next((p for p in _prefixes(name) if p in places), None)
        if place is None:
            continue
        tail = name[len(place) + 1 :]
        if ".resnets." in place:
            layer, _, leaf = tail.rpartition(".")
            tail = f"{RESNET.get(layer, layer)}.{leaf}"
        made[f"{places[place]}.{tail}"] = name
    return made


def _prefixes(name: str) -> list[str]:
    """Return the paths of the modules that contain a tensor, innermost first."""
    parts = name.split(".")
    return [".".join(parts[:n]) for n in range(len(parts) - 1, 0, -1)]


def unet_places(config: Mapping[str, Any]) -> dict[str, str]:
    """Return {path of a diffusers module: its CompVis path} for a UNet's configuration.

    CompVis numbers blocks from the input: one for each resnet (0) with its attention (1), one
    for each downsampler. The same holds upwards, but an upsampler is part of the last block.
    """
    places = dict(ENDS)
    blocks, depths = len(config["down_block_types"]), config["layers_per_block"]
    depths = [depths] * blocks if isinstance(depths, int) else list(depths)
    at = 1
    for block, (kind, depth) in enumerate(zip(config["down_block_types"], depths, strict=True)):
        for layer in range(depth):
            places[f"down_blocks.{block}.resnets.{layer}"] = f"input_blocks.{at}.0"
            if "Attn" in kind:
                places[f"down_blocks.{block}.attentions.{layer}"] = f"input_blocks.{at}.1"
            at += 1
        if block < blocks - 1:
            places[f"down_blocks.{block}.downsamplers.0.conv"] = f"input_blocks.{at}.0.op"
            at += 1
    places |= {
        "mid_block.resnets.0": "middle_block.0",
        "mid_block.attentions.0": "middle_block.1",
        "mid_block.resnets.1": "middle_block.2",
    }
    at = 0
    for block, (kind, depth) in enumerate(
        zip(config["up_block_types"], reversed(depths), strict=True)
    ):
        for layer in range(depth + 1):
            places[f"up_blocks.{block}.resnets.{layer}"] = f"output_blocks.{at}.0"
            if "Attn" in kind:
                places[f"up_blocks.{block}.attentions.{layer}"] = f"output_blocks.{at}.1"
            at += 1
        if block < blocks - 1:
            slot = 2 if "Attn" in kind else 1
            places[f"up_blocks.{block}.upsamplers.0.conv"] = f"output_blocks.{at - 1}.{slot}.conv"
    return places


def vae_names(vae: Any) -> dict[str, str]:
    """Return {CompVis name without its prefix: name in the state dict of an `AutoencoderKL`}.

    Upwards CompVis counts blocks from the output. Its attention is made of 1 x 1 convolutions,
    so those weights are [C, C, 1, 1] there and [C, C] in diffusers.
    """
    last = len(vae.config.block_out_channels) - 1
    rules: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
        (
            r"(encoder|decoder)\.mid_block\.resnets\.(\d)",
            lambda m: f"{m[1]}.mid.block_{int(m[2]) + 1}",
        ),
        (r"(encoder|decoder)\.mid_block\.attentions\.0", r"\1.mid.attn_1"),
        (r"encoder\.down_blocks\.(\d+)\.resnets\.(\d+)", r"encoder.down.\1.block.\2"),
        (r"encoder\.down_blocks\.(\d+)\.downsamplers\.0", r"encoder.down.\1.downsample"),
        (
            r"decoder\.up_blocks\.(\d+)\.resnets\.(\d+)",
            lambda m: f"decoder.up.{last - int(m[1])}.block.{m[2]}",
        ),
        (
            r"decoder\.up_blocks\.(\d+)\.upsamplers\.0",
            lambda m: f"decoder.up.{last - int(m[1])}.upsample",
        ),
        (r"\.conv_norm_out\.", ".norm_out."),
        (r"\.conv_shortcut\.", ".nin_shortcut."),
        (r"\.attn_1\.group_norm\.", ".attn_1.norm."),
        (r"\.attn_1\.to_(q|k|v)\.", r".attn_1.\1."),
        (r"\.attn_1\.to_out\.0\.", ".attn_1.proj_out."),
    )
    made = {}
    for name in vae.state_dict():
        old = name
        for pattern, new in rules:
            old = re.sub(pattern, new, old)
        made[old] = name
    return made


def single_file(parts: Any) -> dict[str, torch.Tensor]:
    """Return the tensors of a pipeline under CompVis names, as UIs load them.

    Args:
        parts: A `DiffusionParts` of any family. Of SD 2.x OpenCLIP's last layer, whose states no
            program reads, is not among them.

    Returns:
        {name: tensor}, in the dtypes of the parts. The empty tensors `v_pred` and `ztsnr` tell
        ComfyUI that a model predicts v and learned from pure noise.
    """
    state = parts.unet.state_dict()
    made = {UNET + old: state[new] for old, new in unet_names(parts.unet).items()}
    state = parts.vae.state_dict()
    for old, new in vae_names(parts.vae).items():
        kernel = ".attn_1." in old and state[new].dim() == 2
        made[VAE + old] = state[new][:, :, None, None] if kernel else state[new]
    for prefix, encoder in zip(
        encoder_prefixes(parts.text_encoders), parts.text_encoders, strict=True
    ):
        if prefix.endswith(".model."):
            made |= {prefix + name: tensor for name, tensor in to_open_clip(encoder).items()}
            continue
        for name, tensor in encoder.state_dict().items():
            made[f"{prefix}text_model.{name.removeprefix('text_model.')}"] = tensor
    marks = {
        "v_pred": parts.prediction_type == "v_prediction",
        "ztsnr": bool(parts.scheduler_config.get("rescale_betas_zero_snr")),
    }
    return made | {mark: torch.empty(0) for mark, given in marks.items() if given}


def encoder_prefixes(encoders: Sequence[Any]) -> tuple[str, ...]:
    """Return what the names of each text encoder start with.

    One encoder is OpenAI's (SD 1.x), or OpenCLIP's (SD 2.x), which has another activation; SDXL
    has one of each.
    """
    if len(encoders) == 2:
        return ("conditioner.embedders.0.transformer.", "conditioner.embedders.1.model.")
    kind = "transformer" if encoders[0].config.hidden_act == "quick_gelu" else "model"
    return (f"cond_stage_model.{kind}.",)
