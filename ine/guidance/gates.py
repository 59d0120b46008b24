"""Gates: guidance that acts only on the pictures, and at the steps, that need it.

A gated step makes the plain two-condition call for the whole batch first, exactly the call of
the undefended model, and asks about negatives in calls of their own. So a picture whose gate
stays closed is bit-identical to the undefended one.

Shape letters: B pictures, C latent channels, H W latent size.
"""

import math
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch

from ine.errors import IneError, did_you_mean
from ine.guidance.cfg import classifier_free
from ine.guidance.negative import cosine
from ine.guidance.protocol import Ask, Guidance, Prompts, Step, Wanted


class GateSession(Protocol):
    """A gate at work on one batch."""

    def open(self, step: Step, ask: Ask, plain) -> tuple[int, ...]:
        """Return the pictures whose gate is open at a step, in order.

        Args:
            step: Where the loop stands.
            ask: Runs the U-Net; what was asked at this step already costs nothing.
            plain: {"empty": ..., "positive": ...}, U-Net outputs (B, C, H, W).
        """

    def notes(self) -> list[dict]:
        """Return what is worth logging, one dict per picture."""


class Gate(Protocol):
    """When a method may act."""

    def begin(self, prompts: Prompts, negatives: Sequence) -> GateSession:
        """Prepare for a batch; `negatives` are the single `Negative`s to look for."""


@dataclass(frozen=True)
class Gated:
    """A guidance method behind a gate."""

    guidance: Guidance
    gate: Gate

    @property
    def negative(self):
        """Return the negative of the method."""
        return self.guidance.negative

    @contextmanager
    def begin(self, prompts):
        """Begin the method, and beside it what the undefended model would do."""
        with self.guidance.begin(prompts) as inner:
            yield _GatedSession(
                inner=inner,
                gate=self.gate.begin(prompts, self.guidance.negative.candidates()),
                positive=prompts.positive(),
                empty=prompts.empty(),
                scale=prompts.scale,
            )


@dataclass(frozen=True, kw_only=True)
class _GatedSession:
    inner: object
    gate: object
    positive: object
    empty: object
    scale: float

    def predict(self, step, ask, pictures=None):
        if pictures is not None:
            raise ValueError("a gate cannot stand behind another gate; join their conditions")
        count = len(self.positive)
        ask = remembering(ask, count)
        plain = ask([Wanted("empty", self.empty), Wanted("positive", self.positive)])
        output = classifier_free(plain["empty"], plain["positive"], self.scale)
        opened = tuple(self.gate.open(step, ask, plain))
        if not opened:
            return output
        if len(opened) == count:
            return self.inner.predict(step, ask)
        output = output.clone()
        output[list(opened)] = self.inner.predict(step, ask, opened)
        return output

    def notes(self):
        pairs = zip(self.inner.notes(), self.gate.notes(), strict=True)
        return [{**method, **gate} for method, gate in pairs]


def remembering(ask: Ask, count: int) -> Ask:
    """Return an `ask` for one step that asks only what it has not been told yet.

    Answers are kept by the wish's name and picture; a name stands for one condition per picture.
    """
    known: dict[tuple[str, int], torch.Tensor] = {}

    def asking(wanted):
        missing = []
        for wish in wanted:
            rows = range(count) if wish.pictures is None else wish.pictures
            new = [place for place, i in enumerate(rows) if (wish.name, i) not in known]
            if not new:
                continue
            condition = wish.condition
            if len(condition) > 1 and len(new) < len(condition):
                condition = condition.rows(new)
            numbers = tuple(rows[place] for place in new)
            everyone = numbers == tuple(range(count))
            missing.append(Wanted(wish.name, condition, None if everyone else numbers))
        if missing:
            out = ask(missing)
            for wish in missing:
                rows = range(count) if wish.pictures is None else wish.pictures
                for i, output in zip(rows, out[wish.name], strict=True):
                    known[wish.name, i] = output
        return {
            w.name: torch.stack(
                [known[w.name, i] for i in (range(count) if w.pictures is None else w.pictures)]
            )
            for w in wanted
        }

    return asking


@dataclass(frozen=True)
class Window:
    """Open for all pictures during a part of the run.

    Fractions of the run: step i of n is inside when first <= i / n < last.
    """

    first: float = 0.0
    last: float = 1.0

    def __post_init__(self):
        """Raise `IneError` where it is no part of the run."""
        if not 0 <= self.first < self.last <= 1:
            raise IneError(
                f"gate window {self.first:g}..{self.last:g}: give two fractions of the run with "
                "0 <= first < last <= 1"
            )

    def holds(self, step):
        """Return whether a step is inside."""
        return self.first <= step.index / step.count < self.last

    def begin(self, prompts, negatives):
        """Return the session; nothing is encoded."""
        return _WindowSession(self, len(prompts.texts))


@dataclass(frozen=True)
class _WindowSession:
    window: Window
    count: int

    def open(self, step, ask, plain):
        return tuple(range(self.count)) if self.window.holds(step) else ()

    def notes(self):
        return [{} for _ in range(self.count)]


