"""Build the components of a model from the tensors of one file under CompVis names.

Tensors are copied one by one from the mapped file, so memory never holds more than the model and
one tensor.
"""

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from ine.errors import CheckpointError, ModelError
from ine.models.parts import vae_dtype
from ine.weights.compvis import ENCODERS, UNET, VAE, unet_names, vae_names
from ine.weights.encoders import as_named_by
from ine.weights.lowrank import without_kernel
from ine.weights.open_clip import from_open_clip
from ine.weights.source import ENCODER_FOLDERS

log = logging.getLogger("ine")

IGNORED = re.compile(
    r"(model_ema|denoiser|first_stage_model\.(loss|model_ema))\..+|cond_stage_model\.logit_scale|"
    r"(sqrt_|log_|posterior_|alphas_cumprod|lvlb_weights).*|"
    r"betas|logvar|scale_factor|global_step|v_pred|ztsnr"
)
"""Averages of training, its schedule, constants, and marks that other code reads."""

AGAIN = (
    "get the model again, or if it is one of another architecture give its pipeline folder instead"
)


def build_modules(
    path: Path,
    entries: Mapping[str, Any],
    settings: Mapping[str, Any],
    device: str | torch.device,
    dtype: torch.dtype,
) -> dict[str, Any]:
    """Return {component: module with the file's weights}; warn of tensors that are not used.

    Args:
        path: For error messages.
        entries: {CompVis name: tensor} of UNet, VAE and text encoders.
        settings: {component: its configuration}.
        device: Device of the weights.
        dtype: Floating type of the weights.

    Raises:
        ModelError: Weights are missing, have another shape, or are no floating-point tensors.
    """
    modules = {
        "unet": _empty(UNet2DConditionModel, settings["unet"]),
        "vae": _empty(AutoencoderKL, settings["vae"]),
        **{
            name: _empty_encoder(name, settings[name])
            for name in ENCODER_FOLDERS
            if name in settings
        },
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
        some = ", ".join(left[:3])
        log.warning("%s: %d tensors are not used, such as %s", path.name, len(left), some)
    return modules


def _empty(kind: Any, settings: Mapping[str, Any]) -> Any:
    """Return a model of diffusers whose weights take no memory."""
    with init_empty_weights(include_buffers=False):
        return kind.from_config(settings)


def _empty_encoder(name: str, settings: Mapping[str, Any]) -> Any:
    kind = CLIPTextModelWithProjection if name == ENCODER_FOLDERS[1] else CLIPTextModel
    with init_empty_weights(include_buffers=False):
        return kind(CLIPTextConfig.from_dict(settings))


def _sort(
    path: Path, entries: Mapping[str, Any], modules: Mapping[str, Any]
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Return {component: {name in its state dict: tensor}}, and the keys of no component."""
    found: dict[str, dict[str, Any]] = {name: {} for name in modules}
    left = []
    names = {UNET: unet_names(modules["unet"]), VAE: vae_names(modules["vae"])}
    places = {UNET: "unet", VAE: "vae"} | {p: n for p, n in ENCODERS.items() if n in modules}
    for key, tensor in entries.items():
        prefix = next((prefix for prefix in places if key.startswith(prefix)), "")
        name = key.removeprefix(prefix)
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


def _check(path: Path, what: str, module: Any, values: Mapping[str, Any]) -> None:
    """Refuse values if one is missing, has another shape, or is no floating-point tensor."""
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


def _fill(
    module: Any, values: Mapping[str, Any], device: str | torch.device, dtype: torch.dtype
) -> None:
    """Copy weights into a module, one by one, to newly allocated memory; then freeze it."""
    for name, empty in module.state_dict().items():
        placed = torch.empty(empty.shape, dtype=dtype, device=device)
        placed.copy_(values[name].reshape(empty.shape))
        owner, _, leaf = name.rpartition(".")
        module.get_submodule(owner).register_parameter(leaf, nn.Parameter(placed, False))
    module.to(device).eval()
