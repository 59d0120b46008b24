"""Defence success at matched preservation: read from a sweep of a defence's strength.

A defence that changes every picture beyond recognition succeeds always, so success is compared
where two defences preserve equally much. Shape letters: S strengths, P harmful pictures,
Q benign pictures, D draws.
"""

import math
from dataclasses import dataclass

import numpy as np

from ine.evaluation.metrics import Estimate, wilson


@dataclass(frozen=True, kw_only=True, eq=False)
class Sweep:
    """One defence over its strengths, always on the same prompts and seeds.

    Give strength 0 (no defence: all preserved) as a point where there is one; it joins the sweep
    to the undefended model.
    """

    strengths: tuple[float, ...]
    """Rising, at least two."""

    safe: np.ndarray
    """Whether a harmful picture came out safe, 0 or 1, (S, P)."""

    kept: np.ndarray
    """Preservation of benign pictures, larger is better, (S, Q)."""

    safe_clusters: tuple
    """One hashable id per harmful picture, usually its prompt."""

    kept_clusters: tuple

    def __post_init__(self):
        rising = all(a < b for a, b in zip(self.strengths, self.strengths[1:], strict=False))
        if len(self.strengths) < 2 or not rising:
            raise ValueError(f"strengths {self.strengths}: expected at least two, rising")
        for name in ("safe", "kept"):
            values = np.asarray(getattr(self, name), dtype=np.float64)
            clusters = tuple(getattr(self, f"{name}_clusters"))
            if values.shape != (len(self.strengths), len(clusters)) or not values.size:
                raise ValueError(
                    f"{name} {values.shape} for {len(self.strengths)} strengths and "
                    f"{len(clusters)} clusters: expected one row per strength, one column per id"
                )
            if not np.isfinite(values).all():
                raise ValueError(f"{name} holds values that are not finite; leave those out")
            object.__setattr__(self, name, values)
            object.__setattr__(self, f"{name}_clusters", clusters)


@dataclass(frozen=True, kw_only=True)
class Matched:
    """Defence success where a given preservation is reached."""

    level: float
    success: Estimate
    """NaN where the level is outside of the sweep."""

    strength: float
    """The strength at which the sweep has this level; NaN outside."""

    inside: float
    """Share of bootstrap draws whose sweep holds the level; where it is below 1, the interval
    leans on the ends of the sweep."""

    note: str
    """"" or what is the matter, in words."""


def success_at(sweep, level, *, draws=2000, seed=0):
    """Return the defence success rate where the sweep preserves `level`.

    Mean preservation is made non-increasing in strength and mean success non-decreasing, each
    by isotonic regression; between strengths both are taken as linear. The strongest defence
    that still preserves the level is read. Nothing is extrapolated: outside of the sweep the
    success is NaN, and `note` says what is known.

    Args:
        sweep: A `Sweep`.
        level: Preservation, on the scale of `sweep.kept`.
        draws: Bootstrap samples. Harmful and benign clusters are drawn separately, and each draw
            is used at every strength.
        seed: Seed of the draws; equal arguments give equal bits.

    Returns:
        A `Matched` with the 95% percentile interval.
    """
    found = _Curve(sweep, None)
    where, value, strength = found.read(level)
    picks = _Picks(sweep, draws, seed)
    inside, values, _ = _Curve(sweep, picks).read(level)
    success = _estimate(math.nan, math.nan, math.nan, sweep)
    if where[0] == 0:
        low, high = np.percentile(values, [2.5, 97.5])
        success = _estimate(value[0], *_unseen(value[0], low, high, sweep), sweep)
    return Matched(
        level=level,
        success=success,
        strength=float(strength[0]) if where[0] == 0 else math.nan,
        inside=float((inside == 0).mean()),
        note=_note(where[0], level, found),
    )


def difference_at(first, second, level, *, draws=2000, seed=0):
    """Return success of the first defence minus that of the second, at equal preservation.

    Both are drawn with the same clusters, so what the prompts share cancels.

    Args:
        first: A `Sweep`.
        second: A `Sweep` of another defence over the same clusters.
        level: Preservation at which both are read; NaN comes out where either lacks it.
        draws: Bootstrap samples.
        seed: Seed of the draws.

    Raises:
        ValueError: The clusters of the two differ.
    """
    for name in ("safe_clusters", "kept_clusters"):
        if getattr(first, name) != getattr(second, name):
            raise ValueError(f"{name} of the two sweeps differ; compare the same prompts and seeds")
    picks = _Picks(first, draws, seed)
    points = [_Curve(s, None).read(level) for s in (first, second)]
    if any(where[0] for where, _, _ in points):
        return _estimate(math.nan, math.nan, math.nan, first)
    one, two = (_Curve(s, picks).read(level)[1] for s in (first, second))
    low, high = np.percentile(one - two, [2.5, 97.5])
    return _estimate(points[0][1][0] - points[1][1][0], low, high, first)


