"""Whole models in one file, as UIs have them: UNet, VAE and text encoders under CompVis names.

The file is mapped, and each tensor goes to its place alone, so that in memory there is never more
than the model and one tensor.
"""

import logging
import re
from pathlib import Path

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from ine.errors import CheckpointError, ModelError
from ine.models.clip_tokenizer import clip_tokenizer
from ine.models.compvis import ENCODERS, UNET, VAE, unet_names, vae_names
from ine.models.encoders import as_named_by
from ine.models.inpainting import everything_masked
from ine.models.layouts import recognise
from ine.models.lowrank import without_kernel
from ine.models.open_clip import from_open_clip
from ine.models.parts import DiffusionParts, find_model, read_model_json, vae_dtype
from ine.models.schedules import check_schedule
from ine.models.sources import ENCODER_FOLDERS, Source
from ine.models.tokenizers import load_tokenizer
from ine.models.variants import check_known, prediction_of, stated_prediction, variants_of
from ine.models.weight_files import read_file

log = logging.getLogger("ine")

IGNORED = re.compile(
    r"(model_ema|denoiser|first_stage_model\.(loss|model_ema))\..+|cond_stage_model\.logit_scale|"
    r"(sqrt_|log_|posterior_|alphas_cumprod|lvlb_weights).*|"
    r"betas|logvar|scale_factor|global_step|v_pred|ztsnr"
)
"""Averages that training kept, its schedule, constants, and marks that are read elsewhere."""

ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
"""Settings of a scheduler for models that learned from pure noise too (Lin et al. 2023)."""

AGAIN = (
    "get the model again, or if it is one of another architecture give its pipeline folder instead"
)


def load_single_file(path, device="cpu", dtype=torch.float32, config=None):
    """Load a base model from one file, frozen and in evaluation mode.

    Averaged weights (`model_ema.*`) are not used. What it was recognised as is logged.

    Args:
        path: A .safetensors or .ckpt file with UNet, VAE and text encoders.
        device: Where the weights go.
        dtype: Floating type of the weights.
        config: Where given, a pipeline folder, or what else names one: its configurations and
            tokenizers apply in place of those that ship, and the file may be of any size.

    Returns:
        `DiffusionParts`.

    Raises:
        ModelError: It cannot be read, is something else, or lacks weights.
    """
    given, path = path, Path(path).expanduser()
    entries, metadata = _read(path)
    check_known(path, entries)
    _check_whole(path, entries, metadata)
    if config is None:
        settings = _shipped_settings(path, entries, metadata)
    else:
        folder = find_model(config)
        settings = _folder_settings(folder)
        _compare_prediction(path, entries, metadata, settings["scheduler"])
    folders = [name for name in ENCODER_FOLDERS if name in settings]
    modules = {
        "unet": _empty(UNet2DConditionModel, settings["unet"]),
        "vae": _empty(AutoencoderKL, settings["vae"]),
        **{name: _empty_encoder(name, settings[name]) for name in folders},
    }
    try:
        values, left = _sort(path, entries, modules)
    except CheckpointError as error:  # two values of one name
        raise ModelError(str(error)) from error
    for name, module in modules.items():
        _check(path, name, module, values[name])
    for name, module in modules.items():
        _fill(module, values[name], device, vae_dtype(settings[name], dtype))
    if left:
        log.warning(
            "%s: %d tensors are not used, such as %s", path.name, len(left), ", ".join(left[:3])
        )
    return DiffusionParts(
        name=str(given),
        tokenizers=tuple(
            clip_tokenizer(settings[_tokenizer(name)]["pad_token"])
            if config is None
            else _tokenizer_of(folder / _tokenizer(name), modules[name])
            for name in folders
        ),
        text_encoders=tuple(modules[name] for name in folders),
        unet=modules["unet"],
        vae=modules["vae"],
        scheduler_config=settings["scheduler"],
        zeros_for_nothing=settings["model_index"].get("force_zeros_for_empty_prompt") is True,
        beside=everything_masked(modules["unet"], modules["vae"]),
    )


def _tokenizer(encoder):
    """Return the name of an encoder's tokenizer."""
    return encoder.replace("text_encoder", "tokenizer")


def _tokenizer_of(folder, encoder):
    rows = len(encoder.get_input_embeddings().weight)
    return load_tokenizer(folder, encoder.config.max_position_embeddings, rows)


def _read(path):
    """Return the entries of a file without what wraps them, and its metadata."""
    try:
        entries, metadata = read_file(path)
    except CheckpointError as error:
        raise ModelError(str(error)) from error
    inner = entries.get("state_dict")
    if isinstance(inner, dict):
        steps = {"global_step": entries["global_step"]} if "global_step" in entries else {}
        entries = steps | {str(name): value for name, value in inner.items()}
    return entries, metadata


def _shipped_settings(path, entries, metadata):
    """Return the configurations that ship for the variant that a file holds."""
    rows = variants_of(path, entries)
    prediction, why = prediction_of(path, entries, metadata, rows[0])
    row = next((row for row in rows if row.prediction == prediction), rows[0])
    log.info("%s: %s, predicts %s (%s)", path.name, row.title, prediction, why)
    settings = row.settings()
    settings["scheduler"]["prediction_type"] = prediction
    if "ztsnr" in entries:
        settings["scheduler"] |= ZERO_SNR
    return settings


