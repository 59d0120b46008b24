"""A gate that looks ahead: a coarse run from the picture's own start, before its first step.

The first steps of a run decide what a picture shows, and a probe recognises it only halfway
(`ine.guidance.probe`). So at the first step k coarse steps lead from the picture's own start to
the noise level of the probes, with the guidance of the undefended run, and the probes are asked
there (`ine.guidance.coarse`). A picture in which none fires is the undefended one, bit by bit;
the others are steered from their first step, whatever the scheduler is.

    cost        2 (k - 1) + 1 rows of the U-Net: the first coarse step shares the run's own
                predictions, and one row, on the empty text, is for all probes

Shape letters: B pictures, C latent channels, H W latent size.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from ine.errors import IneError
from ine.finite import check_finite
from ine.guidance.ahead import CoarseRun
from ine.guidance.gates import Window
from ine.guidance.probe import Probe, features_of, listening
from ine.guidance.protocol import Cost, Notes, Point, Prompts, QueryUNet, Step, UNetQuery
from ine.text.condition import Condition

STEPS = 5
"""Coarse steps: they see what half a run sees on the bundled model (docs/guidance.md)."""

TIMESTEP = 451
"""Noise level of the probes: that of half a run of 20 DDIM steps."""


@dataclass(frozen=True, kw_only=True)
class ConceptProbe:
    """A concept that a look-ahead asks for."""

    concept: str
    probe: Probe
    threshold: float
    """It fires where the score exceeds this; in log-odds."""

    def __post_init__(self) -> None:
        """Raise `IneError` for a threshold that is not a number."""
        if math.isnan(self.threshold):
            raise IneError("gate threshold is NaN; give a number")


@dataclass(frozen=True, kw_only=True)
class LookAhead:
    """Opens for a picture in whose coarse run a probe recognises its concept."""

    probes: tuple[ConceptProbe, ...]
    """One per concept; all are asked at the same noise level."""

    steps: int = STEPS
    """k, coarse steps."""

    timestep: int = TIMESTEP
    """Noise level of the probes, in [1, 998]."""

    scale: float | None = None
    """Guidance scale of the coarse steps; None is the run's own."""

    window: Window = field(default_factory=Window)
    """Part of the run in which an open gate lets the method act."""

    def __post_init__(self) -> None:
        """Raise `IneError` for settings that make no sense."""
        if not self.probes:
            raise IneError("look-ahead: there is no probe to ask; make one with: ine calibrate")
        names = [one.concept for one in self.probes]
        if twice := next((name for i, name in enumerate(names) if name in names[:i]), None):
            raise IneError(f"look-ahead: two probes are for {twice!r}; give one of their gates")
        if self.steps < 1:
            raise IneError(f"look-ahead: {self.steps} steps; give 1 or more")
        if not 0 < self.timestep < 999:
            raise IneError(f"look-ahead: timestep {self.timestep}; give a number from 1 to 998")
        if self.scale is not None and not math.isfinite(self.scale):
            raise IneError(f"look-ahead: guidance scale {self.scale}; give a finite number")

    @property
    def rows(self) -> int:
        """U-Net evaluations of a guided picture beside those of its run."""
        return 2 * (self.steps - 1) + 1

    def cost(self, inner: Cost, steps: int) -> Cost:
        """Return the mean of a picture that is never steered and one that always is."""
        return Cost((2 * steps + inner.nfe) / 2 + self.rows, exact=False)

    def begin(self, prompts: Prompts) -> "_LookAheadSession":
        """Encode what the undefended run uses.

        Raises:
            IneError: The model has few steps, or noise levels or predictions of another kind.
        """
        count = len(prompts.texts)
        return _LookAheadSession(
            gate=self,
            unet=prompts.parts.unet,
            run=CoarseRun.of(prompts, self.steps, self.timestep, self.scale),
            empty=prompts.empty(),
            fired=[[] for _ in range(count)],
            scores=[[] for _ in range(count)],
        )


def join(looks: Sequence[LookAhead]) -> LookAhead:
    """Return one look-ahead that asks the probes of several.

    Raises:
        IneError: They look at different places, or two are for the same concept.
    """
    first = looks[0]
    for other in looks[1:]:
        for name in ("steps", "timestep", "scale", "window"):
            here, there = getattr(first, name), getattr(other, name)
            if here != there:
                raise IneError(
                    f"look-ahead: the gate of {first.probes[0].concept} has {name} {here}, that of "
                    f"{other.probes[0].concept} {there}, so that they cannot share one; calibrate "
                    "both alike"
                )
    return replace(first, probes=tuple(probe for look in looks for probe in look.probes))


@dataclass(frozen=True, kw_only=True)
class _LookAheadSession:
    gate: LookAhead
    unet: nn.Module
    run: CoarseRun
    empty: Condition
    fired: list[list[tuple[float, list]]]
    """Per picture, (score above the threshold, note) of the probes that fired."""

    scores: list[list[list]]
    """Per picture, [step, concept, score] of every probe; empty before the look."""

    @property
    def named(self) -> None:
        """A probe knows no words."""

    @property
    def found(self) -> tuple[frozenset[str], ...]:
        """The concepts whose probe fired, per picture."""
        return tuple(frozenset(note[1] for _, note in one) for one in self.fired)

    def open(self, step: Step, query_unet: QueryUNet) -> tuple[int, ...]:
        if not any(self.scores):
            self._look(step, query_unet)
        if not self.gate.window.holds(step):
            return ()
        return tuple(i for i, one in enumerate(self.fired) if one)

    def _look(self, step: Step, query_unet: QueryUNet) -> None:
        features = self.features(step, query_unet)
        for one in self.gate.probes:
            for i, score in enumerate(one.probe.scores(features).tolist()):
                note = [step.index, one.concept, round(score, 4)]
                self.scores[i].append(note)
                if note[2] > one.threshold:
                    self.fired[i].append((note[2] - one.threshold, note))

    def features(self, step: Step, query_unet: QueryUNet) -> torch.Tensor:
        """Return what the probes read at the end of the coarse run, (B, F)."""
        end = self.run.end(step, query_unet)
        with listening(self.unet) as heard:
            at = Point(x_t=end.x_t, t=end.t)
            query_unet([UNetQuery("look:ahead", self.empty, None, at)])
            features = features_of(heard)
        # A score that is not a number would leave the gate shut.
        check_finite(features, "U-Net", step.index, step.count)
        return features

    def notes(self) -> list[Notes]:
        return [
            {
                "gate": {
                    "opened": max(fired, key=lambda one: one[0])[1] if fired else None,
                    "probes": probes,
                }
            }
            for fired, probes in zip(self.fired, self.scores, strict=True)
        ]
