"""Figures with intervals: shares, means over prompts, similarity with its floor.

Pictures of one prompt are not independent, so intervals count prompts ("clusters"), not
pictures. Shape letters: P pictures, F features.
"""

import math
import operator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Rate:
    """A share of independent trials with its 95% Wilson score interval."""

    hits: int
    trials: int
    low: float
    high: float

    @property
    def share(self):
        """Hits per trial, in [0, 1]."""
        return self.hits / self.trials

    @property
    def support(self):
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
    def support(self):
        """What the figure rests on, in words."""
        return f"N = {self.count} in {self.clusters} clusters"


def wilson(hits, trials, z=1.96):
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
    share = hits / trials
    scale = 1 + z * z / trials
    centre = (share + z * z / (2 * trials)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / trials + (z / (2 * trials)) ** 2)
    # At the ends the interval touches 0 or 1 exactly; rounding must not push it past.
    low = 0.0 if hits == 0 else centre - half
    high = 1.0 if hits == trials else centre + half
    return Rate(hits, trials, low, high)


def cluster_bootstrap(values, clusters, draws=2000, seed=0):
    """Return the mean of values with a 95% percentile interval over whole clusters.

    Clusters are drawn with replacement and keep all their pictures. With fewer than about
    15 clusters such an interval is too narrow; say so beside the figure.

    Where every draw has the same mean the interval would have no width. For 0/1 values the
    unseen is then bounded as Wilson bounds it: with no exception seen in C clusters the share
    of exceptions is at most ``u = wilson(0, C).high``, so a value v lies within
    ``[v - u v, v + u (1 - v)]``; for v = 0 or 1 this is the Wilson interval of C trials. For
    other values nothing bounds the unseen: one cluster gives NaN bounds, several that agree
    exactly give zero width.

    Args:
        values: One number per picture, (P,); unscored pictures must be left out.
        clusters: One hashable id per picture, such as (phrase, object), P of them.
        draws: Bootstrap samples.
        seed: Seed of the draws; equal arguments give equal bits.

    Raises:
        ValueError: No values, lengths that differ, or values that are not finite.

    Sources:
        Davison and Hinkley 1997, sections 3.8 and 5.3 (cluster resampling, percentiles).
    """
    values = _checked(values, clusters)
    bounds = (0.0, 1.0) if _binary(values) else None
    return _bootstrap(values, clusters, bounds, draws, seed)


def paired_difference(a, b, clusters, draws=2000, seed=0):
    """Return the mean of a - b over paired pictures, as `cluster_bootstrap` does.

    Where both are 0/1 and no draw differs, the exceptions that were not seen are bounded as
    there, between -1 and 1: two defences that agree on 20 prompts differ by 0 +- .16.

    Args:
        a: One number per picture, (P,).
        b: The same pictures (prompt and seed) under the other condition, (P,).
        clusters: One hashable id per picture.
        draws: Bootstrap samples.
        seed: Seed of the draws.
    """
    a, b = _checked(a, clusters), _checked(b, clusters)
    bounds = (-1.0, 1.0) if _binary(a) and _binary(b) else None
    return _bootstrap(a - b, clusters, bounds, draws, seed)


def _checked(values, clusters):
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


def _binary(values):
    return bool(np.isin(values, (0.0, 1.0)).all())


def _bootstrap(values, clusters, bounds, draws, seed):
    number = {name: i for i, name in enumerate(dict.fromkeys(clusters))}
    index = [number[name] for name in clusters]
    sizes, sums = np.bincount(index), np.bincount(index, weights=values)
    picks = np.random.default_rng(seed).integers(len(sizes), size=(draws, len(sizes)))
    means = sums[picks].sum(axis=1) / sizes[picks].sum(axis=1)
    low, high = (float(x) for x in np.percentile(means, [2.5, 97.5]))
    value = float(values.mean())
    if high - low < 1e-9:
        if bounds is not None:
            unseen = wilson(0, len(sizes)).high
            low = value - unseen * (value - bounds[0])
            high = value + unseen * (bounds[1] - value)
        elif len(sizes) == 1:
            low = high = math.nan
    return Estimate(value, low, high, len(values), len(sizes))


GROUPS, FEWEST = 20, 5
"""Of clusters that a jackknife leaves out together: how many groups, and with how few there is no
interval."""


