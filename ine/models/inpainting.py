"""Use inpainting models as ordinary ones: the mask covers the whole picture.

Their U-Net reads, beside the noisy latents, the mask and the latents of the picture with the
masked part blanked (Rombach et al. 2022, section 4.5). With a mask of ones these are constant:
diffusers' inpainting pipeline then encodes a picture of zeros in [-1, 1].
"""

from typing import Any

import torch

from ine.errors import ModelError


@torch.no_grad()
def everything_masked(unet: Any, vae: Any) -> torch.Tensor | None:
    """Return the input of an inpainting U-Net beside the latents, (1 + C, H, W); None for others.

    Args:
        unet: A `UNet2DConditionModel` of C or 2 C + 1 input channels.
        vae: Its `AutoencoderKL` of C latent channels.

    Raises:
        ModelError: The U-Net reads another number of channels.
    """
    latent, given = vae.config.latent_channels, unet.config.in_channels
    if given == latent:
        return None
    if given != 2 * latent + 1:
        raise ModelError(
            f"the U-Net reads {given} channels, the VAE makes {latent}; known are models of "
            f"{latent} and inpainting models of {2 * latent + 1}. Models that edit by an "
            "instruction, or enlarge pictures, cannot be used; give an ordinary one"
        )
    size = unet.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    some = next(vae.parameters())
    picture = some.new_zeros(1, vae.config.in_channels, height * factor, width * factor)
    blank = vae.encode(picture).latent_dist.mode()[0] * vae.config.scaling_factor
    return torch.cat([blank.new_ones(1, height, width), blank]).to(next(unet.parameters()).dtype)
