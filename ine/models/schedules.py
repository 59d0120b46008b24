"""What a pipeline's scheduler configuration may say."""

import json
import math

from ine.errors import ModelError

MOST = 100_000
"""Largest whole number, and most entries of a list; a model has 1000 timesteps."""

CHOICES = {
    "prediction_type": ("epsilon", "v_prediction"),
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
    "timestep_spacing": ("leading", "linspace", "trailing"),
}
"""Setting -> what it may be."""

BETAS = ("beta_start", "beta_end")


def check_schedule(path, config):
    """Raise `ModelError` for a scheduler's configuration that no sampling could start from.

    Args:
        path: Its file, for messages.
        config: Its settings; those that are not known here are the library's to judge.
    """
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


def _fits(name, value):
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
    if isinstance(value, list | dict):
        return len(value) <= MOST
    whole = isinstance(value, int) and abs(value) > MOST
    return not whole and not (isinstance(value, float) and not math.isfinite(value))


def _is_beta(value):
    return type(value) in (int, float) and 0 < value < 1