MEASURES = {
    "cosine": lambda towards, concept: cosine(concept, towards),
    # After CRG (arXiv 2606.29801): ||a||^2 - ||a - b||^2 for a the prompt's direction and b the
    # concept's, here divided by ||a||^2 so that one threshold serves all steps; at most 1.
    "residual": lambda towards, concept: (
        1
        - (towards - concept).flatten(1).float().pow(2).sum(1)
        / towards.flatten(1).float().pow(2).sum(1).clamp_min(1e-12)
    ),
}
"""How far the prompt's direction agrees with the concept's: (B, C, H, W) twice -> (B,)."""


@dataclass(frozen=True)
class Presence:
    """Open where the prompt's direction agrees with the concept's.

    With a = eps_pos - eps_0 and b = eps_neg - eps_0: open when measure(a, b) > threshold for any
    of the negatives. Probed at the query steps, in a call of its own, and held until the next.
    """

    threshold: float
    measure: str = "cosine"
    """A name of `MEASURES`."""

    queries: tuple[float, ...] = (0.05, 0.1, 0.15)
    """Where in the run to probe, fractions in [0, 1): at the first step there or after. On the
    bundled model the very first step tells nothing, the next three tell most."""

    latch: bool = True
    """Once open, stay open: what the concept's steering removed must not shut its own gate."""

    window: Window = Window()

    def __post_init__(self):
        """Raise `IneError` where a setting makes no sense."""
        if self.measure not in MEASURES:
            hint = did_you_mean(self.measure, MEASURES)
            known = ", ".join(MEASURES)
            raise IneError(f"gate measure {self.measure!r} is unknown{hint}; known: {known}")
        check_probing(self.queries, self.window, self.threshold)

    def begin(self, prompts, negatives):
        """Encode the negatives once."""
        return _PresenceSession(
            gate=self,
            negatives={n.name: n.condition(prompts) for n in negatives},
            opened=[None] * len(prompts.texts),
            scores=[[] for _ in prompts.texts],
        )


def check_probing(queries, window, threshold):
    """Raise `IneError` for settings with which a gate could never do its work."""
    if not queries or not all(0 <= q < 1 for q in queries):
        raise IneError(f"gate queries {queries}: give fractions of the run in [0, 1)")
    if not any(window.first <= q < window.last for q in queries):
        raise IneError(
            f"gate queries {queries}: none is inside the window {window.first:g}.."
            f"{window.last:g}, so the gate would never open; give one that is"
        )
    if math.isnan(threshold):
        raise IneError("gate threshold is NaN; give a number")


def query_steps(queries, count):
    """Return the 0-based steps of a run of `count` steps at which to probe.

    The first step at or after each fraction, so that a query inside a window is asked there.
    """
    return sorted({min(math.ceil(q * count - 1e-9), count - 1) for q in queries})


@dataclass(frozen=True, kw_only=True)
class _PresenceSession:
    gate: Presence
    negatives: dict
    opened: list
    """Per picture: (step, negative, score) of the probe that opened it; None while closed."""

    scores: list

    def open(self, step, ask, plain):
        gate, count = self.gate, len(self.opened)
        if step.index in query_steps(gate.queries, step.count) and gate.window.holds(step):
            undecided = [i for i in range(count) if not (gate.latch and self.opened[i])]
            if undecided:
                self._probe(step, ask, plain, undecided)
        if not gate.window.holds(step):
            return ()
        return tuple(i for i in range(count) if self.opened[i])

    def _probe(self, step, ask, plain, pictures):
        towards = (plain["positive"] - plain["empty"])[pictures]
        measure = MEASURES[self.gate.measure]
        for name, output in probe(ask, self.negatives, pictures, len(self.opened)).items():
            found = measure(towards, output - plain["empty"][pictures]).tolist()
            for i, score in zip(pictures, found, strict=True):
                # What is compared is what is logged, so a threshold taken from logs holds.
                self.scores[i].append([step.index, name, round(score, 4)])
        decide(self.opened, self.scores, pictures, step, self.gate.threshold)

    def notes(self):
        return gate_notes(self.opened, self.scores)


def probe(ask, negatives, pictures, count):
    """Return {name: U-Net output (pictures, C, H, W)} of negatives, in one call.

    Args:
        ask: Runs the U-Net.
        negatives: {name: condition, one row}.
        pictures: Which of the batch.
        count: How many the batch has.
    """
    rows = None if len(pictures) == count else tuple(pictures)
    # The names that the method's own slot asks by, so that it is not asked twice.
    keys = {n: "negative" if len(negatives) == 1 else f"negative:{n}" for n in negatives}
    out = ask([Wanted(keys[name], condition, rows) for name, condition in negatives.items()])
    return {name: out[key] for name, key in keys.items()}


def decide(opened, scores, pictures, step, threshold):
    """Open the gate of pictures whose best score of this step exceeds the threshold; shut others.

    Args:
        opened: Per picture [step, negative, score] of what opened it, or None; changed here.
        scores: Per picture its probes so far, [step, negative, score] each.
        pictures: Those that were probed at this step.
        step: Where the loop stands.
        threshold: In units of the scores.
    """
    for i in pictures:
        best = max((s for s in scores[i] if s[0] == step.index), key=lambda s: s[2])
        opened[i] = best if best[2] > threshold else None


def gate_notes(opened, scores):
    """Return what a gate logs, one dict per picture."""
    return [
        {"gate": {"opened": one, "probes": probes}}
        for one, probes in zip(opened, scores, strict=True)
    ]
