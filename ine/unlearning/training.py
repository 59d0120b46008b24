"""What the erasers that train have in common: options, the resumable loop, its result."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypedDict

import torch

from ine.optim import StateFile, minimise
from ine.store.units import key_of


class TrainingOptions(TypedDict, total=False):
    """Keyword arguments of an eraser that trains; `train` says what they mean."""

    seed: int
    state: Path | None
    on_step: Callable[[int, float], None] | None
    save_every: int
    force: bool


def train(
    name: str,
    parameters: Mapping[str, torch.Tensor],
    optimiser: torch.optim.Optimizer,
    loss_of: Callable[[int, int], torch.Tensor],
    iterations: int,
    about: Mapping[str, object],
    *,
    accumulation: int = 1,
    max_grad_norm: float | None = None,
    seed: int = 0,
    state: Path | None = None,
    on_step: Callable[[int, float], None] | None = None,
    save_every: int = 10,
    force: bool = False,
) -> dict[str, torch.Tensor]:
    """Train by `ine.optim.minimise`, which says what is not said here; return copies by name.

    The state in the file `state` belongs to `seed` and to `about`, plain values that say what else
    the result depends on. It is saved every `save_every` iterations, the result is byte-equal
    however often a run is resumed, and with `force` a run starts over where the state is damaged
    or belongs to another one. `on_step` is called with (iteration, loss).

    Raises:
        IneError: The state belongs to another run, or the loss is not finite.
    """
    lr = optimiser.param_groups[0]["lr"]
    key = key_of(**about, seed=seed)
    kept = StateFile(path=state, key=key, every=save_every, force=force)
    minimise(
        name,
        parameters,
        optimiser,
        loss_of,
        iterations,
        advice=f"use a smaller lr than {lr:g}, or --dtype float32 where it is not",
        state=kept,
        accumulation=accumulation,
        max_grad_norm=max_grad_norm,
        on_step=on_step,
    )
    return {name: p.detach().clone() for name, p in parameters.items()}
