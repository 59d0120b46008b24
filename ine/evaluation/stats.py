"""Figures with intervals: shares, means over prompts, similarity with its floor.

Pictures of one prompt are not independent, so intervals count prompts ("clusters"), not
pictures. Shape letters: P pictures, F features.
"""

import math
import operator
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ine.evaluation.intervals import (
    Z,
    accelerated,
    numbered,
    spread_of,
    tango_bounds,
    wilson_bounds,
    worth,
)


@dataclass(frozen=True)
class Rate:
    """A share of independent trials with its 95% Wilson score interval."""

    hits: int
    trials: int
    low: float
    high: float

    @property
    def share(self) -> float:
        """Hits per trial, in [0, 1]."""
        return self.hits / self.trials

    @property
    def value(self) -> float:
        """The same, under the name that an `Estimate` has for its figure."""
        return self.share

    @property
    def count(self) -> int:
        """The trials, likewise."""
        return self.trials

    @property
    def support(self) -> str:
        """What the figure rests on, in words."""
        return f"{self.hits} of {self.trials}"


@dataclass(frozen=True)
class Estimate:
    """A mean over pictures with a 95% interval that counts clusters."""

    value: float
    low: float
    """NaN where the data say nothing about the spread; see `cluster_bootstrap`."""

    high: float
    count: int
    """Pictures."""

    clusters: int
    """Independent groups of pictures, usually prompts (phrase x object)."""

    @property
    def support(self) -> str:
        """What the figure rests on, in words."""
        return f"N = {self.count} in {self.clusters} clusters"


def wilson(hits: int, trials: int, z: float = Z) -> Rate:
    """Return the share of hits with its Wilson score interval.

    The plain normal interval is wrong near 0 and 1, where defences live.

    Args:
        hits: Trials in which it happened, 0 to `trials`.
        trials: Independent trials, at least 1.
        z: Half width in standard normal units; 1.96 gives 95%.

    Example:
        >>> rate = wilson(8, 10)
        >>> [round(x, 3) for x in (rate.share, rate.low, rate.high)]
        [0.8, 0.49, 0.943]

    Raises:
        ValueError: No trials, or hits outside 0..trials.

    Sources:
        Wilson 1927, J. Am. Stat. Assoc. 22, p. 209.
    """
    hits, trials = operator.index(hits), operator.index(trials)
    if trials < 1:
        raise ValueError(f"wilson: {trials} trials; a share needs at least one")
    if not 0 <= hits <= trials:
        raise ValueError(f"wilson: {hits} hits in {trials} trials; expected 0 to {trials}")
    return Rate(hits, trials, *wilson_bounds(hits / trials, trials, z))


def cluster_bootstrap(
    values: ArrayLike, clusters: Sequence[Hashable], draws: int = 2000, seed: int = 0
) -> Estimate:
    """Return the mean of values with a 95% interval that counts whole clusters.

    For 0/1 values no bootstrap is drawn: it cannot leave what was seen, so near 0 and 1, where
    defences live, its interval covers far too seldom. Their interval is Wilson's, for as many
    independent pictures as the clusters show the data to be worth (`intervals.worth`): the plain
    Wilson interval where every picture is its own cluster, that of C trials where all values
    are equal.

    Other values get the BCa interval over clusters drawn with replacement, its levels widened for
    few of them (`intervals.accelerated`). With fewer than about 15 clusters it is still somewhat
    too narrow; say so beside the figure. One cluster gives NaN bounds, several that agree exactly
    zero width: nothing bounds what was not seen.

    Args:
        values: One number per picture, (P,); unscored pictures must be left out.
        clusters: One hashable id per picture, such as (phrase, object), P of them.
        draws: Bootstrap samples.
        seed: Seed of the draws; equal arguments give equal bits.

    Raises:
        ValueError: No values, lengths that differ, or values that are not finite.

    Sources:
        Davison and Hinkley 1997, section 3.8 (cluster resampling); see `ine.evaluation.intervals`.
    """
    values, index = _checked(values, clusters), numbered(clusters)
    if not _binary(values):
        return _bootstrap(values, index, draws, seed)
    share = float(values.mean())
    bounds = wilson_bounds(share, *worth(share * (1 - share), *spread_of(values, index)))
    return Estimate(share, *bounds, len(values), int(index.max()) + 1)


