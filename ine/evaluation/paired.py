"""Comparisons on the same prompts and seeds: McNemar, Holm, "no worse than".

Shape letter: P pictures, the same ones in both conditions.
"""

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ine.evaluation.intervals import numbered
from ine.evaluation.stats import Estimate, paired_difference

ENOUGH = 1000
"""Pictures that a claim of "no worse than" must rest on. With one pair in ten discordant the 95%
interval of the difference is then +- .02; with 100 pairs it is +- .06, and failing to see a
difference says nothing."""


@dataclass(frozen=True, kw_only=True)
class McNemar:
    """Two conditions that disagree, and how probable that is by chance."""

    only_first: int
    """Pairs in which it happened under the first condition alone."""

    only_second: int
    pairs: int
    """Independent pairs compared; clusters where those were given."""

    p: float
    """Two-sided, exact."""


def mcnemar(
    first: ArrayLike, second: ArrayLike, clusters: Iterable[Hashable] | None = None
) -> McNemar:
    """Return McNemar's exact test of two 0/1 outcomes on the same pictures.

    Under the hypothesis of no difference each of the n discordant pairs is a fair coin, so with
    m the smaller count ``p = min(1, 2 sum_{i <= m} C(n, i) / 2^n)``.

    Args:
        first: 0 or 1 per picture, (P,).
        second: The same pictures under the other condition, (P,).
        clusters: One hashable id per picture, where several are of one prompt and so not
            independent. Then clusters are compared, each by the sign of its summed difference
            (the sign test), and a cluster whose pictures cancel counts as agreeing.

    Raises:
        ValueError: Lengths differ, nothing is given, or outcomes are not 0 and 1.

    Sources:
        McNemar 1947, Psychometrika 12; Fay 2010, Biostatistics 11 (the exact form).
    """
    first, second = np.asarray(first, dtype=np.int64), np.asarray(second, dtype=np.int64)
    groups = list(range(len(first))) if clusters is None else list(clusters)
    if first.shape != second.shape or first.ndim != 1 or len(groups) != len(first) or not groups:
        raise ValueError(
            f"outcomes {first.shape} and {second.shape} with {len(groups)} clusters: expected one "
            "pair and one cluster per picture, at least one"
        )
    if not np.isin([first, second], (0, 1)).all():
        raise ValueError("outcomes are 0 or 1: whether it happened")
    net = np.bincount(numbered(groups), weights=first - second)
    only_first, only_second = int((net > 0).sum()), int((net < 0).sum())
    return McNemar(
        only_first=only_first,
        only_second=only_second,
        pairs=len(net),
        p=_fair_coins(min(only_first, only_second), only_first + only_second),
    )


def _fair_coins(fewer: int, tosses: int) -> float:
    # Whole numbers: exact for any number of pairs.
    tail = sum(math.comb(tosses, i) for i in range(fewer + 1))
    return min(1.0, 2 * tail / 2**tosses)


def holm(values: Iterable[float]) -> list[float]:
    """Return p-values adjusted for how many were looked at, in the order given.

    The i-th smallest of m is multiplied by m - i + 1 and may not fall below those before it; the
    chance of any false rejection among them all is then at most the level.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]

    Raises:
        ValueError: A value is not in [0, 1].

    Sources:
        Holm 1979, Scand. J. Statist. 6, p. 65.
    """
    values = [float(v) for v in values]
    if not all(0 <= v <= 1 for v in values):
        raise ValueError(f"p-values {values}: expected numbers from 0 to 1")
    adjusted, least = [0.0] * len(values), 0.0
    for rank, index in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        least = max(least, min(1.0, (len(values) - rank) * values[index]))
        adjusted[index] = least
    return adjusted


@dataclass(frozen=True, kw_only=True)
class NonInferiority:
    """Whether "no worse than" is shown, and by what."""

    difference: Estimate
    """New minus old, positive where the new one is better; 95% interval."""

    margin: float
    """How much worse still counts as no worse."""

    enough: bool
    """Whether it rests on at least `ENOUGH` pictures."""

    @property
    def within(self) -> bool:
        """Whether the whole interval lies above minus the margin."""
        return self.difference.low > -self.margin

    @property
    def shown(self) -> bool:
        """Whether the claim may be made."""
        return self.within and self.enough

    @property
    def words(self) -> str:
        """The verdict in a sentence."""
        found = (
            f"difference {self.difference.value:+.3f} ({self.difference.low:+.3f} to "
            f"{self.difference.high:+.3f}), margin {self.margin:g}, {self.difference.support}"
        )
        if self.shown:
            return f"no worse: {found}"
        if not self.enough:
            return f"not shown, fewer than {ENOUGH} pictures: {found}"
        worse = self.difference.high < -self.margin
        return f"{'worse' if worse else 'not shown'}: {found}"


def non_inferiority(
    new: ArrayLike,
    old: ArrayLike,
    clusters: Sequence[Hashable],
    margin: float,
    *,
    draws: int = 2000,
    seed: int = 0,
) -> NonInferiority:
    """Return the paired test of "the new one is no worse than the old one".

    It is shown where the 95% interval of the mean difference lies above -margin, a one-sided
    test at 2.5%. The margin is chosen before the pictures are looked at. A difference that is
    not significant shows nothing of the kind.

    Args:
        new: One number per picture, larger is better, (P,).
        old: The same pictures (prompt and seed) under the other condition, (P,).
        clusters: One hashable id per picture.
        margin: Above 0, on the scale of the numbers.
        draws: Bootstrap samples over clusters.
        seed: Seed of the draws.

    Raises:
        ValueError: The margin is not above 0, or as `paired_difference`.

    Sources:
        Piaggio et al. 2012, JAMA 308 (CONSORT, non-inferiority and intervals).
    """
    if not margin > 0:
        raise ValueError(f"margin {margin}: expected a number above 0, chosen beforehand")
    found = paired_difference(new, old, clusters, draws, seed)
    return NonInferiority(difference=found, margin=margin, enough=found.count >= ENOUGH)
