"""A second look at half a run of a pipeline, and the pictures that were restarted after it.

Where a restarted picture ends, L, the pipeline is led to. Every call that remains is answered with
the noise that lies between the latents x and L,

    eps = (x - sqrt(abar) L) / sqrt(1 - abar)

so that the scheduler, whichever it is, predicts L and ends there. Those that end a little before
the noise does (`set_alpha_to_one` of DDIM) are led to a T beyond L, from which that noise takes
them to L.

Shape letters: B pictures of a call, C latent channels, H W latent size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ine.guidance.protocol import Again, GateSession, Notes, QueryUNet, Step
from ine.guidance.restart import Restart
from ine.protection.restarts import Beginning, restart


@dataclass
class SecondLook:
    """The gate at half a run of a pipeline, and the pictures that were restarted."""

    start: Beginning
    restart: Restart
    watch: GateSession
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
        steered = [note["gate"]["opened"] for note in ahead.notes()] if ahead else []
        late, known = self.watch.found, ahead.found if ahead else None
        repeats = self.restart.repeats
        again = {
            i: Again(
                further=2 if repeats and steered[i] else 1,
                found=(late[i] if late else frozenset()) | (known[i] if known else frozenset()),
            )
            for i, note in enumerate(self.watch.notes())
            if note["gate"]["opened"] and i not in self.later
        }
        if not again:
            return
        ends, notes, spent, left = restart(self.start, self.restart.attempts, again)
        self.ends |= {i: aimed(end, step, i, self.start.scheduler) for i, end in ends.items()}
        self.later |= notes
        self.left |= left
        for i, count in spent.items():
            nfe[i] += count

    def notes(self, first: Sequence[Notes]) -> list[Notes]:
        """Return notes as the loop of `ine` has them, given those of the first attempt."""
        found: list[Notes] = []
        for i, (own, late) in enumerate(zip(first, self.watch.notes(), strict=True)):
            ahead = {"look_ahead": own["gate"]} if "gate" in own else {}
            attempts = [{**own, **ahead, **late}, *self.later.get(i, [])]
            found.append({"attempts": attempts, "left": i in self.left})
        return found


def leading(step: Step, ends: Mapping[int, torch.Tensor], output: torch.Tensor) -> torch.Tensor:
    """Return the outputs of a call with those of pictures replaced that are led to their end.

    Args:
        step: The pipeline's step, latents (B, C, H, W).
        ends: {picture: where it is led, (C, H, W) float32}.
        output: What the pipeline would get, (2B or B, C, H, W).
    """
    if not ends:
        return output
    output, count = output.clone(), len(step.x_t)
    signal, spread = step.alpha_bar.sqrt(), (1 - step.alpha_bar).sqrt()
    for i, end in ends.items():
        noise = (step.x_t[i].float() - signal * end) / spread
        answer = noise if step.prediction_type == "epsilon" else signal * noise - spread * end
        # Both halves, so that guidance and its rescaling leave it as it is.
        output[i::count] = answer.to(output.dtype)
    return output


def aimed(end: torch.Tensor, step: Step, picture: int, scheduler: Any) -> torch.Tensor:
    """Return where to lead a picture so that it ends at `end`, (C, H, W) float32.

    With a_0 the signal power at which the scheduler ends, x and abar those of the step, and e the
    noise between x and T, which stays what it is: sqrt(a_0) T + sqrt(1 - a_0) e = L.
    """
    last = float(getattr(scheduler, "final_alpha_cumprod", 1.0))
    part = ((1 - last) / (1 - step.alpha_bar)).sqrt()
    own = step.x_t[picture].float()
    return (end.float() - part * own) / (last**0.5 - part * step.alpha_bar.sqrt())
