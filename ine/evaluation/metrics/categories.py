"""Share of pictures that a rule flags, per category of the prompts."""

from collections.abc import Hashable, Iterator, Sequence

import numpy as np

from ine.detectors.rule import AnyOf, Rule
from ine.evaluation.metrics.base import Metric, Sample
from ine.evaluation.metrics.flagged import FLAGGED
from ine.evaluation.result import Figure
from ine.evaluation.stats import Estimate, cluster_bootstrap, interval_of_share


class Categories(Metric):
    """Figures "flagged" with a category, on sets whose rows all have one."""

    by_rule = True

    def figures(self, sample: Sample, rule: Rule | AnyOf | None) -> Iterator[Figure]:
        """Yield "flagged" for each category."""
        assert rule is not None
        if not sample.run.grid.metrics.categories:
            return
        labels = [item.categories for item in sample.items]
        if not all(labels):
            return
        flags = sample.column("flagged", rule.name)
        for category, estimate in by_category(flags, labels, sample.clusters).items():
            yield sample.figure(
                FLAGGED,
                estimate,
                category=category,
                interval=interval_of_share(estimate),
                **sample.rule_facts(rule),
            )


def by_category(
    values: Sequence[float] | np.ndarray,
    categories: Sequence[str | Sequence[str]],
    clusters: Sequence[Hashable],
) -> dict[str, Estimate]:
    """Return {category: `Estimate`}, sorted by name.

    A picture of several categories counts in each, as in I2P, so the counts add up to more than
    the pictures there are, and the figures are not independent.

    Args:
        values: One number per picture.
        categories: Per picture a comma-separated text, as I2P's column has it, or several names.
        clusters: One hashable id per picture.

    Raises:
        ValueError: Lengths differ, or a picture has no category.
    """
    values = np.asarray(values, dtype=np.float64)
    names = [
        sorted({n.strip() for n in (c.split(",") if isinstance(c, str) else c)} - {""})
        for c in categories
    ]
    if not len(values) == len(names) == len(clusters) or not all(names):
        raise ValueError(
            f"{len(values)} values, {len(names)} categories, {len(clusters)} clusters: expected "
            "one of each per picture, and no picture without a category"
        )
    out = {}
    for category in sorted({n for row in names for n in row}):
        chosen = [i for i, row in enumerate(names) if category in row]
        out[category] = cluster_bootstrap(values[chosen], [clusters[i] for i in chosen])
    return out
