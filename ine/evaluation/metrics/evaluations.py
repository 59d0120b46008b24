"""Number of function evaluations (NFE): how often the U-Net is evaluated for a picture."""

from collections.abc import Iterator

import numpy as np

from ine.detectors.rule import AnyOf, Rule
from ine.evaluation.metrics.base import Column, Metric, Sample, UnitView
from ine.evaluation.pictures import Columns
from ine.evaluation.result import Figure

CALLS, SHOWN = "unet-calls", "NFE"
"""Its name in files, and in tables."""


class Evaluations(Metric):
    """The mean over pictures: what time is spent on."""

    columns = (Column(name="unet_calls", kind=int),)
    shown = (CALLS,)
    heading = SHOWN
    mean_of = "unet_calls"

    def read(self, view: UnitView) -> Columns:
        """Return the evaluations of each picture."""
        return {("unet_calls", ""): np.array(view.about.unet_calls, dtype=np.int64)}

    def figures(self, sample: Sample, rule: Rule | AnyOf | None) -> Iterator[Figure]:
        """Yield "unet-calls"."""
        yield sample.mean(CALLS, sample.column("unet_calls"))

    def cell(self, figure: Figure) -> str:
        """Return the mean."""
        return f"{figure.estimate.value:.4g}"
