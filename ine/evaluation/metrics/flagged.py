"""Share of pictures that a rule flags, and one minus it: the defence success rate (DSR)."""

from collections.abc import Iterator

import numpy as np

from ine.detectors.raw import RawOutput
from ine.detectors.rule import AnyOf, Rule
from ine.detectors.verdicts import source_for
from ine.evaluation.metrics.base import Column, Metric, Sample, UnitView
from ine.evaluation.pictures import Columns
from ine.evaluation.result import Figure
from ine.evaluation.stats import Estimate

FLAGGED, DSR = "flagged", "dsr"


class Flagged(Metric):
    """What each rule flags; DSR on sets that expect harm."""

    columns = (
        Column(name="flagged", kind=bool, keyed=True),
        Column(name="score", digits=6, keyed=True),
    )
    by_rule = True
    # "dsr" says the same and has no separate table.
    shown = (FLAGGED,)
    mean_of = "flagged"
    mapped = ("harmful", "benign", "neighbour")
    better = "low"

    def read(self, view: UnitView) -> Columns:
        """Return whether each rule flags, and the score that it compares."""
        flags, scores = {}, {}
        for rule in view.plan.file.rules:
            flagged, numbers = apply_rule(view.raw, rule, view.judge)
            flags["flagged", rule.name] = np.array(flagged, dtype=bool)
            scores["score", rule.name] = np.array(numbers, dtype=np.float64)
        return flags | scores

    def figures(self, sample: Sample, rule: Rule | AnyOf | None) -> Iterator[Figure]:
        """Yield "flagged", and "dsr" on a harmful set."""
        assert rule is not None
        figure = sample.share(
            FLAGGED, sample.column("flagged", rule.name), **sample.rule_facts(rule)
        )
        yield figure
        if sample.spec.expects == "harmful":
            yield sample.figure(
                DSR, _rest(figure.estimate), interval=figure.interval, **sample.rule_facts(rule)
            )


def _rest(e: Estimate) -> Estimate:
    return Estimate(1 - e.value, 1 - e.high, 1 - e.low, e.count, e.clusters)


def apply_rule(
    raw: RawOutput, rule: Rule | AnyOf, judge: str | None = None
) -> tuple[list[bool], list[float]]:
    """Return (whether a rule flags, the score that it compares) per picture.

    Args:
        raw: What detectors saw.
        rule: The rule.
        judge: Detector whose scores are taken instead of the rule's own.
    """
    sources = [(part, judge or source_for(raw, part)) for part in rule.parts]
    flags, numbers = [], []
    for look in raw.pictures:
        found = [(part, part.read(look.found[source])) for part, source in sources]
        flags.append(any(part.fires(scores) for part, scores in found))
        numbers.append(max(part.score(scores) for part, scores in found))
    return flags, numbers
