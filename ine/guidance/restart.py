"""Guidance that restarts a picture from its initial noise, guided, once a gate has opened.

The first steps of a run decide what a picture shows, but a gate can recognise it only later: a
gate that acts early has to guess, and one that acts late acts too late. Here a picture is first
generated undefended while the gate watches. If the gate opens, the picture is restarted from its
own noise with the method acting from the first step, and the gate watches again; if it opens
again, the next attempt is from other noise (`ine.guidance.attempts`) and may be stronger, up to the
end of the ladder.

A picture whose gate stays closed is bit-identical to the undefended one, at the cost of the
gate's looks. Each picture gets only as much strength as it needs.

Behind a look-ahead (`ine.guidance.look_ahead`) restarting is the second chance: the first attempt
is the method behind it. A picture in which the concept still shows at half that run is restarted,
one that the look-ahead missed with the first strength of the ladder, one that was steered already
with the next.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Self

import torch

from ine.embeddings.embedding import ConceptEmbedding
from ine.errors import IneError
from ine.guidance.attempts import NOISES
from ine.guidance.cfg import undefended
from ine.guidance.gates import Gated, Window, remembering
from ine.guidance.look_ahead import LookAhead
from ine.guidance.method import Around, Method, MethodSession
from ine.guidance.protocol import (
    Again,
    Cost,
    Gate,
    GateSession,
    Guidance,
    Notes,
    Prompts,
    QueryUNet,
    Session,
    Step,
)
from ine.text.condition import Condition

LADDER = (1.0, 1.0, 1.0)
"""Strengths of the attempts, as multiples of the method's own."""

LONGEST = len(NOISES) - 1
"""Entries that a ladder may have; a last resort begins with one more noise."""


def ladder_text(ladder: Sequence[float]) -> str:
    """Return a ladder as options and headers have it, "1,2"; "" for none."""
    return ",".join(f"{factor:g}" for factor in ladder)


@dataclass(frozen=True)
class Restart(Around):
    """A method, the gate that decides which pictures need it, and its strength per attempt."""

    gate: Gate
    ladder: tuple[float, ...] = LADDER
    """Of a method without a strength only the length matters."""

    last: Guidance | None = None
    """A last resort after the ladder: another method, without gates, as it is."""

    other_noise: bool = True
    """Whether restarts after the first begin with other noise; else with the picture's own, and
    those that would repeat the one before are left out."""

    def __post_init__(self) -> None:
        """Raise `IneError` for a ladder that is empty, too long, or has a multiple not above 0."""
        if not self.ladder or not all(0 < f < float("inf") for f in self.ladder):
            raise IneError(f"restart: ladder {self.ladder}: give multiples above 0, such as 1,1.5")
        if len(self.ladder) > LONGEST:
            raise IneError(
                f"restart: a ladder of {len(self.ladder)} strengths; give at most {LONGEST}"
            )

    def cost(self, scale: float, steps: int) -> Cost:
        """Return the cost of an undefended run, the minimum; looks and restarts cost more."""
        return Cost(2 * steps, exact=False)

    @property
    def attempts(self) -> tuple[Guidance, ...]:
        """The guidance of each attempt, watched by the gate.

        The first is the undefended model, or the method behind its own look-ahead.
        """
        method, ahead = self.guidance.split()
        if not isinstance(ahead, LookAhead):
            method, ahead = self.guidance, None
        elif ahead.window != Window():
            method = Gated(method, ahead.window)
        steered = [method.scaled(factor) for factor in self.ladder]
        first = self.guidance if ahead else None
        repeats = ahead is not None and steered[0] == method
        if self.last is not None:
            part = ahead.window if isinstance(ahead, LookAhead) else Window()
            steered.append(self.last if part == Window() else Gated(self.last, part))
        if not self.other_noise:
            steered = [one for one, _ in groupby(steered)]
        later = [
            _Watched(one, self.gate, noise=number if self.other_noise else 0)
            for number, one in enumerate(steered)
        ]
        return (_Watched(first, self.gate, repeats), *later)

    @property
    def repeats(self) -> bool:
        """Whether the second attempt is for a steered picture what the first was."""
        first, *_ = self.attempts
        return isinstance(first, _Watched) and first.repeats

    def with_embedding(self, embedding: ConceptEmbedding) -> Self:
        """Return it with one more embedding to steer away from, in the last resort too."""
        last = self.last and self.last.with_embedding(embedding)
        return replace(self, guidance=self.guidance.with_embedding(embedding), last=last)

    @contextmanager
    def begin(self, prompts: Prompts) -> Iterator[Session]:
        """Raise `IneError`: only a loop that runs `attempts` can restart a picture."""
        raise IneError(
            "restart: this loop cannot restart a picture; use the gate without it, or make the "
            "pictures with ine"
        )
        yield


