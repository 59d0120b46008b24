"""Check that a pipeline's scheduler configuration is one that ine can sample with."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ine.errors import ModelError

MOST = 100_000
"""Largest whole number, and most entries of a list; a model has 1000 timesteps."""

CHOICES = {
    "prediction_type": ("epsilon", "v_prediction"),
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
    "timestep_spacing": ("leading", "linspace", "trailing"),
}
"""Setting -> its allowed values."""

CLASSES = {
    *("DDIMScheduler", "DDIMParallelScheduler", "DDIMInverseScheduler"),
    *("DDPMScheduler", "DDPMParallelScheduler", "PNDMScheduler", "LMSDiscreteScheduler"),
    *("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler"),
    *("KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "DEISMultistepScheduler"),
    *("DPMSolverMultistepScheduler", "DPMSolverMultistepInverseScheduler"),
    *("DPMSolverSinglestepScheduler", "DPMSolverSDEScheduler", "UniPCMultistepScheduler"),
    *("SASolverScheduler", "LCMScheduler", "TCDScheduler"),
}
"""Classes of diffusers for models with discrete timesteps (Ho et al. 2020). Their configurations
state the same noise levels, so any sampler of ine can replace one of these."""

OTHER_KINDS = (
    ("FlowMatch", "flow matching"),
    ("EDM", "EDM's continuous noise levels"),
    ("CosineDPMSolver", "EDM's continuous noise levels"),
)
"""(part of a scheduler's class name, what its model learned instead)."""

OTHER_SETTINGS = (
    ("use_flow_sigmas", (False, None), "is set for flow matching"),
    ("timestep_type", ("discrete", None), "is set for continuous noise levels"),
)
"""(setting, its values for a model with discrete timesteps, what another value means)."""

BETAS = ("beta_start", "beta_end")


def check_schedule(path: str | Path, config: Mapping[str, Any]) -> None:
    """Raise `ModelError` for a scheduler configuration that ine cannot sample with.

    Args:
        path: Its file, for messages.
        config: Its settings; unknown settings are left to diffusers.
    """
    if why := schedule_of_another_kind(config):
        raise ModelError(
            f"{path}: the scheduler {why}, and ine would make wrong pictures with it; give a model "
            "of the kind of Stable Diffusion 1.x, 2.x or XL, whose scheduler is DDIM, PNDM, Euler, "
            "DPM-Solver or the like"
        )
    wrong = next((name for name, value in config.items() if not _fits(name, value)), None)
    betas, steps = config.get("trained_betas"), config.get("num_train_timesteps", 1000)
    if wrong is None and betas is not None and len(betas) != steps:
        wrong = "trained_betas"
    if wrong is not None:
        known = f", expected one of {', '.join(CHOICES[wrong])}" if wrong in CHOICES else ""
        raise ModelError(
            f"{path}: {wrong} is {json.dumps(config[wrong])[:80]}, which no scheduler of ine can "
            f"use{known}; get the model again"
        )


def schedule_of_another_kind(config: Mapping[str, Any]) -> str:
    """Return why a scheduler configuration does not have discrete noise levels, or ""."""
    name = config.get("_class_name")
    if name is not None and (not isinstance(name, str) or name not in CLASSES):
        kind = next((what for sign, what in OTHER_KINDS if sign in str(name)), "")
        return f"is of the class {str(name)[:80]}" + (f" ({kind})" if kind else "")
    for setting, usual, why in OTHER_SETTINGS:
        if config.get(setting) not in usual:
            return f"{why} ({setting}: {str(config[setting])[:80]})"
    return ""


def _fits(name: str, value: Any) -> bool:
    if name in CHOICES:
        return value in CHOICES[name]
    if name in BETAS:
        return _is_beta(value)
    if name == "num_train_timesteps":
        return type(value) is int and 1 <= value <= MOST
    if name == "trained_betas":
        return value is None or (
            isinstance(value, list) and len(value) <= MOST and all(map(_is_beta, value))
        )
    if name == "lambda_min_clipped":  # DPM-Solver writes -Infinity for no limit
        return type(value) in (int, float) and value < MOST
    if isinstance(value, list | dict):
        return len(value) <= MOST
    whole = isinstance(value, int) and abs(value) > MOST
    return not whole and not (isinstance(value, float) and not math.isfinite(value))


def _is_beta(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < 1
