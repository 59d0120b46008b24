"""Change pictures towards prompts: SDEdit."""

from collections.abc import Sequence

import torch

from ine.guidance.protocol import Guidance
from ine.models.parts import DiffusionParts
from ine.sampling.loop import sample_latents
from ine.sampling.settings import SamplerSettings
from ine.sampling.start import Start


def edit_latents(
    parts: DiffusionParts,
    x_0: torch.Tensor,
    strength: float,
    prompts: Sequence[str],
    seeds: Sequence[int],
    guidance: Guidance | None = None,
    settings: SamplerSettings | None = None,
) -> torch.Tensor:
    """Change pictures towards prompts and keep their layout: SDEdit.

    The clean latents get the noise of the time at which `strength` of the steps are left,

        x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps,

    and are denoised from there, with any guidance and any scheduler. Strength 0 returns them as
    they are; strength 1 takes all steps, and of x_0 what the first one's abar_t leaves remains.

    Args:
        parts: The `DiffusionParts` to sample from.
        x_0: Clean latents, scaled as the U-Net wants them, (B, C, H, W).
        strength: Share of the steps that are taken, in [0, 1].
        prompts: B texts.
        seeds: B seeds of the noise.
        guidance: A `Guidance`; plain classifier-free guidance by default.
        settings: `SamplerSettings`; `steps` are those of a whole trajectory.

    Returns:
        Latents, (B, C, H, W).

    Sources:
        Meng et al. 2022, algorithm 1; steps are counted as diffusers' image-to-image does.
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"strength {strength}: expected a number in [0, 1]")
    start = Start(latents=x_0, strength=strength)
    return sample_latents(parts, prompts, seeds, guidance, settings, start=start)[0]
