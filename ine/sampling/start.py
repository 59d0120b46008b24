"""What a run starts from: the noise of each picture's own seed, or noised pictures.

Shape letters: B pictures of a unit, C latent channels, H W latent size.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch


@dataclass(frozen=True, kw_only=True, eq=False)
class Start:
    """Latents to begin from instead of pure noise; see `edit_latents`."""

    latents: torch.Tensor
    """Clean latents, scaled as the U-Net wants them, (B, C, H, W)."""

    strength: float
    """Share of the steps that are taken, in [0, 1]."""

    def of(self, pictures: list[int]) -> "Start":
        """Return the start of some pictures, a list of their numbers."""
        return replace(self, latents=self.latents[pictures])

    def taken(self, steps: int) -> int:
        """Return how many of a run's steps are taken; rounded as diffusers' pipelines do."""
        return min(int(steps * self.strength), steps)


def generators_of(seeds: Sequence[int]) -> list[torch.Generator]:
    """Return one generator per picture, on the CPU."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def start_noise(
    shape: Sequence[int],
    seeds: Sequence[int],
    generators: Sequence[torch.Generator] | None = None,
) -> torch.Tensor:
    """Return unit Gaussian latents, each row from its own seed, (B, C, H, W) on the CPU.

    Args:
        shape: Of one latent, (C, H, W).
        seeds: B seeds.
        generators: The generators of the seeds, to draw from; by default new ones.
    """
    generators = generators or generators_of(seeds)
    return torch.cat([torch.randn((1, *shape), generator=g) for g in generators])


def begin(
    scheduler: Any, noise: torch.Tensor, start: Start | None, steps: int
) -> tuple[torch.Tensor, int]:
    """Return (latents to denoise, number of timesteps left out); `noise` is unit Gaussian."""
    if start is None:
        return noise * scheduler.init_noise_sigma, 0
    latents, taken = start.latents.to(noise), start.taken(steps)
    if not taken:
        return latents, len(scheduler.timesteps)
    first = steps - taken
    if hasattr(scheduler, "set_begin_index"):
        # Otherwise they would look for the place of a timestep, of which there may be two.
        scheduler.set_begin_index(first)
    times = scheduler.timesteps[first : first + 1].repeat(len(latents))
    return scheduler.add_noise(latents, noise, times), first
