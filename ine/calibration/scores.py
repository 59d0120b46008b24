"""Scores that pictures reach in a gate which never opens.

Until a gate opens, a picture is the undefended one, so a gate opens for a picture exactly where
its largest score exceeds the threshold.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from ine.calibration.thresholds import with_thresholds
from ine.errors import IneError
from ine.guidance.additive import Additive
from ine.guidance.gates import Gated, query_steps
from ine.guidance.look_ahead import LookAhead
from ine.guidance.negative import Negative
from ine.guidance.probe import ProbeGate
from ine.guidance.protocol import Cost, Gate, GateSession, Prompts, Step
from ine.models.parts import DiffusionParts
from ine.sampling import SamplerSettings, sample_latents


class _Enough(Exception):
    """Ends a run whose probes are done."""


@dataclass(frozen=True)
class _Watching:
    """A gate that keeps its session, so that its notes outlive a run that is cut short."""

    gate: Gate
    sessions: list[GateSession] = field(default_factory=list)

    def begin(self, prompts: Prompts) -> GateSession:
        self.sessions.append(self.gate.begin(prompts))
        return self.sessions[-1]

    def cost(self, inner: Cost, steps: int) -> Cost:
        return self.gate.cost(inner, steps)


def never_opening(gate: ProbeGate | LookAhead) -> ProbeGate | LookAhead:
    """Return a gate that probes as the given one does and stays closed."""
    if isinstance(gate, LookAhead):
        return with_thresholds(gate, math.inf)
    return replace(gate, threshold=math.inf)


def gate_scores(
    parts: DiffusionParts,
    prompts: Sequence[str],
    seeds: Sequence[int],
    gate: ProbeGate | LookAhead,
    settings: SamplerSettings,
    progress: Callable[[int], None] | None = None,
) -> list[float]:
    """Return the largest score that each picture's probes reach, undefended.

    Runs end when the last probe is judged, early in the denoising.

    Args:
        parts: The model.
        prompts: Texts, one per picture.
        seeds: As many seeds.
        gate: Its threshold does not matter.
        settings: Of the sampler.
        progress: Called with the number of pictures done.

    Raises:
        IneError: The run has too few steps for the gate to look.
    """
    found: list[float] = []
    for first in range(0, len(prompts), settings.batch):
        cut = slice(first, first + settings.batch)
        watching = _Watching(never_opening(gate))
        # A method that makes no queries itself, and that no scale makes meaningless.
        guidance = Gated(Additive(Negative(), 0.0), watching)
        with suppress(_Enough):
            sample_latents(parts, prompts[cut], seeds[cut], guidance, settings, _ending(gate))
        for note in watching.sessions[-1].notes():
            scores = [score for _, _, score in note["gate"]["probes"]]
            if not scores:
                raise IneError(
                    f"{settings.steps} steps leave the gate no probe to judge; give more --steps"
                )
            found.append(max(scores))
        if progress:
            progress(len(found))
    return found


def _ending(gate: ProbeGate | LookAhead) -> Callable[[Step], None]:
    """Return what ends a run at the first step after the gate's last look."""

    def stop(step: Step) -> None:
        last = query_steps(gate.queries, step.count)[-1] if isinstance(gate, ProbeGate) else 0
        if step.index > last:
            raise _Enough

    return stop
