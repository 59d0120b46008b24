"""What probes read of pictures: activations at a noise level.

Shape letters: N pictures, C latent channels, H W latent size, F features of a probe.
"""

from collections.abc import Sequence

import torch

from ine.finite import NotFinite, check_finite, made_again
from ine.guidance.gates import query_steps
from ine.guidance.probe import features_of, listening
from ine.inversion.objective import noised
from ine.models.parts import DiffusionParts
from ine.sampling import (
    SamplerSettings,
    alpha_bar_at,
    make_scheduler,
    run_unet,
)
from ine.text.encode import PLAIN_TEXT, TextOptions, encode_nothing


@torch.no_grad()
def noised_features(
    parts: DiffusionParts,
    latents: torch.Tensor,
    t: float,
    alpha_bar: float,
    generator: torch.Generator,
    batch: int = 32,
    reading: TextOptions = PLAIN_TEXT,
) -> torch.Tensor:
    """Return the U-Net's activations on clean latents noised to a level, (N, F).

    Args:
        parts: The model.
        latents: Clean latents as the U-Net wants them, (N, C, H, W).
        t: The timestep, in [0, 999].
        alpha_bar: Its signal power, in (0, 1].
        generator: A CPU `torch.Generator`.
        batch: Rows per call of the U-Net.
        reading: How the empty text is encoded.

    Raises:
        NotFinite: The activations are not finite, in float32 either.
    """
    noise = torch.randn(latents.shape, generator=generator)
    noisy = noised(latents, noise, torch.tensor(alpha_bar)).split(batch)
    try:
        return _heard(parts, noisy, t, reading)
    except NotFinite as error:
        modules = (parts.unet, *parts.text_encoders)
        return made_again(error, modules, lambda: _heard(parts, noisy, t, reading))


def _heard(
    parts: DiffusionParts, noisy: Sequence[torch.Tensor], t: float, reading: TextOptions
) -> torch.Tensor:
    empty = encode_nothing(parts, reading)
    found = []
    with listening(parts.unet) as heard:
        for rows in noisy:
            rows = rows.to(parts.device, parts.dtype)
            output = run_unet(parts.unet, rows, torch.tensor(t), empty.repeat(len(rows)))
            features = features_of(heard)
            check_finite(output, "U-Net")
            check_finite(features, "U-Net")
            found.append(features.cpu())
    return torch.cat(found)


def noise_levels(
    parts: DiffusionParts, settings: SamplerSettings, queries: Sequence[float]
) -> list[tuple[float, float]]:
    """Return [(timestep, signal power), ...] of the queries in runs of these settings."""
    scheduler = make_scheduler(
        settings.scheduler, parts.scheduler_config, settings.steps, parts.device
    )
    count = len(scheduler.timesteps)
    steps = [query_steps((query,), count)[0] for query in queries]
    timesteps = scheduler.timesteps
    return [(float(timesteps[i]), float(alpha_bar_at(scheduler, i, timesteps[i]))) for i in steps]
