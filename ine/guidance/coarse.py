"""A coarse run from the start of a picture's own run to a noise level.

    timesteps   t_0 of the run's first step, then k more in equal parts down to the probes' level;
                a run that begins later (image-to-image) takes as many fewer, and one that begins
                below the level one step up to it
    step        x' = sqrt(abar') D + sqrt(1 - abar') (x - sqrt(abar) D) / sqrt(1 - abar), where D is
                the predicted x_0, from the second step on carried further by the one before,
                D = x_0 + (lambda' - lambda) / (2 (lambda - lambda_1)) (x_0 - x_0,1) with
                lambda = log(sqrt(abar) / sqrt(1 - abar)): DPM-Solver++(2M), Lu et al. 2022,
                algorithm 2; the first step is DDIM's

Nothing here draws a number, and no scheduler is needed: all models with discrete timesteps see
variance-preserving latents. Shape letters: B pictures, C latent channels, H W latent size.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from ine.errors import IneError
from ine.guidance.step import Step
from ine.models.parts import DiffusionParts
from ine.schedules import schedule_of_another_kind

PREDICTIONS = ("epsilon", "v_prediction")


def check_model(parts: DiffusionParts) -> None:
    """Raise `IneError` for a model on which coarse DDIM steps are not defined."""
    if few := parts.few_steps:
        raise IneError(
            f"look-ahead: {parts.name} is a model of few steps ({few.name}): coarse steps are not "
            "those that it was made for, and would cost as much as its whole run; use the "
            "embedding without a gate, or the gate that looks at half the run"
        )
    if why := schedule_of_another_kind(parts.scheduler_config):
        raise IneError(f"look-ahead: the scheduler of {parts.name} {why}; its noise levels differ")
    if parts.prediction_type not in PREDICTIONS:
        raise IneError(
            f"look-ahead: {parts.name} predicts {parts.prediction_type!r}; known are "
            f"{' and '.join(PREDICTIONS)}"
        )


def signal_powers(parts: DiffusionParts) -> torch.Tensor:
    """Return alpha-bar of every timestep that the model was trained on, (1000,)."""
    # Imported here, since reading a gate needs no diffusers.
    from diffusers import DDIMScheduler

    return DDIMScheduler.from_config(parts.scheduler_config).alphas_cumprod.float()


def coarse_timesteps(first: float, last: int, steps: int, train: int = 1000) -> list[int]:
    """Return the timesteps that follow the first one of a coarse run, the last one included.

    Args:
        first: Timestep of the run's first step.
        last: Noise level of the probes.
        steps: Of a run that begins at pure noise; fewer where `first` is lower.
        train: Number of timesteps that the model was trained on.
    """
    count = max(1, math.ceil(steps * (first - last) / (train - 1 - last) - 1e-9))
    return [round(first + (last - first) * (i + 1) / count) for i in range(count)]


def coarse_run(
    step: Step,
    timesteps: Sequence[int],
    signal: torch.Tensor,
    predict: Callable[[Step, int], torch.Tensor],
) -> Step:
    """Take coarse steps; return the place where they end.

    Args:
        step: Where they begin, with all B pictures.
        timesteps: Of the steps that follow, see `coarse_timesteps`.
        signal: Alpha-bar of every timestep.
        predict: Returns the guided U-Net output at a place, given its number from 0.
    """
    before: tuple[torch.Tensor, torch.Tensor] | None = None
    for number, t in enumerate(timesteps):
        clean = step.preview(predict(step, number)).float()
        here, there = _log_snr(step.alpha_bar), _log_snr(signal[t].to(step.alpha_bar))
        aim = clean
        if before is not None:
            earlier, level = before
            aim = clean + (there - here) / (2 * (here - level)) * (clean - earlier)
        before = clean, here
        step = _moved(step, aim, t, signal[t].to(step.alpha_bar))
    return step


def _log_snr(alpha_bar: torch.Tensor) -> torch.Tensor:
    """Return half the logarithm of the signal-to-noise ratio, lambda."""
    return 0.5 * (alpha_bar / (1 - alpha_bar)).log()


def _moved(step: Step, clean: torch.Tensor, t: int, alpha_bar: torch.Tensor) -> Step:
    """Return the place at another timestep on the line to clean latents."""
    x_t, own = step.x_t.float(), step.alpha_bar
    eps = (x_t - own.sqrt() * clean) / (1 - own).sqrt()
    moved = alpha_bar.sqrt() * clean + (1 - alpha_bar).sqrt() * eps
    moment = torch.tensor(t, device=step.t.device, dtype=step.t.dtype)
    return replace(step, x_t=moved.to(step.x_t.dtype), t=moment, alpha_bar=alpha_bar)
