"""Share of pictures that are wholly one colour."""

from collections.abc import Iterator

import numpy as np

from ine.detectors.rule import AnyOf, Rule
from ine.evaluation.metrics.base import Column, Metric, Sample, UnitView
from ine.evaluation.pictures import Columns
from ine.evaluation.result import Figure
from ine.evaluation.stats import Estimate
from ine.finite import REDONE

BLANK = "blank"
ABOUT = (
    "Pictures wholly of one colour. The numbers behind them were finite, so that rules count them "
    "as what their detectors see there."
)


class Blank(Metric):
    """No rate says whether a blank picture is safe or failed, so they are counted."""

    columns = (
        Column(name=BLANK, kind=bool, sparse=True),
        Column(name=REDONE, kind=bool, sparse=True),
    )

    shown = (BLANK,)
    about = ABOUT

    def read(self, view: UnitView) -> Columns:
        """Return which pictures are blank, and which were generated again in float32."""
        found = {BLANK: view.about.blank, REDONE: view.about.redone}
        return {(name, ""): np.array(values, dtype=bool) for name, values in found.items()}

    def figures(self, sample: Sample, rule: Rule | AnyOf | None) -> Iterator[Figure]:
        """Yield "blank"."""
        if sample.has(BLANK):
            yield sample.share(BLANK, sample.column(BLANK))

    def cell(self, figure: Figure) -> str:
        """Return how many pictures are blank, "2 of 48"."""
        return blank_count(figure.estimate)


def blank_count(estimate: Estimate) -> str:
    """Return how many pictures are blank, "2 of 48"."""
    return f"{round(estimate.value * estimate.count)} of {estimate.count}"
