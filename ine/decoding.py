"""Pictures of latents, by the VAE.

Shape letters: B pictures of a unit, C latent channels, H W latent or pixel size.
"""

from typing import Any

import numpy as np
import torch

from ine.finite import NotFinite, check_finite, made_again
from ine.models.parts import DiffusionParts


def decode_latents(parts: DiffusionParts, latents: torch.Tensor) -> np.ndarray:
    """Return pictures of latents, (B, H, W, 3) uint8 RGB; see `decode`."""
    return decode(parts, latents)[0]


@torch.no_grad()
def decode(
    parts: DiffusionParts, latents: torch.Tensor, truncated: bool = False
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Return (pictures of latents (B, H, W, 3) uint8 RGB, what was computed again in float32).

    The second is a list of `NotFinite.record`, empty where the VAE's own type is wide enough.
    `truncated` pixels are cut to whole numbers instead of rounded.

    Raises:
        NotFinite: Pixels are not finite in float32 either.
    """
    try:
        return _decoded(parts, latents, truncated), []
    except NotFinite as error:
        pictures = made_again(error, [parts.vae], lambda: _decoded(parts, latents, truncated))
        return pictures, [error.record()]


def _decoded(parts: DiffusionParts, latents: torch.Tensor, truncated: bool) -> np.ndarray:
    latents = latents.to(parts.vae.dtype)
    pixels = parts.vae.decode(latents / parts.vae.config.scaling_factor).sample
    check_finite(pixels, "VAE")
    pixels = (pixels.float() / 2 + 0.5).clamp(0, 1) * 255
    whole = pixels.trunc() if truncated else pixels.round()
    return whole.permute(0, 2, 3, 1).byte().cpu().numpy()
