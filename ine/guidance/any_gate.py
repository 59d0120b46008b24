"""Several gates that watch the same run, one per concept."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from ine.guidance.protocol import (
    Cost,
    Gate,
    GateSession,
    Notes,
    Prompts,
    QueryUNet,
    Step,
    UNetQuery,
)

SHARED = ("empty", "positive")
"""Queries that mean the same for every concept."""


def named(query_unet: QueryUNet, concept: str) -> QueryUNet:
    """Return a `query_unet` that keeps one concept's conditions apart from the others'."""

    def asked(queries: Sequence[UNetQuery]) -> dict[str, torch.Tensor]:
        names = {q.name: q.name if q.name in SHARED else f"{q.name}:{concept}" for q in queries}
        out = query_unet([replace(q, name=names[q.name]) for q in queries])
        return {own: out[name] for own, name in names.items()}

    return asked


@dataclass(frozen=True)
class AnyGate:
    """Opens where one of its gates does, and knows which."""

    concepts: tuple[str, ...]
    gates: tuple[Gate, ...]
    """One per concept, in the same order."""

    def cost(self, inner: Cost, steps: int) -> Cost:
        """Return the cost behind the first gate; the others look as often."""
        return self.gates[0].cost(inner, steps)

    def begin(self, prompts: Prompts) -> "_AnySession":
        """Begin every gate."""
        return _AnySession(self.concepts, tuple(gate.begin(prompts) for gate in self.gates))


@dataclass(frozen=True)
class _AnySession:
    concepts: tuple[str, ...]
    sessions: tuple[GateSession, ...]

    @property
    def named(self) -> None:
        """Its gates know no words."""

    @property
    def found(self) -> tuple[frozenset[str], ...]:
        every = [session.found or () for session in self.sessions]
        return tuple(frozenset().union(*of_one) for of_one in zip(*every, strict=True))

    def open(self, step: Step, query_unet: QueryUNet) -> tuple[int, ...]:
        opened: set[int] = set()
        for concept, session in zip(self.concepts, self.sessions, strict=True):
            opened.update(session.open(step, named(query_unet, concept)))
        return tuple(sorted(opened))

    def notes(self) -> list[Notes]:
        rows = zip(*(session.notes() for session in self.sessions), strict=True)
        return [
            {
                "gate": {
                    "opened": next((n["gate"]["opened"] for n in own if n["gate"]["opened"]), None),
                    "probes": [probe for n in own for probe in n["gate"]["probes"]],
                }
            }
            for own in rows
        ]
