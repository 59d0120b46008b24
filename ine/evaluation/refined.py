"""Rounds of refinement as units of a grid: each is made from the stored round before."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from ine.evaluation.plan import Plan
from ine.evaluation.units import UnitOfWork, make_unit
from ine.guidance.protocol import Notes
from ine.observers.table import ObserverSettings
from ine.posi.batches import as_shown, with_notes
from ine.refining.asking import Rewriter
from ine.refining.rounds import Made, refine_once
from ine.refining.run import Refinement, read_batch
from ine.refining.table import load_rewriter
from ine.sampling import PictureRequest


def generated(plan: Plan, unit: UnitOfWork, requests: Sequence[PictureRequest]) -> Made:
    """Return pictures of a unit's model under its guidance, of other requests than its own."""
    parts = plan.shelf.parts(unit.configuration.model)
    guidance = plan.guidances[unit.configuration]
    return make_unit(parts, guidance, replace(unit, requests=tuple(requests)))


def answering(plan: Plan) -> ObserverSettings:
    """Return how who looks or rewrites runs; a server's replies are kept in the store's folder."""
    return ObserverSettings(device=str(plan.shelf.device), cache=Path(plan.store.folder))


@dataclass(frozen=True)
class Rounds:
    """Makes rounds; who looks is loaded once."""

    plan: Plan
    rewriters: dict[str, Rewriter] = field(default_factory=dict)

    def make(self, unit: UnitOfWork) -> tuple[np.ndarray, list[Notes], list[int], int]:
        """Return a round of a unit whose round before is stored.

        Returns:
            (pictures (B, H, W, 3) uint8, notes, U-Net evaluations of all rounds, those of this
            round together).

        Raises:
            Missing: The round before is not there or broken.
            ObserverError: An answer did not come.
        """
        refinement, before = unit.refinement, unit.before
        assert refinement, "a unit without a round before is generated"
        assert before, "a unit without a round before is generated"
        batch = as_shown(read_batch(self.plan.store, before.key, unit.requests))
        generate = partial(generated, self.plan, unit)
        done = refine_once(batch, self._rewriter(refinement), generate, refinement.settings)
        notes = with_notes(done.notes, batch.notes)
        return done.pictures, notes, done.calls, sum(done.calls) - sum(batch.calls)

    def _rewriter(self, refinement: Refinement) -> Rewriter:
        """Return who looks; its replies are kept in the store's folder."""
        key = f"{refinement.name} {refinement.settings.deciding}"
        if key not in self.rewriters:
            how = answering(self.plan)
            self.rewriters[key] = load_rewriter(refinement.observer, refinement.settings, how)
        return self.rewriters[key]
