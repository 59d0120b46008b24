"""Formulas of inversion: noising, targets, loss. Pure tensor functions.

Shape letters: B pictures, C latent channels, H W latent size.
"""

import torch

PredictionType = str
"""\"epsilon\" or \"v_prediction\"."""


def noised(x_0: torch.Tensor, eps: torch.Tensor, alpha_bar: torch.Tensor) -> torch.Tensor:
    """Return x_t = sqrt(abar) x_0 + sqrt(1 - abar) eps; abar is (B,), the rest (B, C, H, W).

    Source: Ho et al. 2020, eq. 4.
    """
    a = alpha_bar.view(-1, 1, 1, 1)
    return a.sqrt() * x_0 + (1 - a).sqrt() * eps


def denoising_target(
    x_0: torch.Tensor,
    eps: torch.Tensor,
    alpha_bar: torch.Tensor,
    prediction_type: PredictionType,
) -> torch.Tensor:
    """Return what the U-Net shall predict, (B, C, H, W).

    Args:
        x_0: Clean latents, scaled as the U-Net wants them, (B, C, H, W).
        eps: Unit Gaussian noise, (B, C, H, W).
        alpha_bar: Signal power of each picture's timestep, in (0, 1], (B,).
        prediction_type: "epsilon" for SD 1.x, "v_prediction" for SD 2.x at 768 pixels.

    Sources:
        epsilon: Ho et al. 2020, eq. 14. v: Salimans and Ho 2022, appendix D.
    """
    if prediction_type == "epsilon":
        return eps
    if prediction_type == "v_prediction":
        a = alpha_bar.view(-1, 1, 1, 1)
        return a.sqrt() * eps - (1 - a).sqrt() * x_0
    raise ValueError(f"prediction_type {prediction_type!r}: expected epsilon or v_prediction")


def learning_rate(step: int, steps: int, peak: float, schedule: str) -> float:
    """Return the learning rate of a step in [0, steps).

    "linear" holds the peak for the first half and then falls to zero.
    """
    if schedule == "constant" or step < steps / 2:
        return peak
    return peak * (steps - step) / (steps / 2)