def paired_difference(
    a: ArrayLike, b: ArrayLike, clusters: Sequence[Hashable], draws: int = 2000, seed: int = 0
) -> Estimate:
    """Return the mean of a - b over paired pictures, with a 95% interval as `cluster_bootstrap`.

    Where both are 0/1 the interval is Tango's score interval for paired shares, for as many
    independent pairs as the data are worth: two defences that agree on 20 prompts differ by
    0 +- .16.

    Args:
        a: One number per picture, (P,).
        b: The same pictures (prompt and seed) under the other condition, (P,).
        clusters: One hashable id per picture.
        draws: Bootstrap samples.
        seed: Seed of the draws.
    """
    a, b = _checked(a, clusters), _checked(b, clusters)
    apart, index = a - b, numbered(clusters)
    if not (_binary(a) and _binary(b)):
        return _bootstrap(apart, index, draws, seed)
    better, worse = float((apart > 0).mean()), float((apart < 0).mean())
    variance = better + worse - (better - worse) ** 2
    pairs, z = worth(variance, *spread_of(apart, index))
    bounds = tango_bounds(better, worse, pairs, z)
    return Estimate(better - worse, *bounds, len(apart), int(index.max()) + 1)


def _checked(values: ArrayLike, clusters: Sequence[Hashable]) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or not len(values) or len(values) != len(clusters):
        raise ValueError(
            f"values {values.shape} and {len(clusters)} clusters: expected one cluster id for "
            "each of at least one value"
        )
    if not np.isfinite(values).all():
        lost = int((~np.isfinite(values)).sum())
        raise ValueError(f"{lost} of {len(values)} values are not finite; leave unscored ones out")
    return values


def _binary(values: np.ndarray) -> bool:
    return bool(np.isin(values, (0.0, 1.0)).all())


def _bootstrap(values: np.ndarray, index: np.ndarray, draws: int, seed: int) -> Estimate:
    deviations, sizes = spread_of(values, index)
    value = float(values.mean())
    picks = np.random.default_rng(seed).integers(len(sizes), size=(draws, len(sizes)))
    means = value + deviations[picks].sum(axis=1) / sizes[picks].sum(axis=1)
    low = high = math.nan
    if len(sizes) > 1:
        low, high = accelerated(means, value, deviations)
    return Estimate(value, low, high, len(values), len(sizes))


WILSON, WILSON_OVER_PROMPTS = "Wilson", "Wilson over prompts"
BOOTSTRAP, JACKKNIFE = "bootstrap over prompts", "jackknife over prompts"
"""How an interval was computed, as results name it."""


def share_of(values: ArrayLike, clusters: Sequence[Hashable]) -> tuple[Estimate, str]:
    """Return (`Estimate`, how its interval was computed) of 0/1 values."""
    estimate = cluster_bootstrap(values, clusters)
    return estimate, interval_of_share(estimate)


def interval_of_share(estimate: Estimate) -> str:
    """Return how the interval of a share was computed: from pictures, or from prompts."""
    return WILSON if estimate.clusters == estimate.count else WILSON_OVER_PROMPTS


def decimal(value: float) -> str:
    """Return a figure as printed: .41, -.05, 1.00, 23.4, and "?" for NaN."""
    if math.isnan(value):
        return "?"
    text = f"{abs(value):.2f}" if abs(value) < 9.995 else f"{abs(value):.1f}"
    sign = "-" if value < 0 and float(text) else ""
    return sign + (text[1:] if text.startswith("0.") else text)
