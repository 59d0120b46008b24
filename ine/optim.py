"""The optimiser loop that inversion, ESD and DUO share: Adam or AdamW, resumable, byte-equal.

A state file holds the parameters, Adam's two moments of each and what else the caller keeps. The
loss draws its random numbers from generators seeded by the step, so that nothing more is needed:
a run that was killed ends with the same bytes as one that was not.
"""

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from ine.errors import IneError
from ine.store.tensors import Notes, Tensors, read_tensors, write_tensors
from ine.store.units import Damaged, Missing, OtherKey, reading

log = logging.getLogger("ine")

ENTRY = "state"
"""Name of the metadata entry of a state file."""


class History(Protocol):
    """What a caller keeps beside parameters and moments, such as losses or the best so far."""

    def record(self, step: int, loss: float) -> None:
        """Take note of a finished step; called before the state is written."""

    def pack(self) -> tuple[Tensors, Notes]:
        """Return the history for a state file."""

    def unpack(self, tensors: Tensors, notes: Notes) -> None:
        """Take over the history from a state file, whose tensors and notes are all given."""


@dataclass(frozen=True, kw_only=True)
class StateFile:
    """Where the state of a run is kept, and whose it is."""

    path: Path | None = None
    """File to resume from and to save to; None keeps no state."""

    key: str = ""
    """What the result depends on; a state with another key is refused."""

    command: str = "ine unlearn"
    """Whose states these are, for messages."""

    every: int = 10
    """Steps between two saves."""

    force: bool = False
    """Start over where the state is damaged or belongs to another run."""

    prefix: str = ""
    """What stands before a parameter's name in the file."""

    check: Callable[[Tensors, Notes], None] | None = None
    """Raises `ValueError`, `LookupError` or `TypeError` where a run cannot go on from a state."""

    def read(
        self, parameters: Mapping[str, torch.Tensor] | None = None
    ) -> tuple[int, Tensors, Notes] | None:
        """Return (finished steps, tensors, notes), or None without a file.

        Args:
            parameters: What the state is for; by default shapes are not compared.

        Raises:
            IneError: The file is damaged or belongs to another run.
        """
        if self.path is None:
            return None
        try:
            with reading(self.path):
                tensors, notes = read_tensors(self.path, ENTRY, {"key": self.key})
                # Earlier versions of `ine unlearn` wrote "done".
                step = notes["step"] if "step" in notes else notes["done"]
                self._check(step, tensors, notes, parameters or {})
        except OtherKey as error:
            raise IneError(
                f"{self.path}: belongs to a run with other settings, weights or pictures; "
                "repeat those to resume it, or give --force to start over"
            ) from error
        except Damaged as error:
            raise IneError(
                f"{self.path}: is not a state of `{self.command}`, or is damaged; delete it or "
                "give --force to start over"
            ) from error
        except Missing:
            return None
        return step, tensors, notes

    def _check(
        self,
        step: object,
        tensors: Tensors,
        notes: Notes,
        parameters: Mapping[str, torch.Tensor],
    ) -> None:
        """Raise one of `ine.store.units.DAMAGE` where no run can go on from a state."""
        if type(step) is not int or step < 0:
            raise ValueError("the number of steps is not a number")
        if self.check:
            self.check(tensors, notes)
        for name, parameter in parameters.items():
            for key in (self.prefix + name, f"first.{name}", f"second.{name}"):
                found = tensors[key]
                if found.shape != parameter.shape or found.dtype != parameter.dtype:
                    raise ValueError(f"{key} is not like its parameter")

    def write(
        self,
        step: int,
        parameters: Mapping[str, torch.Tensor],
        optimiser: torch.optim.Optimizer,
        history: History | None = None,
    ) -> None:
        """Write the state after a finished step; without a path do nothing.

        Raises:
            OutputError: The file cannot be written.
        """
        if self.path is None:
            return
        tensors, notes = history.pack() if history else ({}, {})
        for name, parameter in parameters.items():
            moments = optimiser.state[parameter]
            tensors[self.prefix + name] = parameter
            tensors[f"first.{name}"] = moments["exp_avg"]
            tensors[f"second.{name}"] = moments["exp_avg_sq"]
        write_tensors(self.path, tensors, ENTRY, {"key": self.key, "step": step, **notes})

    def restore(
        self,
        parameters: Mapping[str, torch.Tensor],
        optimiser: torch.optim.Optimizer,
        history: History | None = None,
    ) -> int:
        """Put the state into parameters, optimiser and history; return the finished steps.

        Raises:
            IneError: The file is damaged or belongs to another run, and `force` is off.
        """
        try:
            found = self.read(parameters)
        except IneError:
            if not self.force:
                raise
            found = None
        if found is None:
            return 0
        step, tensors, notes = found
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(tensors[self.prefix + name])
                optimiser.state[parameter] = {
                    "step": torch.tensor(float(step)),
                    "exp_avg": tensors[f"first.{name}"].to(parameter.device),
                    "exp_avg_sq": tensors[f"second.{name}"].to(parameter.device),
                }
        if history:
            history.unpack(tensors, notes)
        return step


