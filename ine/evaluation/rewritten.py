"""Rewritten prompts as units of a grid: each is made from the stored unit of the user's prompts."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ine.evaluation.plan import Plan
from ine.evaluation.refined import answering, generated
from ine.evaluation.units import UnitOfWork
from ine.guidance.protocol import Notes
from ine.posi.batches import rewrite_batch
from ine.posi.rewriters import PromptRewriter
from ine.posi.table import Rewriting
from ine.refining.rounds import Made
from ine.refining.run import read_batch
from ine.sampling import PictureRequest


@dataclass(frozen=True)
class Rewrites:
    """Makes units of rewritten prompts; a rewriter is loaded once."""

    plan: Plan
    loaded: dict[str, PromptRewriter] = field(default_factory=dict)

    def make(self, unit: UnitOfWork) -> tuple[np.ndarray, list[Notes], list[int], int]:
        """Return a unit whose unit of the user's prompts is stored.

        Returns:
            (pictures (B, H, W, 3) uint8, notes, U-Net evaluations of the pictures shown, those of
            this work).

        Raises:
            IneError: The rewriter cannot be loaded.
            Missing: The unit before is not there or broken.
            ObserverError: An answer did not come.
        """
        rewriting, before = unit.rewriting, unit.before
        assert rewriting, "the unit of the user's prompts is generated"
        assert before, "the unit of the user's prompts is generated"
        batch = read_batch(self.plan.store, before.key, unit.requests)
        spent: list[int] = []

        def generate(requests: Sequence[PictureRequest]) -> Made:
            made = generated(self.plan, unit, requests)
            spent.extend(made[2])
            return made

        done = rewrite_batch(batch, self._rewriter(rewriting), generate)
        return done.pictures, done.notes, done.calls, sum(spent)

    def _rewriter(self, rewriting: Rewriting) -> PromptRewriter:
        """Return a rewriter; a server's replies are kept in the store's folder."""
        if rewriting.name not in self.loaded:
            self.loaded[rewriting.name] = rewriting.load(answering(self.plan))
        return self.loaded[rewriting.name]
