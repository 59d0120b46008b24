"""The loop that erasers by fine-tuning share, and its state: a killed run ends byte-equal."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ine.errors import IneError
from ine.files import sha256_of, write_bytes


@dataclass(frozen=True, kw_only=True)
class Resumable:
    """Where a training is kept while it runs."""

    path: Path | None = None
    """File to resume from and to save to; None keeps nothing."""

    every: int = 10
    """Iterations between saves."""

    force: bool = False
    """Begin anew where the state belongs to another run."""


def train(
    name: str,
    parameters: dict[str, torch.nn.Parameter],
    optimiser: torch.optim.Optimizer,
    loss_of: Callable[[int, int], torch.Tensor],
    iterations: int,
    *,
    lr: float,
    key: str,
    resumable: Resumable,
    accumulation: int = 1,
    max_grad_norm: float | None = None,
    on_step: Callable[[int, float], None] | None = None,
):
    """Run an optimiser to its end, from where a state says.

    Args:
        name: The method, for messages.
        parameters: {name: trained parameter}; changed in place.
        optimiser: Adam or AdamW over exactly these.
        loss_of: `(iteration, part) -> loss`, a scalar; all randomness must come from the two.
        iterations: Optimiser steps.
        lr: Its learning rate, for messages.
        key: What the result depends on; a state with another key is refused.
        resumable: Where the state is.
        accumulation: Forward passes per optimiser step; the loss is their mean.
        max_grad_norm: Gradients are scaled down to this norm.
        on_step: Called with (iteration, loss).

    Raises:
        IneError: The state belongs to another run, or the loss is not finite.
    """
    first = resume(resumable, key, parameters, optimiser)
    for iteration in range(first, iterations):
        optimiser.zero_grad()
        total = 0.0
        for part in range(accumulation):
            loss = loss_of(iteration, part)
            if not torch.isfinite(loss):
                raise IneError(
                    f"{name}: the loss is {loss.item()} at iteration {iteration + 1} of "
                    f"{iterations}, the training diverged; use a smaller lr than {lr:g}, or "
                    "--dtype float32 where it is not"
                )
            (loss / accumulation).backward()
            total += loss.item() / accumulation
        if max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(list(parameters.values()), max_grad_norm)
        optimiser.step()
        done = iteration + 1
        if done % resumable.every == 0 or done == iterations:
            write_state(resumable.path, key, done, parameters, optimiser)
        if on_step:
            on_step(done, total)


def key_of(*pieces):
    """Return 16 hex digits of what a run depends on."""
    return sha256_of(repr(pieces).encode())[:16]


def write_state(path, key, done, parameters, optimiser):
    """Write parameters and both moments of Adam, atomically; without a path do nothing."""
    if path is None:
        return
    tensors = {}
    for name, parameter in parameters.items():
        moments = optimiser.state[parameter]
        tensors[name] = parameter.detach().contiguous()
        tensors[f"first.{name}"] = moments["exp_avg"].contiguous()
        tensors[f"second.{name}"] = moments["exp_avg_sq"].contiguous()
    write_bytes(path, save(tensors, metadata={"state": json.dumps({"key": key, "done": done})}))


def resume(resumable, key, parameters, optimiser):
    """Put a state into parameters and optimiser; return how many iterations it has done.

    Raises:
        IneError: It belongs to another run or is broken, and is not to be dropped.
    """
    if resumable.path is None or not Path(resumable.path).exists():
        return 0
    try:
        done, tensors = _read_state(resumable.path, key, parameters)
    except IneError:
        if resumable.force:
            return 0
        raise
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])
            optimiser.state[parameter] = {
                "step": torch.tensor(float(done)),
                "exp_avg": tensors[f"first.{name}"].to(parameter.device),
                "exp_avg_sq": tensors[f"second.{name}"].to(parameter.device),
            }
    return done


def _read_state(path, key, names):
    wanted = [f"{kind}{name}" for name in names for kind in ("", "first.", "second.")]
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads(file.metadata()["state"])
            if about["key"] != key:
                raise IneError(
                    f"{path}: belongs to a run with other settings or weights; give --force to "
                    "begin anew"
                )
            return about["done"], {name: file.get_tensor(name) for name in wanted}
    except (SafetensorError, OSError, LookupError, TypeError, ValueError, RuntimeError) as error:
        raise IneError(
            f"{path}: is not a state of `ine unlearn`; delete it or give --force"
        ) from error
