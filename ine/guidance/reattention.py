"""Latent re-attention: what a rewritten prompt adds to the skip features at low frequencies.

After SAFREE (Yoon et al. 2024, section 3.4), which builds on FreeU (Si et al. 2023). Beside every
picture with the rewritten prompt the U-Net computes the same picture with the prompt as it was.
With F the 2-D Fourier transform of a skip feature, in the first two up blocks, at the four lowest
frequencies, per channel:

    F'(rewritten) = s F(rewritten)   where |F(rewritten)| > |F(original)|
                    F(rewritten)     elsewhere

with s .9 in the first block and .2 in the second. SAFREE's b = 1, 1 leaves the backbone features
as they are, so there is no b here. Comparing magnitudes is our reading of the paper, whose
coefficients are complex. The released code (commit b8b2c3f) takes the branch that filters nothing
unless a mode is set that its command line does not offer, so no published picture can be a
reference; no fidelity is claimed beyond the formula above.

Shape letters: P pictures with a rewritten prompt, R rows of the call, C channels, H W size.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils.torch_utils import fourier_filter
from torch import nn

from ine.errors import IneError
from ine.runtime import uncompiled

REACH = 1
"""Low is -REACH <= frequency < REACH in both directions, as in FreeU."""


@dataclass(frozen=True)
class Reattention:
    """How much of what a rewritten prompt adds is kept."""

    s: tuple[float, float] = (0.9, 0.2)
    """The factor in the first and in the second up block, in [0, 1]; 1 changes nothing."""

    def __post_init__(self) -> None:
        """Raise `IneError` if a factor makes no sense."""
        if len(self.s) != 2 or not all(math.isfinite(x) and 0 <= x <= 1 for x in self.s):
            raise IneError(
                f"latent re-attention: s is {self.s}; give two factors in 0..1, for the first and "
                "the second up block (SAFREE: 0.9, 0.2)"
            )


def reattend(rewritten: torch.Tensor, original: torch.Tensor, s: float) -> torch.Tensor:
    """Return the features of a rewritten prompt, filtered; both and the result (P, C, H, W)."""
    factor = torch.where(low(rewritten).abs() > low(original).abs(), float(s), 1.0)
    return fourier_filter(rewritten, threshold=REACH, scale=factor)


def low(features: torch.Tensor) -> torch.Tensor:
    """Return the low-frequency Fourier coefficients, (P, C, 2 REACH, 2 REACH) complex."""
    if features.dtype != torch.float64:
        # float32: no half-precision transform for every size, and none for bfloat16.
        features = features.float()
    spectrum = torch.fft.fftshift(torch.fft.fft2(features), dim=(-2, -1))
    row, column = features.shape[-2] // 2, features.shape[-1] // 2
    return spectrum[..., row - REACH : row + REACH, column - REACH : column + REACH]


@contextmanager
def reattending(unet: nn.Module, settings: Reattention, count: int) -> Iterator[None]:
    """Filter the last rows of every U-Net call while the context lasts.

    Forward pre-hooks on the up blocks hand them filtered copies of the skip features; no weight,
    attribute or method of the U-Net is touched, so it is as before afterwards, also after an
    exception. A compiled U-Net runs uncompiled meanwhile.

    Args:
        unet: A `UNet2DConditionModel`.
        settings: The factors.
        count: P. Of the R rows, the last P are the original prompts, and the P before them the
            rewritten ones of the same pictures in the same order; other rows pass unchanged.

    Raises:
        IneError: No block was called.
    """
    filtered = False

    def hook(s: float) -> Callable[..., tuple[tuple, dict[str, Any]]]:
        def before(
            _block: nn.Module, args: tuple, kwargs: dict[str, Any]
        ) -> tuple[tuple, dict[str, Any]]:
            nonlocal filtered
            filtered = True
            skips = kwargs["res_hidden_states_tuple"]
            return args, {
                **kwargs,
                "res_hidden_states_tuple": tuple(_filtered(x, count, s) for x in skips),
            }

        return before

    handles = []
    try:
        # FreeU's two stages: diffusers numbers them by the place of the block.
        for block, s in zip(unet.up_blocks, settings.s, strict=False):
            handles.append(block.register_forward_pre_hook(hook(s), with_kwargs=True))
        with uncompiled():
            yield
    finally:
        for handle in handles:
            handle.remove()
    if not filtered:
        raise IneError(
            "the U-Net does not call its up blocks, so SAFREE cannot filter their features; if "
            "something traced, exported or cached it, load it again without that"
        )


def _filtered(skip: torch.Tensor, count: int, s: float) -> torch.Tensor:
    first = len(skip) - 2 * count
    rewritten, original = skip[first : first + count], skip[first + count :]
    return torch.cat([skip[:first], reattend(rewritten, original, s), original])