@dataclass(frozen=True)
class _Watched(Method):
    """One attempt: a method for all pictures of the batch, watched by a gate."""

    guidance: Guidance | None
    """None is the undefended model."""

    gate: Gate
    repeats: bool = False
    """Whether the next attempt is this method again for pictures that its own gate opened for."""

    noise: int = 0

    @contextmanager
    def begin(self, prompts: Prompts) -> Iterator[Session]:
        """Begin the method and the gate."""
        with self.guidance.begin(prompts) if self.guidance else nullcontext() as inner:
            yield _WatchedSession(
                inner=inner,
                watch=self.gate.begin(prompts),
                empty=prompts.empty(),
                positive=prompts.positive(),
                scale=prompts.scale,
                repeats=self.repeats,
            )


@dataclass(frozen=True, kw_only=True)
class _WatchedSession(MethodSession):
    inner: Session | None
    watch: GateSession
    empty: Condition
    positive: Condition
    scale: float
    repeats: bool

    def predict(
        self, step: Step, query_unet: QueryUNet, pictures: tuple[int, ...] | None = None
    ) -> torch.Tensor:
        query_unet = remembering(query_unet, len(self.positive))
        if self.inner is not None:
            self.watch.open(step, query_unet)
            return self.inner.predict(step, query_unet)
        # The plain pair first, as the call of the undefended model.
        output = undefended(query_unet, self.empty, self.positive, self.scale)
        self.watch.open(step, query_unet)
        return output

    @property
    def again(self) -> dict[int, Again]:
        """The pictures whose gate is open; one that was steered skips the attempt that repeats."""
        ahead = None if self.inner is None else self.inner.found
        return restarted_by(self.watch, self._inner_notes(), ahead, self.repeats)

    def _inner_notes(self) -> list[Notes]:
        return self.inner.notes() if self.inner else [{} for _ in range(len(self.positive))]

    def notes(self) -> list[Notes]:
        return watched_notes(self._inner_notes(), self.watch)


def restarted_by(
    watch: GateSession,
    notes: Sequence[Notes],
    ahead: tuple[frozenset[str], ...] | None,
    repeats: bool,
) -> dict[int, Again]:
    """Return the pictures for which the watching gate of an attempt is open, and what follows.

    Args:
        watch: The gate.
        notes: Of the attempt, one per picture, with those of its own gate if it has one.
        ahead: Per picture, the concepts that its own gate found.
        repeats: Whether the next attempt is this one again for pictures that its own gate opened
            for; they skip it.
    """
    late = watch.found
    return {
        i: Again(
            further=2 if repeats and notes[i].get("gate", {}).get("opened") else 1,
            found=(late[i] if late else frozenset()) | (ahead[i] if ahead else frozenset()),
        )
        for i, note in enumerate(watch.notes())
        if note["gate"]["opened"]
    }


def watched_notes(notes: Sequence[Notes], watch: GateSession) -> list[Notes]:
    """Return the notes of an attempt with those of the gate that watches it, one per picture."""
    found = []
    for own, late in zip(notes, watch.notes(), strict=True):
        ahead = {"look_ahead": own["gate"]} if "gate" in own else {}
        found.append({**own, **ahead, **late})
    return found
