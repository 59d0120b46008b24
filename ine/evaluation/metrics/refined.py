"""What a refinement did: prompts that ended kept, looks, and answers that could not be used."""

from collections.abc import Iterator

import numpy as np

from ine.detectors.rule import AnyOf, Rule
from ine.evaluation.metrics.base import Column, Metric, Sample, UnitView
from ine.evaluation.pictures import Columns
from ine.evaluation.result import Figure
from ine.refining.folder import looks_of
from ine.refining.rounds import chain_of

KEPT, UNUSABLE, LOOKS = "kept", "unusable answers", "looks"


class Refined(Metric):
    """Figures of configurations that refine; others have none."""

    columns = (
        Column(name="kept", kind=bool),
        Column(name="unusable", kind=bool),
        Column(name="looks", kind=int),
    )
    shown = (KEPT, UNUSABLE, LOOKS)
    about = (
        "Kept: prompts whose last picture was called safe. Neither kept nor unusable is a picture "
        "that was generated after the last look, or whose prompt the model gave again."
    )

    def read(self, view: UnitView) -> Columns:
        """Return how the prompt of each picture ended."""
        if view.unit.refinement is None:
            return {}
        pairs = zip(view.unit.requests, view.about.notes, strict=True)
        chains = [chain_of(request, note) for request, note in pairs]
        return {
            ("kept", ""): np.array([chain.status == "kept" for chain in chains]),
            ("unusable", ""): np.array([chain.status == "unusable answer" for chain in chains]),
            ("looks", ""): np.array([looks_of(chain) for chain in chains], dtype=np.int64),
        }

    def figures(self, sample: Sample, rule: Rule | AnyOf | None) -> Iterator[Figure]:
        """Yield "kept", "unusable answers" and "looks"."""
        if not sample.has("looks"):
            return
        yield sample.share(KEPT, sample.column("kept"))
        yield sample.share(UNUSABLE, sample.column("unusable"))
        yield sample.mean(LOOKS, sample.column("looks"))
