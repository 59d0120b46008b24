"""What an observer costs beside the U-Net: its calls, the time of its looks, its lost answers."""

from collections.abc import Iterator

import numpy as np

from ine.detectors.rule import AnyOf, Rule
from ine.evaluation.metrics.base import Column, Metric, Sample, UnitView
from ine.evaluation.pictures import Columns
from ine.evaluation.result import Figure

CALLS, SECONDS, UNKNOWN = "observer-calls", "observer-seconds", "observer-unknown"
COLUMNS = {CALLS: "observer_calls", SECONDS: "observer_seconds", UNKNOWN: "observer_unknown"}
"""{figure: column that it is the mean of}."""

NOTED = {"observer_calls": "calls", "observer_seconds": "seconds", "observer_unknown": "unknown"}
"""{column: its name in the notes of a picture, see `ine.guidance.observed`}."""

ABOUT = (
    "Of an observer, per picture: calls of its model, seconds of its looks (previews included, "
    "measured on the machine that made the pictures), and answers that were unknown."
)


class ObserverCosts(Metric):
    """Means over pictures; only configurations with an observer have them."""

    columns = (
        Column(name="observer_calls", kind=int),
        Column(name="observer_seconds", digits=4),
        Column(name="observer_unknown", kind=int),
    )
    shown = (CALLS, SECONDS, UNKNOWN)
    about = ABOUT

    def read(self, view: UnitView) -> Columns:
        """Return what was noted of each picture; {} where no observer looked."""
        noted = [note["observer"] for note in view.about.notes if "observer" in note]
        if len(noted) < view.about.count:
            return {}
        kinds = {column.name: column.kind for column in self.columns}
        return {
            (name, ""): np.array([one[key] for one in noted], dtype=kinds[name])
            for name, key in NOTED.items()
        }

    def figures(self, sample: Sample, rule: Rule | AnyOf | None) -> Iterator[Figure]:
        """Yield "observer-calls", "observer-seconds" and "observer-unknown"."""
        for figure, column in COLUMNS.items():
            if sample.has(column):
                yield sample.mean(figure, sample.column(column))

    def cell(self, figure: Figure) -> str:
        """Return the mean."""
        return f"{figure.estimate.value:.3g}"
