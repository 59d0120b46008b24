"""The type in which an inversion computes: the U-Net's weights cast once, vectors in float32.

Autocast over float32 weights casts them again in every step and keeps both copies. At SD 1.5 size
on a CPU with AMX, weights that are cast once take .49 of the time of float32, autocast .62.
"""

import copy
import math

import torch
from torch import nn

from ine.errors import IneError
from ine.finite import NARROW
from ine.models.parts import DiffusionParts
from ine.runtime import DTYPES, computes_bfloat16


def inversion_dtype(name: str, parts: DiffusionParts) -> torch.dtype:
    """Return the type for `inversion.precision` and a model.

    Args:
        name: "auto", "float32", "bfloat16" or "float16".
        parts: The model.

    Raises:
        IneError: The model's device has no arithmetic of that type.
    """
    device, own = parts.device, parts.dtype
    if name == "auto":
        narrow = own in NARROW or not computes_bfloat16(device)
        return own if narrow else torch.bfloat16
    dtype = DTYPES[name]
    missing = {
        torch.bfloat16: device.type == "cuda" and not computes_bfloat16(device),
        torch.float16: device.type == "cpu",
    }
    if missing.get(dtype):
        raise IneError(
            f"inversion.precision={name}: {device.type} devices like this one do not compute in "
            "it; use inversion.precision=auto or float32"
        )
    return dtype


def in_type(parts: DiffusionParts, dtype: torch.dtype) -> DiffusionParts:
    """Return the same parts with a copy of the U-Net whose weights are of a type; see `copy`.

    A U-Net of that type is not copied. No second copy of the original's type is ever in memory.
    """
    unet = parts.unet
    if parts.dtype == dtype:
        return parts
    # What deepcopy finds here it takes as already copied.
    memo: dict[int, object] = {
        id(p): nn.Parameter(p.detach().to(dtype), requires_grad=p.requires_grad)
        for p in unet.parameters()
    }
    memo |= {id(b): b.to(dtype) for b in unet.buffers() if b.is_floating_point()}
    return parts.with_unet(copy.deepcopy(unet, memo), parts.unet_name)


def loss_scale(dtype: torch.dtype, count: int) -> float:
    """Return the factor of gradients inside a U-Net of a type, a power of two.

    The gradient of a mean over `count` elements is of size 2 / count, which float16 rounds to
    zero further in; with this factor it has the size of the error. 1 for other types.
    """
    return 2.0 ** round(math.log2(max(1, count / 2))) if dtype == torch.float16 else 1.0


def with_gradient_times(x: torch.Tensor, factor: float) -> torch.Tensor:
    """Return a tensor of the same values, whose gradient is multiplied on its way into it."""
    if factor == 1 or not x.requires_grad:
        return x
    same = x.view_as(x)
    same.register_hook(lambda gradient: gradient * factor)
    return same
