"""The LoRA that DUO trains, on the self-attention of a copy of the U-Net."""

from functools import partial

import torch
from torch.nn.functional import linear

from ine.runtime import generator_for
from ine.weights.merge import shared_copy

PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")
"""Layers of self-attention that get a LoRA."""


def adapted(unet: torch.nn.Module) -> list[str]:
    """Return the names of the layers that get a LoRA."""
    return [
        path
        for path, module in unet.named_modules()
        if isinstance(module, torch.nn.Linear) and _is_projection(path)
    ]


def _is_projection(path: str) -> bool:
    _, found, leaf = path.rpartition(".attn1.")
    return bool(found) and leaf in PROJECTIONS


def with_lora(
    unet: torch.nn.Module, rank: int, seed: int
) -> tuple[torch.nn.Module, dict[str, torch.nn.Parameter]]:
    """Return a copy of a U-Net with a LoRA on its self-attention, and the LoRA's parameters.

    The copy shares the weights of the U-Net, which stays as it is. Down matrices are Gaussian of
    spread 1 / rank, up matrices zero, so that the copy begins as the U-Net to the bit.

    Args:
        unet: The frozen model.
        rank: R; alpha is the same, so the scale is 1.
        seed: Where the Gaussian comes from.

    Returns:
        (copy, {key in the authors' file: float32 parameter, (R, I) or (O, R)}).

    Sources:
        Hu et al. 2021, section 4.1.
    """
    student, parameters = shared_copy(unet), {}
    for path in adapted(student):
        layer = student.get_submodule(path)
        generator = generator_for(seed, "duo-lora", path)
        down = torch.randn((rank, layer.in_features), generator=generator) / rank
        up = torch.zeros(layer.out_features, rank)
        down, up = (torch.nn.Parameter(x.to(layer.weight.device)) for x in (down, up))
        layer.register_forward_hook(partial(_added, down, up))
        parameters[f"unet.{path}.lora.down.weight"] = down
        parameters[f"unet.{path}.lora.up.weight"] = up
    return student, parameters


def _added(
    down: torch.Tensor,
    up: torch.Tensor,
    layer: torch.nn.Module,
    inputs: tuple[torch.Tensor, ...],
    output: torch.Tensor,
) -> torch.Tensor:
    # In float32 also beneath a float16 model, whose steps are larger than most of what is learned.
    return output + linear(linear(inputs[0].float(), down), up).to(output.dtype)
