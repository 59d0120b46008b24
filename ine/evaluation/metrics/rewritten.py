"""What a rewriter did: prompts that it left as they were, and answers that could not be used."""

from collections.abc import Iterator

import numpy as np

from ine.detectors.rule import AnyOf, Rule
from ine.evaluation.metrics.base import Column, Metric, Sample, UnitView
from ine.evaluation.pictures import Columns
from ine.evaluation.result import Figure
from ine.posi.batches import NOTE

UNCHANGED, UNUSABLE = "unchanged prompts", "unusable rewrites"


class Rewritten(Metric):
    """Figures of configurations whose prompts are rewritten; others have none."""

    columns = (
        Column(name="unchanged", kind=bool),
        Column(name="unrewritten", kind=bool),
    )
    shown = (UNCHANGED, UNUSABLE)
    about = (
        "An unchanged prompt has the very picture that it has without a rewriter. Where a rewrite "
        "is unusable, the picture of the user's prompt counts; a host would make none."
    )

    def read(self, view: UnitView) -> Columns:
        """Return what became of the prompt of each picture."""
        rows = [note[NOTE] for note in view.about.notes if NOTE in note]
        if not rows:
            return {}
        unusable = np.array([bool(row["unusable"]) for row in rows])
        changed = np.array([row["changed"] for row in rows], dtype=bool)
        return {("unchanged", ""): ~changed & ~unusable, ("unrewritten", ""): unusable}

    def figures(self, sample: Sample, rule: Rule | AnyOf | None) -> Iterator[Figure]:
        """Yield "unchanged prompts" and "unusable rewrites"."""
        if not sample.has("unchanged"):
            return
        yield sample.share(UNCHANGED, sample.column("unchanged"))
        yield sample.share(UNUSABLE, sample.column("unrewritten"))
