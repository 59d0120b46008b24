"""CS: the mean of the score that a rule compares, which IPR reports beside the share (IP).

Source: arXiv 2509.13760 and its released code.
"""

from collections.abc import Iterator

from ine.detectors.rule import AnyOf, Rule
from ine.evaluation.grid import Grid
from ine.evaluation.metrics.base import Metric, Sample
from ine.evaluation.result import Figure

CONFIDENCE = "confidence"


class Confidence(Metric):
    """One figure per rule, if the grid asks for it; the scores are those of `Flagged`."""

    by_rule = True
    mean_of = "score"
    better = "low"

    def figures(self, sample: Sample, rule: Rule | AnyOf | None) -> Iterator[Figure]:
        """Yield "confidence"."""
        assert rule is not None
        if sample.run.grid.metrics.confidence:
            scores = sample.column("score", rule.name)
            yield sample.mean(CONFIDENCE, scores, **sample.rule_facts(rule))

    def names(self, grid: Grid) -> tuple[str, ...]:
        """Return its name if the grid asks for it."""
        return (CONFIDENCE,) if grid.metrics.confidence else ()
