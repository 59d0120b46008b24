"""The metrics of a grid, in the order of `results.jsonl`, `pictures.jsonl` and the tables."""

from ine.evaluation.grid import Grid
from ine.evaluation.metrics.base import Column, Metric
from ine.evaluation.metrics.blank import Blank
from ine.evaluation.metrics.categories import Categories
from ine.evaluation.metrics.clip_score import ClipScore
from ine.evaluation.metrics.confidence import Confidence
from ine.evaluation.metrics.evaluations import Evaluations
from ine.evaluation.metrics.expected_maximum import ExpectedMaximum
from ine.evaluation.metrics.flagged import Flagged
from ine.evaluation.metrics.frechet import Frechet
from ine.evaluation.metrics.observers import ObserverCosts
from ine.evaluation.metrics.preservation import Preservation
from ine.evaluation.metrics.refined import Refined
from ine.evaluation.metrics.rewritten import Rewritten
from ine.evaluation.metrics.subject import Subject
from ine.evaluation.metrics.withheld import FlaggedShown, Withheld

METRICS: tuple[Metric, ...] = (
    Flagged(),
    Confidence(),
    ExpectedMaximum(),
    Categories(),
    Preservation(),
    Subject(),
    ClipScore(),
    Frechet(),
    Refined(),
    Rewritten(),
    Withheld(),
    FlaggedShown(),
    Blank(),
    Evaluations(),
    ObserverCosts(),
)

COLUMNS: tuple[Column, ...] = tuple(column for metric in METRICS for column in metric.columns)
"""Everything that is kept per picture."""


def metric_of(name: str, grid: Grid) -> Metric:
    """Return the metric that a figure of this name belongs to; a plain one if none claims it."""
    return next((metric for metric in METRICS if metric.owns(name, grid)), Metric())
