"""95% intervals of shares, of their differences and of means, from clusters of pictures.

Pictures of one prompt are alike, so what counts is how much the clusters (prompts) differ. Every
statistic here is a mean over pictures, and its variance is estimated from the clusters:

    d_c = s_c - v n_c,    var = C / (C - 1) sum_c d_c^2 / P^2

with s_c the sum and n_c the number of pictures of cluster c, C clusters, P pictures and v the mean.
Which interval covers how often is measured by `tests/benchmarks/coverage.py`.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from statistics import NormalDist

import numpy as np

NORMAL = NormalDist()

Z = 1.96
"""Half the width of a 95% interval in standard normal units."""


def student(freedom: int, z: float = 1.959964) -> float:
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


def wilson_bounds(share: float, trials: float, z: float = Z) -> tuple[float, float]:
    """Return the Wilson score interval of a share; `trials` need not be a whole number.

    Args:
        share: In [0, 1].
        trials: Independent trials, or as many as the data are worth; above 0.
        z: Half the width in standard normal units.

    Sources:
        Wilson 1927, J. Am. Stat. Assoc. 22, p. 209.
    """
    scale = 1 + z * z / trials
    centre = (share + z * z / (2 * trials)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / trials + (z / (2 * trials)) ** 2)
    # At the ends the interval touches 0 or 1 exactly; rounding must not push it past.
    low = 0.0 if share == 0 else centre - half
    high = 1.0 if share == 1 else centre + half
    return low, high


def tango_bounds(better: float, worse: float, pairs: float, z: float = Z) -> tuple[float, float]:
    """Return the score interval of `better - worse`, a difference of two paired shares.

    It is Wilson's interval for pairs: where no pair differs it is not of zero width.

    Args:
        better: Share of pairs in which it happened under the first condition alone.
        worse: Share in which it happened under the second alone.
        pairs: Independent pairs, or as many as the data are worth; above 0.
        z: Half the width in standard normal units.

    Example:
        >>> [round(x, 3) for x in tango_bounds(10 / 50, 1 / 50, 50)]
        [0.061, 0.315]

    Sources:
        Tango 1998, Statistics in Medicine 17, p. 891.
    """
    found = better - worse

    def score(delta: float) -> float:
        """Return how many standard errors the difference lies above `delta`."""
        b = (2 - found) * delta - better - worse
        root = math.sqrt(max(0.0, b * b + 8 * worse * delta * (1 - delta)))
        spread = (root - b) / 2 + delta * (1 - delta)
        return (found - delta) * math.sqrt(pairs / max(spread, 1e-15))

    def where(above: float, below: float, level: float) -> float:
        """Return where the score, which falls from `above` to `below`, is `level`."""
        for _ in range(60):
            middle = (above + below) / 2
            above, below = (middle, below) if score(middle) > level else (above, middle)
        return (above + below) / 2

    return where(-1.0, found, z), where(found, 1.0, -z)


def numbered(clusters: Sequence[Hashable]) -> np.ndarray:
    """Return the number of each picture's cluster, in order of first appearance, (P,)."""
    number = {name: i for i, name in enumerate(dict.fromkeys(clusters))}
    return np.array([number[name] for name in clusters], dtype=np.int64)


def spread_of(values: np.ndarray, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (what each cluster adds to the deviation of the mean (C,), their sizes (C,)).

    Args:
        values: One number per picture, (P,).
        index: Number of each picture's cluster, 0 to C - 1, (P,).
    """
    sizes, sums = np.bincount(index), np.bincount(index, weights=values)
    return sums - values.mean() * sizes, sizes


def worth(variance: float, deviations: np.ndarray, sizes: np.ndarray) -> tuple[float, float]:
    """Return (how many independent pictures the data are worth, z of their 95% interval).

    The worth is what independent pictures would need for the variance that the clusters show, at
    most P, at least Kish's number of clusters (sum n)^2 / sum n^2. Where nothing varies the data
    cannot say how much alike pictures of a cluster are, and only clusters are counted. Where every
    picture is its own cluster this is P, and the interval is the usual one; else z is
    Student's for C - 1 degrees of freedom, since the variance is an estimate.

    Args:
        variance: Of one picture; p (1 - p) for a share p.
        deviations: d_c from `spread_of`, (C,).
        sizes: Pictures of each cluster, (C,).

    Sources:
        Korn and Graubard 1998, Survey Methodology 24 (effective sample size); Franco et al. 2019,
        J. Survey Statistics and Methodology 7 (with Wilson's interval, the best of those compared).
    """
    count, clusters = float(sizes.sum()), len(sizes)
    fewest = count**2 / float((sizes.astype(float) ** 2).sum())
    if clusters == count:
        return count, Z
    if clusters == 1 or variance <= 0:
        return fewest, Z
    estimated = clusters / (clusters - 1) * float((deviations**2).sum()) / count**2
    found = min(count, variance / estimated) if estimated > 0 else count
    return max(fewest, found), student(clusters - 1)


def accelerated(means: np.ndarray, value: float, deviations: np.ndarray) -> tuple[float, float]:
    """Return the BCa interval of a mean from its bootstrap draws, levels widened for few clusters.

    The percentile interval is too narrow by Student's factor and misplaced where the data are
    skewed, as likeness near 1 is. BCa corrects the place; the normal quantile of its levels is
    replaced by Student's times sqrt(C / (C - 1)), which corrects the width.

    Args:
        means: Means of whole clusters drawn with replacement, (draws,).
        value: The mean itself.
        deviations: d_c from `spread_of`, (C,).

    Sources:
        Efron 1987, J. Am. Stat. Assoc. 82, sections 3 and 7; Hesterberg 2015, The American
        Statistician 69, section 3.2 (the widened levels).
    """
    clusters, squares = len(deviations), float((deviations**2).sum())
    if clusters < 2 or squares == 0:
        return value, value
    tied = np.isclose(means, value, rtol=0, atol=1e-12)
    below = float(((means < value) & ~tied).mean() + tied.mean() / 2)
    least = 1 / (2 * len(means))
    bias = NORMAL.inv_cdf(min(max(below, least), 1 - least))
    skew = float((deviations**3).sum()) / (6 * squares**1.5)
    z = student(clusters - 1) * math.sqrt(clusters / (clusters - 1))
    levels = [_level(bias, skew, side) for side in (-z, z)]
    low, high = np.percentile(means, [100 * level for level in levels])
    return float(low), float(high)


def _level(bias: float, skew: float, z: float) -> float:
    """Return which share of the draws lies below a bound of the BCa interval."""
    tilt = 1 - skew * (bias + z)
    if tilt <= 0:  # the correction leaves what it is made for: the outermost draw is taken
        return float(z > 0)
    return NORMAL.cdf(bias + (bias + z) / tilt)


GROUPS, FEWEST = 20, 5
"""Of clusters that a jackknife leaves out together: how many groups, and with how few there is no
interval."""


def group_jackknife(
    statistic: Callable[[np.ndarray], float], clusters: Sequence[Hashable], seed: int = 0
) -> float:
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
    index = numbered(clusters)
    total = int(index.max(initial=-1)) + 1
    if total < FEWEST:
        return math.nan
    count = min(GROUPS, total)
    group = (np.random.default_rng(seed).permutation(total) % count)[index]
    found = np.array([statistic(np.flatnonzero(group != g)) for g in range(count)])
    spread = (count - 1) / count * ((found - found.mean()) ** 2).sum()
    return student(count - 1) * math.sqrt(spread)
