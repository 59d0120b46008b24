"""Models that were distilled to make a picture in few steps, and how they are sampled.

Most of them make it without classifier-free guidance, so that nothing stands where a negative
would: what works on them are methods with a term of their own (`additive`, `sld`, `dynamic`).
"""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class FewSteps:
    """One kind of such models."""

    name: str
    test: Callable[[dict, dict], bool]
    """Function of the configurations of the U-Net and of the scheduler."""

    scheduler: str
    """A name of `ine.sampling.SCHEDULERS`."""

    guidance_scale: float
    """What is usual; 1 is none."""

    steps: int = 4


def _is_trailing(_unet, scheduler):
    """Return whether a scheduler is set as those of turbo and Lightning models are.

    Ordinary models of zero terminal signal (Lin et al. 2023) share the spacing, not the rest.
    """
    return (
        scheduler.get("timestep_spacing") == "trailing"
        and scheduler.get("prediction_type", "epsilon") == "epsilon"
        and not scheduler.get("rescale_betas_zero_snr")
        and str(scheduler.get("_class_name", "")).startswith("Euler")
    )


KINDS = (
    # Luo et al. 2023: the guidance scale is an input of the U-Net.
    FewSteps(
        name="LCM",
        test=lambda unet, _: bool(unet.get("time_cond_proj_dim")),
        scheduler="lcm",
        guidance_scale=8.5,
    ),
    FewSteps(
        name="LCM without a guidance input",
        test=lambda _, scheduler: scheduler.get("_class_name") in ("LCMScheduler", "TCDScheduler"),
        scheduler="lcm",
        guidance_scale=1.0,
    ),
    # Sauer et al. 2023, Lin et al. 2024.
    FewSteps(name="turbo or Lightning", test=_is_trailing, scheduler="euler-a", guidance_scale=1.0),
)


def few_steps_of(unet, scheduler):
    """Return the first kind that two configurations fit, or None."""
    return next((kind for kind in KINDS if kind.test(unet, scheduler)), None)