def _folder_settings(folder):
    """Return the configurations of a pipeline folder, in the form of `Variant.settings`."""
    names = [n for n in ENCODER_FOLDERS if (folder / n / "config.json").is_file()]
    schedule = folder / "scheduler" / "scheduler_config.json"
    scheduler = read_model_json(schedule)
    check_schedule(schedule, scheduler)
    return {
        **{n: read_model_json(folder / n / "config.json") for n in ("unet", "vae", *names)},
        "scheduler": scheduler,
        "model_index": read_model_json(folder / "model_index.json"),
    }


def _compare_prediction(path, entries, metadata, scheduler):
    """Warn where a file says that it predicts something else than a scheduler's configuration."""
    stated, why = stated_prediction(path, entries, metadata)
    used = scheduler.get("prediction_type", "epsilon")
    if stated and stated != used:
        log.warning(
            "%s: predicts %s (%s), the configuration says %s, which is used",
            path.name,
            stated,
            why,
            used,
        )


def _check_whole(path, entries, metadata):
    """Refuse files that hold a part of a model, or none of it, and say what they are."""
    if any(name.startswith(UNET) for name in entries):
        if not any(name.startswith((VAE, *ENCODERS)) for name in entries):
            raise _partial(path, "a UNet under CompVis names")
        return
    try:
        names, _ = recognise(Source(path=path, entries=entries, metadata=metadata))
    except CheckpointError as error:
        keys = ", ".join(list(entries)[:3]) or "(none)"
        raise ModelError(
            f"{path}: is no Stable Diffusion model in one file; its keys are like {keys}, "
            f"expected {UNET}*, {VAE}* and text encoders"
        ) from error
    raise _partial(path, f"what is laid over a model ({names[-1]})")


def _partial(path, what):
    return ModelError(
        f"{path}: holds {what}, no whole model; lay it over the base that it was made from: "
        f"--unet {path} --model BASE"
    )


def _empty(kind, settings):
    """Return a model of diffusers whose weights take no memory."""
    with init_empty_weights(include_buffers=False):
        return kind.from_config(settings)


def _empty_encoder(name, settings):
    kind = CLIPTextModelWithProjection if name == ENCODER_FOLDERS[1] else CLIPTextModel
    with init_empty_weights(include_buffers=False):
        return kind(CLIPTextConfig.from_dict(settings))


def _sort(path, entries, modules):
    """Return {component: {name in its state dict: tensor}}, and the keys that are nothing's."""
    found, left = {name: {} for name in modules}, []
    names = {UNET: unet_names(modules["unet"]), VAE: vae_names(modules["vae"])}
    places = {UNET: "unet", VAE: "vae"} | {p: n for p, n in ENCODERS.items() if n in modules}
    for key, tensor in entries.items():
        prefix = next((prefix for prefix in places if key.startswith(prefix)), None)
        name = key.removeprefix(prefix or "")
        if prefix in ENCODERS:
            found[places[prefix]][name] = tensor
        elif name in names.get(prefix, ()):
            found[places[prefix]][names[prefix][name]] = tensor
        elif not IGNORED.fullmatch(key):
            left.append(key)
    for name in ENCODER_FOLDERS:
        if name in modules:
            module, state = modules[name], found[name]
            state = {n: t for n, t in state.items() if isinstance(t, torch.Tensor)}
            found[name] = as_named_by(module, from_open_clip(module, state)[0], path)
            own = module.state_dict()
            left += [f"{n} of {name}" for n in found[name] if n not in own]
    return found, left


def _check(path, what, module, values):
    """Refuse values of which one is missing, of another shape, or no floating-point tensor."""
    own = module.state_dict()
    if not values:
        raise ModelError(
            f"{path}: has no {what}, which some UIs take from another file; save the model with "
            "all its parts, or give a pipeline folder"
        )
    if missing := [name for name in own if name not in values]:
        raise ModelError(
            f"{path}: lacks {len(missing)} of {len(own)} weights of its {what}: "
            f"{', '.join(missing[:3])}; {AGAIN}"
        )
    for name in own:
        value = values[name]
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            found = getattr(value, "dtype", type(value).__name__)
            raise ModelError(
                f"{path}: {name} of its {what} is {found}, expected floating-point weights; "
                "quantised models must be converted back first"
            )
    # A matrix and a convolution of 1 x 1 are the same numbers.
    shapes = [
        f"{name} is {tuple(values[name].shape)}, expected {tuple(empty.shape)}"
        for name, empty in own.items()
        if without_kernel(values[name].shape) != without_kernel(empty.shape)
    ]
    if shapes:
        raise ModelError(
            f"{path}: {len(shapes)} weights of its {what} have another shape: "
            f"{'; '.join(shapes[:3])}; {AGAIN}"
        )


def _fill(module, values, device, dtype):
    """Give a module its weights, one by one, in aligned memory of their own; then freeze it."""
    for name, empty in module.state_dict().items():
        placed = torch.empty(empty.shape, dtype=dtype, device=device)
        placed.copy_(values[name].reshape(empty.shape))
        owner, _, leaf = name.rpartition(".")
        module.get_submodule(owner).register_parameter(leaf, nn.Parameter(placed, False))
    module.to(device).eval()
