"""A second look at half a run of a pipeline, and the pictures that were restarted after it.

Where a restarted picture ends, L, the pipeline is led to. Every call that remains is answered with
the noise that lies between the latents x and L,

    eps = (x - sqrt(abar) L) / sqrt(1 - abar)

so that the scheduler, whichever it is, predicts L. The last call is answered with what takes the
scheduler's own step exactly to L: steps are linear in the prediction, so two steps of a copy tell.
Without that, schedulers that mix in earlier predictions (PNDM) would end beside L.

Shape letters: B pictures of a call, C latent channels, H W latent size.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

import torch

from ine.guidance.protocol import GateSession, Notes, QueryUNet, Step
from ine.guidance.restart import Restart, restarted_by, watched_notes
from ine.protection.restarts import Beginning, input_scale, restart


@dataclass
class SecondLook:
    """The gate at half a run of a pipeline, and the pictures that were restarted."""

    start: Beginning
    restart: Restart
    watch: GateSession
    withhold: bool = False
    """Whether pictures in which the concept still shows become empty latents."""

    ends: dict[int, torch.Tensor] = field(default_factory=dict)
    """{picture: where it is led}."""

    later: dict[int, list[Notes]] = field(default_factory=dict)
    """{picture: notes of the attempts after the first}."""

    left: set[int] = field(default_factory=set)
    """Pictures in which the concept still shows."""

    def open(
        self, step: Step, query_unet: QueryUNet, ahead: GateSession | None, nfe: list[int]
    ) -> None:
        """Ask the gate at a step, and restart the pictures for which it opens.

        Args:
            step: Of the pipeline.
            query_unet: Runs the U-Net there.
            ahead: The look-ahead, which knows which pictures are steered already.
            nfe: U-Net evaluations per picture, counted on.
        """
        self.watch.open(step, query_unet)
        own = ahead.notes() if ahead else [{}] * len(step.x_t)
        known = ahead.found if ahead else None
        found = restarted_by(self.watch, own, known, self.restart.repeats)
        again = {i: attempt for i, attempt in found.items() if i not in self.later}
        if not again:
            return
        ends, notes, spent, left = restart(self.start, self.restart.attempts, again)
        self.ends |= ends
        self.later |= notes
        self.left |= left
        if self.withhold:
            self.ends |= {i: torch.zeros_like(step.x_t[i]) for i in left}
        for i, count in spent.items():
            nfe[i] += count

    def notes(self, first: Sequence[Notes]) -> list[Notes]:
        """Return notes as the loop of `ine` has them, given those of the first attempt."""
        return [
            {"attempts": [own, *self.later.get(i, [])], "left": i in self.left}
            for i, own in enumerate(watched_notes(first, self.watch))
        ]


def leading(
    step: Step, ends: Mapping[int, torch.Tensor], output: torch.Tensor, scheduler: Any
) -> torch.Tensor:
    """Return the outputs of a call with those of pictures replaced that are led to their end.

    Args:
        step: The pipeline's step, latents (B, C, H, W).
        ends: {picture: where it is led, (C, H, W)}.
        output: What the pipeline would get, (2B or B, C, H, W).
        scheduler: The pipeline's, before its step.
    """
    if not ends:
        return output
    output, count = output.clone(), len(step.x_t)
    aims = step.x_t.float().clone()
    aims[list(ends)] = torch.stack([end.float() for end in ends.values()])
    last = step.index + 1 == step.count
    answers = _landing(step, aims, scheduler) if last else _towards(step, aims)
    for i in ends:
        # Both halves, so that guidance and its rescaling leave it as it is.
        output[i::count] = answers[i].to(output.dtype)
    return output


def _towards(step: Step, aims: torch.Tensor) -> torch.Tensor:
    """Return the prediction by which clean latents are `aims`, (B, C, H, W) float32."""
    signal, spread = step.alpha_bar.sqrt(), (1 - step.alpha_bar).sqrt()
    noise = (step.x_t.float() - signal * aims) / spread
    return noise if step.prediction_type == "epsilon" else signal * noise - spread * aims


def _landing(step: Step, aims: torch.Tensor, scheduler: Any) -> torch.Tensor:
    """Return the prediction by which the scheduler's next step leads to `aims`."""
    x = step.x_t.float() / input_scale(scheduler, step.x_t, step.t)
    draws = "generator" in signature(scheduler.step).parameters

    def stepped(output: torch.Tensor) -> torch.Tensor:
        # Never with the user's generator; the last step of a scheduler adds no noise.
        noise = {"generator": torch.Generator().manual_seed(0)} if draws else {}
        return deepcopy(scheduler).step(output, step.t, x, return_dict=False, **noise)[0].float()

    still = stepped(torch.zeros_like(x))
    slope = stepped(torch.ones_like(x)) - still
    exact = (aims - still) / torch.where(slope.abs() > 1e-6, slope, torch.ones_like(slope))
    # Where a scheduler clips what it predicts, its step is not linear, and the other is nearer.
    other = _towards(step, aims)
    beside = [(stepped(answer) - aims).abs() for answer in (exact, other)]
    return torch.where(beside[0] <= beside[1], exact, other)
