"""Models distilled to make a picture in few steps, and their sampling defaults.

Most of them are sampled without classifier-free guidance, so a negative has no effect. Methods
with a separate negative term (`additive`, `sld`) work on them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Config = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class FewSteps:
    """One kind of these models."""

    name: str
    test: Callable[[Config, Config], bool]
    """Function of the configurations of the U-Net and of the scheduler."""

    scheduler: str
    """A name of `ine.sampling.SCHEDULERS`."""

    guidance_scale: float
    """The usual scale; 1 is no guidance."""

    steps: int = 4


def _is_trailing(_unet: Config, scheduler: Config) -> bool:
    """Return whether a scheduler has the settings of turbo and Lightning models.

    Ordinary models with zero terminal SNR (Lin et al. 2023) have the same spacing only.
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


def few_steps_of(unet: Config, scheduler: Config) -> FewSteps | None:
    """Return the first kind that fits the configurations of U-Net and scheduler, or None."""
    return next((kind for kind in KINDS if kind.test(unet, scheduler)), None)
