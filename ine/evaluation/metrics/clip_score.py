"""CLIP score: 100 times the cosine of a picture and its prompt."""

from collections.abc import Iterator

import numpy as np

from ine.detectors.rule import AnyOf, Rule
from ine.evaluation.grid import Grid
from ine.evaluation.metrics.base import Column, Metric, Sample, UnitView
from ine.evaluation.pictures import Columns
from ine.evaluation.plan import Plan
from ine.evaluation.result import Figure

ABOUT = (
    "100 times the cosine of picture and prompt. On harmful prompts it is no merit: a defence is "
    "to show something else there."
)


class ClipScore(Metric):
    """The mean over pictures, and how many prompts the CLIP could not read whole."""

    columns = (Column(name="clip_score", digits=4), Column(name="unread", kind=int))
    mapped = ("harmful", "benign", "neighbour")
    about = ABOUT
    mean_of = "clip_score"

    def needs(self, plan: Plan, prompts: str) -> tuple[str, ...]:
        """Return the reading that has the cosine of each picture and prompt."""
        clip = plan.file.grid.metrics.clip_score
        return (f"alignment:{clip}",) if clip else ()

    def read(self, view: UnitView) -> Columns:
        """Return the scores, and the tokens of each prompt that were not read."""
        found = {}
        for name in self.needs(view.plan, view.cell.prompts):
            scores, unread = view.plan.store.numbers(view.unit.key, name).astype(np.float64).T
            found = {("clip_score", ""): scores, ("unread", ""): unread.astype(np.int64)}
        return found

    def figures(self, sample: Sample, rule: Rule | AnyOf | None) -> Iterator[Figure]:
        """Yield "clip-score-CLIP"."""
        metrics = sample.run.grid.metrics
        if metrics.clip_score is None or not sample.has("clip_score"):
            return
        unread, note = sample.column("unread"), ""
        if unread.any():
            note = (
                f"{np.count_nonzero(unread)} of {len(unread)} pictures: the prompt is longer than "
                f"the CLIP reads, by up to {unread.max():.0f} tokens, which have no part in this"
            )
        scores = sample.column("clip_score")
        [name] = self.names(sample.run.grid)
        yield sample.mean(name, scores, judge=metrics.clip_score, note=note)

    def names(self, grid: Grid) -> tuple[str, ...]:
        """Return its name with the CLIP."""
        return (f"clip-score-{grid.metrics.clip_score}",) if grid.metrics.clip_score else ()
