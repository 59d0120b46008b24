"""The schedulers of diffusers that pictures are sampled with."""

from collections.abc import Mapping
from typing import Any

import torch

from ine.errors import IneError, did_you_mean

SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    # Its own default clips x_0 to [-1, 1], which is meant for pixels and ruins latents.
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "dpm++": ("DPMSolverMultistepScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "pndm": ("PNDMScheduler", {}),
    # What models of few steps are made for; both add noise at every step.
    "lcm": ("LCMScheduler", {}),
    "euler-a": ("EulerAncestralDiscreteScheduler", {}),
}
"""Name -> (diffusers class, settings that differ from the model's own)."""


def make_scheduler(
    name: str, config: Mapping[str, Any], steps: int, device: torch.device | str = "cpu"
) -> Any:
    """Return a diffusers scheduler of the table `SCHEDULERS`, set to `steps` steps."""
    import diffusers

    if name not in SCHEDULERS:
        hint = did_you_mean(name, SCHEDULERS)
        raise IneError(f"scheduler {name!r} is unknown{hint}; known: {', '.join(SCHEDULERS)}")
    kind, settings = SCHEDULERS[name]
    try:
        scheduler = getattr(diffusers, kind).from_config({**config, **settings})
        scheduler.set_timesteps(steps, device=device)
    except Exception as error:  # whatever a library makes of settings that are not its own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise IneError(
            f"scheduler {name!r}: cannot take {steps} steps with the model's settings ({reason}); "
            "give another scheduler or number of steps"
        ) from error
    return scheduler


def alpha_bar_at(scheduler: Any, index: int, t: torch.Tensor) -> torch.Tensor:
    """Return the signal power of the latents that the U-Net sees at a step, a scalar."""
    if hasattr(scheduler, "sigmas") and scheduler.__class__.__name__.startswith("Euler"):
        return 1 / (1 + scheduler.sigmas[index] ** 2)
    return scheduler.alphas_cumprod[t.long().cpu()]