def group_jackknife(statistic, clusters, seed=0):
    """Return half the width of a 95% interval of a statistic, leaving out whole clusters.

    For statistics that are no mean over pictures. Clusters are dealt into G = 20 groups, or one
    each where there are fewer; with ``t_g`` the statistic without group g the interval is
    ``+- q s`` for ``s^2 = (G - 1) / G sum_g (t_g - mean t)^2`` and q of Student's distribution with
    G - 1 degrees of freedom. In expectation s^2 is not too small, whatever the statistic. A bias
    that depends on the number of pictures is no part of it.

    Args:
        statistic: Takes an integer array of places and returns a number.
        clusters: One hashable id per picture.
        seed: Of the dealing.

    Returns:
        A number; NaN with fewer than 5 clusters.

    Sources:
        Efron and Stein 1981, Annals of Statistics 9; Shao and Tu 1995, section 2.3 (groups).
    """
    number = {name: i for i, name in enumerate(dict.fromkeys(clusters))}
    count = min(GROUPS, len(number))
    if len(number) < FEWEST:
        return math.nan
    dealt = np.random.default_rng(seed).permutation(len(number)) % count
    group = dealt[[number[name] for name in clusters]]
    found = np.array([statistic(np.flatnonzero(group != g)) for g in range(count)])
    spread = (count - 1) / count * ((found - found.mean()) ** 2).sum()
    return student(count - 1) * math.sqrt(spread)


def student(freedom, z=1.959964):
    """Return the quantile of Student's distribution that the normal one has at z.

    To 1% from 4 degrees of freedom on.

    Example:
        >>> [round(student(n), 2) for n in (4, 9, 19)]
        [2.77, 2.26, 2.09]

    Sources:
        Abramowitz and Stegun 1964, 26.7.5.
    """
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return sum(term / freedom**k for k, term in enumerate(terms))


def rescaled_cosine(cosines, floor):
    """Return (cos - floor) / (1 - floor): unrelated pictures read 0, identical ones 1.

    Args:
        cosines: Cosines of picture features, any shape.
        floor: Mean cosine of unrelated pictures, below 1; see `feature_floor`.

    Raises:
        ValueError: The floor is not in [-1, 1): a feature that cannot tell pictures apart.
    """
    if not -1 <= floor < 1:
        raise ValueError(f"floor {floor}: expected a mean cosine in [-1, 1)")
    return (np.asarray(cosines, dtype=np.float64) - floor) / (1 - floor)


def feature_floor(features, groups=None):
    """Return the mean cosine over pairs of unrelated pictures.

    The sum over all pairs is ``|sum f|^2``; taking away the same sum within each group leaves
    the pairs of different groups, so no (P, P) matrix is needed.

    Args:
        features: L2-normalised features, (P, F).
        groups: One hashable id per picture; pictures that share one are related (the same
            prompt or object). By default every picture is unrelated to every other.

    Raises:
        ValueError: Features that are not normalised, or fewer than two groups.
    """
    features = np.asarray(features, dtype=np.float64)
    norms = np.linalg.norm(features, axis=1)
    if not np.allclose(norms, 1, atol=1e-3):
        raise ValueError(f"features of norm {norms.min():.3g} to {norms.max():.3g}: expected 1")
    groups = list(range(len(features))) if groups is None else list(groups)
    if len(groups) != len(features) or len(set(groups)) < 2:
        raise ValueError(
            f"{len(features)} pictures with {len(groups)} group ids, {len(set(groups))} "
            "different: expected one id per picture and at least two groups"
        )
    number = {name: i for i, name in enumerate(dict.fromkeys(groups))}
    index = [number[name] for name in groups]
    totals = np.zeros((len(number), features.shape[1]))
    np.add.at(totals, index, features)
    total = features.sum(axis=0)
    pairs = len(features) ** 2 - (np.bincount(index) ** 2).sum()
    return float((total @ total - (totals * totals).sum()) / pairs)


def psnr(a, b, peak=255.0):
    """Return the peak signal-to-noise ratio of each pair of pictures in dB; inf where equal.

    Args:
        a: Pictures, (H, W, 3) or (P, H, W, 3).
        b: Pictures of the same shape.
        peak: Largest value a pixel can have.

    Returns:
        A number for one pair, (P,) for P of them.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.shape != b.shape or a.ndim < 3:
        raise ValueError(f"pictures {a.shape} and {b.shape}: expected two equal (..., H, W, 3)")
    error = ((a - b) ** 2).mean(axis=(-3, -2, -1))
    with np.errstate(divide="ignore"):
        return 10 * np.log10(peak**2 / error)