def minimise(
    name: str,
    parameters: Mapping[str, torch.Tensor],
    optimiser: torch.optim.Optimizer,
    loss_of: Callable[[int, int], torch.Tensor],
    steps: int,
    *,
    advice: str,
    state: StateFile | None = None,
    history: History | None = None,
    accumulation: int = 1,
    max_grad_norm: float | None = None,
    lr_of: Callable[[int], float] | None = None,
    enough: Callable[[], bool] | None = None,
    on_step: Callable[[int, float], None] | None = None,
) -> None:
    """Run an optimiser for a number of steps, or for those that a state file leaves to do.

    Args:
        name: The method, for messages.
        parameters: {name: trained tensor}; changed in place.
        optimiser: Adam or AdamW over exactly these.
        loss_of: `(step, part) -> loss`, a scalar; all randomness must come from the two numbers.
        steps: Optimiser steps in all.
        advice: What to do where the loss is not finite, for the message.
        state, history: Where the state is kept, by default nowhere; what else belongs to it.
        accumulation: Forward passes per step; the loss is their mean.
        max_grad_norm: Gradients are scaled down to this norm.
        lr_of: Learning rate of a step in [0, steps); by default the optimiser's own.
        enough: Whether the run ends here, by the recorded `history` alone; by default never.
        on_step: Called with (finished steps, loss) after every step.

    Raises:
        IneError: The state is damaged or belongs to another run, or the loss or its gradient is
            not finite.
    """
    state = state or StateFile()
    first = state.restore(parameters, optimiser, history)
    if first:
        log.info("resuming at step %d of %d", first, steps)
    for step in range(first, steps):
        if enough and enough():
            return
        if lr_of:
            for group in optimiser.param_groups:
                group["lr"] = lr_of(step)
        optimiser.zero_grad()
        loss = _accumulate(loss_of, step, accumulation)
        if what := _not_finite(loss, parameters.values()):
            raise IneError(f"{name}: {what} at step {step + 1} of {steps}; {advice}")
        if max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(list(parameters.values()), max_grad_norm)
        optimiser.step()
        done = step + 1
        if history:
            history.record(done, loss)
        if done % state.every == 0 or done == steps or (enough and enough()):
            state.write(done, parameters, optimiser, history)
        if on_step:
            on_step(done, loss)


def _accumulate(loss_of: Callable[[int, int], torch.Tensor], step: int, accumulation: int) -> float:
    """Return the mean loss of a step's passes, whose gradients are added up."""
    total = 0.0
    for part in range(accumulation):
        loss = loss_of(step, part)
        (loss / accumulation).backward()
        total += loss.item() / accumulation
    return total


def _not_finite(loss: float, parameters: Iterable[torch.Tensor]) -> str:
    """Return what is not finite, or an empty text; a step with it would make NaN parameters."""
    if not math.isfinite(loss):
        return f"the loss is {loss}"
    grads = [p.grad.isfinite().all() for p in parameters if p.grad is not None]
    return "" if torch.stack(grads).all() else "the gradient is not finite"