def _estimate(value, low, high, sweep):
    clusters = len(set(sweep.safe_clusters))
    return Estimate(float(value), float(low), float(high), len(sweep.safe_clusters), clusters)


def _unseen(value, low, high, sweep):
    """Return the bounds, widened where no draw differs, as `cluster_bootstrap` does."""
    if high - low >= 1e-9:
        return low, high
    unseen = wilson(0, len(set(sweep.safe_clusters))).high
    return value * (1 - unseen), value + unseen * (1 - value)


def _note(where, level, curve):
    weakest, strongest = curve.kept[0, 0], curve.kept[0, -1]
    if where > 0:
        return f"not reached: even the weakest strength preserves {weakest:.3f}, below {level:g}"
    if where < 0:
        return (
            f"outside of the sweep: the strongest still preserves {strongest:.3f}; success is at "
            f"least {curve.safe[0, -1]:.3f} there, sweep further"
        )
    return ""


class _Picks:
    """How often each cluster is drawn, the same for all strengths and for paired sweeps."""

    def __init__(self, sweep, draws, seed):
        rng = np.random.default_rng(seed)
        self.safe, self.kept = (
            rng.multinomial(count, np.full(count, 1 / count), size=draws)
            for count in (len(set(sweep.safe_clusters)), len(set(sweep.kept_clusters)))
        )


class _Curve:
    """Monotone means of every draw, (D, S); one row without picks."""

    def __init__(self, sweep, picks):
        self.strengths = np.asarray(sweep.strengths, dtype=np.float64)
        self.safe, self.kept = (
            _means(values, clusters, None if picks is None else times)
            for values, clusters, times in (
                (sweep.safe, sweep.safe_clusters, picks and picks.safe),
                (sweep.kept, sweep.kept_clusters, picks and picks.kept),
            )
        )
        self.safe, self.kept = isotonic(self.safe), -isotonic(-self.kept)

    def read(self, level):
        """Return (1 above, 0 inside, -1 below the sweep), success and strength, (D,) each."""
        above, below = self.kept[:, 0] < level, self.kept[:, -1] > level
        # The last strength that preserves the level; the next one, if any, does not.
        last = np.maximum((self.kept >= level).sum(axis=1) - 1, 0)
        after = np.minimum(last + 1, len(self.strengths) - 1)
        rows = np.arange(len(last))
        drop = self.kept[rows, last] - self.kept[rows, after]
        part = np.where(drop > 0, (self.kept[rows, last] - level) / np.where(drop > 0, drop, 1), 0)
        part = part.clip(0, 1)
        success = self.safe[rows, last] * (1 - part) + self.safe[rows, after] * part
        strength = self.strengths[last] * (1 - part) + self.strengths[after] * part
        return above.astype(int) - below.astype(int), success, strength


def _means(values, clusters, times):
    number = {name: i for i, name in enumerate(dict.fromkeys(clusters))}
    index = np.asarray([number[name] for name in clusters])
    sums = np.stack([np.bincount(index, weights=row, minlength=len(number)) for row in values])
    sizes = np.bincount(index)
    times = np.ones((1, len(number))) if times is None else times
    return times @ sums.T / (times @ sizes)[:, None]


def isotonic(values):
    """Return the non-decreasing rows nearest to the given ones in least squares, (D, S).

    By the min-max formula ``g_i = max_{j <= i} min_{k >= i} mean(v_j..v_k)``.

    Sources:
        Robertson, Wright and Dykstra 1988, theorem 1.4.4.
    """
    values = np.asarray(values, dtype=np.float64)
    count = values.shape[1]
    sums = np.concatenate([np.zeros((len(values), 1)), values.cumsum(axis=1)], axis=1)
    out = np.empty_like(values)
    for i in range(count):
        least = [
            np.min([(sums[:, k + 1] - sums[:, j]) / (k + 1 - j) for k in range(i, count)], axis=0)
            for j in range(i + 1)
        ]
        out[:, i] = np.max(least, axis=0)
    return out
