"""Gates: guidance that acts only on the pictures and at the steps that need it.

A gated step first runs the U-Net on the plain pair of conditions for the whole batch, exactly the
call of the undefended model, and runs it on negatives in separate calls. So a picture whose gate
stays closed is bit-identical to the undefended one.

Shape letters: B pictures, C latent channels, H W latent size.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from ine.errors import IneError
from ine.guidance.cfg import undefended
from ine.guidance.method import Around, MethodSession
from ine.guidance.protocol import (
    Cost,
    Gate,
    GateSession,
    Guidance,
    Notes,
    Prompts,
    QueryUNet,
    Session,
    Step,
    UNetQuery,
)
from ine.text.condition import Condition


@dataclass(frozen=True)
class Gated(Around):
    """A guidance method behind a gate."""

    gate: Gate

    def split(self) -> tuple[Guidance, Gate]:
        """Return (the method, the gate)."""
        return self.guidance, self.gate

    def cost(self, scale: float, steps: int) -> Cost:
        """Return the cost of the method behind the gate."""
        return self.gate.cost(self.guidance.cost(scale, steps), steps)

    @contextmanager
    def begin(self, prompts: Prompts) -> Iterator[Session]:
        """Begin the method, and encode what the undefended model uses."""
        with self.guidance.begin(prompts) as inner:
            yield _GatedSession(
                inner=inner,
                gate=self.gate.begin(prompts),
                positive=prompts.positive(),
                empty=prompts.empty(),
                scale=prompts.scale,
            )


@dataclass(frozen=True, kw_only=True)
class _GatedSession(MethodSession):
    inner: Session
    gate: GateSession
    positive: Condition
    empty: Condition
    scale: float

    def predict(
        self, step: Step, query_unet: QueryUNet, pictures: tuple[int, ...] | None = None
    ) -> torch.Tensor:
        if pictures is not None:
            raise ValueError("a gate cannot stand behind another gate; join their conditions")
        count = len(self.positive)
        query_unet = remembering(query_unet, count)
        output = undefended(query_unet, self.empty, self.positive, self.scale)
        opened = tuple(self.gate.open(step, query_unet))
        step = replace(step, found=self.gate.found, named=self.gate.named)
        if not opened:
            return output
        if len(opened) == count:
            return self.inner.predict(step, query_unet)
        output = output.clone()
        output[list(opened)] = self.inner.predict(step, query_unet, opened)
        return output

    @property
    def found(self) -> tuple[frozenset[str], ...] | None:
        return self.gate.found

    def notes(self) -> list[Notes]:
        pairs = zip(self.inner.notes(), self.gate.notes(), strict=True)
        return [{**method, **gate} for method, gate in pairs]


def remembering(query_unet: QueryUNet, count: int) -> QueryUNet:
    """Return a `query_unet` for one step that keeps outputs and runs the U-Net on new queries only.

    Outputs are kept by the query's name and picture; a name stands for one condition per picture.
    """
    known: dict[tuple[str, int], torch.Tensor] = {}

    def remembered(queries: Sequence[UNetQuery]) -> dict[str, torch.Tensor]:
        missing = []
        for query in queries:
            rows = range(count) if query.pictures is None else query.pictures
            new = [place for place, i in enumerate(rows) if (query.name, i) not in known]
            if not new:
                continue
            condition = query.condition
            if len(condition) > 1 and len(new) < len(condition):
                condition = condition.rows(new)
            numbers = tuple(rows[place] for place in new)
            everyone = numbers == tuple(range(count))
            missing.append(
                replace(query, condition=condition, pictures=None if everyone else numbers)
            )
        if missing:
            out = query_unet(missing)
            for query in missing:
                rows = range(count) if query.pictures is None else query.pictures
                for i, output in zip(rows, out[query.name], strict=True):
                    known[query.name, i] = output
        return {
            q.name: torch.stack(
                [known[q.name, i] for i in (range(count) if q.pictures is None else q.pictures)]
            )
            for q in queries
        }

    return remembered


@dataclass(frozen=True)
class Window:
    """Open for all pictures during a part of the run.

    Fractions of the run: step i of n is inside when first <= i / n < last.
    """

    first: float = 0.0
    last: float = 1.0

    def __post_init__(self) -> None:
        """Raise `IneError` unless 0 <= first < last <= 1."""
        if not 0 <= self.first < self.last <= 1:
            raise IneError(
                f"gate window {self.first:g}..{self.last:g}: give two fractions of the run with "
                "0 <= first < last <= 1"
            )

    def holds(self, step: Step) -> bool:
        """Return whether a step is inside."""
        return self.first <= step.index / step.count < self.last

    def cost(self, inner: Cost, steps: int) -> Cost:
        """Return the plain pair at every step and, inside, what the method asks beside it."""
        inside = sum(self.first <= i / steps < self.last for i in range(steps))
        # A method of two conditions shares one of them with the plain pair.
        beside = max(1.0, inner.nfe / steps - 2) if inner.nfe > steps else 0.0
        return Cost(2 * steps + beside * inside, exact=False)

    def begin(self, prompts: Prompts) -> "_WindowSession":
        """Return the session; nothing is encoded."""
        return _WindowSession(self, len(prompts.texts))


@dataclass(frozen=True)
class _WindowSession:
    window: Window
    count: int

    @property
    def found(self) -> None:
        """A window tells no concepts apart."""

    @property
    def named(self) -> None:
        """It has no words for them either."""

    def open(self, step: Step, query_unet: QueryUNet) -> tuple[int, ...]:
        return tuple(range(self.count)) if self.window.holds(step) else ()

    def notes(self) -> list[Notes]:
        return [{} for _ in range(self.count)]


def check_probing(queries: Sequence[float], window: Window, threshold: float) -> None:
    """Raise `IneError` for settings with which a gate could never open, or never stay closed."""
    if not queries or not all(0 <= q < 1 for q in queries):
        raise IneError(f"gate queries {queries}: give fractions of the run in [0, 1)")
    if not any(window.first <= q < window.last for q in queries):
        raise IneError(
            f"gate queries {queries}: none is inside the window {window.first:g}.."
            f"{window.last:g}, so the gate would never open; give one that is"
        )
    if math.isnan(threshold):
        raise IneError("gate threshold is NaN; give a number")


def query_steps(queries: Sequence[float], count: int) -> list[int]:
    """Return the 0-based steps of a run of `count` steps at which to probe.

    The first step at or after each fraction, so that a query inside a window is asked there.
    """
    return sorted({min(math.ceil(q * count - 1e-9), count - 1) for q in queries})


def decide(
    opened: list[list | None],
    scores: list[list[list]],
    pictures: Sequence[int],
    step: Step,
    threshold: float,
) -> None:
    """Open the gate of pictures whose best score of this step exceeds the threshold; shut others.

    Args:
        opened: Per picture [step, concept, score] of what opened it, or None; changed here.
        scores: Per picture its probes so far, [step, concept, score] each.
        pictures: Those that were probed at this step.
        step: The current step.
        threshold: In units of the scores.
    """
    for i in pictures:
        best = max((s for s in scores[i] if s[0] == step.index), key=lambda s: s[2])
        opened[i] = best if best[2] > threshold else None


def gate_notes(opened: list[list | None], scores: list[list[list]]) -> list[Notes]:
    """Return what a gate logs, one dict per picture."""
    return [
        {"gate": {"opened": one, "probes": probes}}
        for one, probes in zip(opened, scores, strict=True)
    ]
