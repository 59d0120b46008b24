"""Frechet distance between two sets of pictures, by whatever features are named.

Shape letters: P Q pictures, F features, R rows of a root.
"""

import math
from dataclasses import dataclass

import numpy as np

from ine.evaluation.metrics import Estimate, group_jackknife

INCEPTION = ("inception-v3", "inception-v3-fid")
"""Extractors whose distance may be called FID: the network of Heusel et al. 2017."""

SPLITS = 4
"""How often pictures are halved at random; distances between halves are means over these."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Moments:
    """What is kept of a set of pictures."""

    mean: np.ndarray
    """(F,) float64."""

    root: np.ndarray
    """(R, F) with ``root^T root`` the covariance, divided by P - 1; R is the smaller of P and F."""

    count: int
    """Pictures P."""


@dataclass(frozen=True, kw_only=True)
class FrechetDistance:
    """A distance that carries what it was measured with."""

    value: float
    """0 for equal moments, without an upper end; its scale is the extractor's."""

    extractor: str
    counts: tuple[int, int]
    """Pictures of the two sets."""

    width: int
    """Features F."""

    @property
    def name(self):
        """What to call it, see `name_of`."""
        return name_of(self.extractor)

    @property
    def note(self):
        """Why the figure says little, or an empty text."""
        if min(self.counts) <= self.width:
            return (
                f"{min(self.counts)} pictures for {self.width} features: covariances are singular "
                "and the distance is biased upwards; compare only at equal N"
            )
        return ""


def name_of(extractor):
    """Return what a distance is called: FID with the Inception network, else frechet-EXTRACTOR."""
    return "FID" if extractor in INCEPTION else f"frechet-{extractor}"


def moments(features):
    """Return mean and covariance of features, (P, F); at least two pictures.

    Raises:
        ValueError: Fewer, another shape, or values that are not finite.
    """
    features = np.asarray(features, dtype=np.float64)
    if features.ndim != 2 or len(features) < 2 or not np.isfinite(features).all():
        raise ValueError(
            f"features {features.shape}: expected finite (P, F) of at least two pictures"
        )
    mean = features.mean(axis=0)
    root = (features - mean) / math.sqrt(len(features) - 1)
    # What turns the rows changes neither the covariance nor the distance.
    root = np.linalg.qr(root, mode="r") if len(root) > root.shape[1] else root
    return Moments(mean=mean, root=root, count=len(features))


def frechet_distance(first, second, extractor):
    """Return the Frechet distance between two Gaussians with the moments of two sets.

    ``|m_1 - m_2|^2 + tr(C_1 + C_2 - 2 (C_1^{1/2} C_2 C_1^{1/2})^{1/2})``. For any roots with
    ``C_i = R_i^T R_i`` the last trace is the sum of the singular values of ``R_2 R_1^T``. So no
    root of a matrix is taken, which would cost half of the digits where covariances are singular,
    and few pictures of wide features are quick.

    Args:
        first: `Moments`.
        second: `Moments` by the same extractor.
        extractor: Its name, which the distance is called by.

    Raises:
        ValueError: The widths differ.

    Sources:
        Dowson and Landau 1982, J. Multivariate Analysis 12; Heusel et al. 2017, equation 6.
    """
    if first.mean.shape != second.mean.shape:
        raise ValueError(f"features of width {len(first.mean)} and {len(second.mean)}: equal ones")
    overlap = np.linalg.norm(second.root @ first.root.T, "nuc")
    apart = first.mean - second.mean
    total = (first.root**2).sum() + (second.root**2).sum()
    return FrechetDistance(
        # Rounding may leave equal sets a little below 0.
        value=float(max(0.0, apart @ apart + total - 2 * overlap)),
        extractor=extractor,
        counts=(first.count, second.count),
        width=len(first.mean),
    )


@dataclass(frozen=True, kw_only=True)
class Moved:
    """How far a defence moves the pictures of a model, with what makes it readable."""

    distance: Estimate
    """Of the defended pictures to the undefended ones of the same prompts and seeds."""

    floor: float
    """Between two halves of the undefended pictures that share no prompt; NaN where there are no
    such halves."""

    halves: float
    """Between a half of the defended and the other half of the undefended pictures. It compares
    with `floor`: as many pictures, and no prompt in common either."""

    half: int
    """Pictures of a half."""

    width: int
    note: str


def moved(defended, undefended, clusters, extractor):
    """Return how far pictures `Moved`.

    Sets of the same prompts and seeds have their chance in common, so the distance of few
    pictures is far below that of two independent sets, and 0 where nothing changes. All
    distances are biased upwards, the more so the fewer pictures; hence the halves. The interval
    is by jackknife and says how the distance *at this number of pictures* would vary with other
    prompts. A bootstrap would not: it draws pictures twice, which is fewer pictures.

    Args:
        defended: One or several versions of the defended pictures, each (P, F); the distance is
            the mean over them. Of negatives that are pooled each picture comes from one, so that
            all distances are of P pictures.
        undefended: (P, F), in the same order.
        clusters: One hashable id per picture, usually its prompt.
        extractor: Its name.

    Raises:
        ValueError: As `moments`.
    """
    undefended = np.asarray(undefended, dtype=np.float64)
    defended = [np.asarray(version, dtype=np.float64) for version in defended]

    def between(versions, ours, theirs):
        other = moments(undefended[theirs])
        found = [frechet_distance(moments(v[ours]), other, extractor) for v in versions]
        return float(np.mean([one.value for one in found]))

    everything = np.arange(len(undefended))
    value = between(defended, everything, everything)
    half_width = group_jackknife(lambda left: between(defended, left, left), clusters)
    floors, crossed, half = [], [], 0
    for seed in range(SPLITS):
        first, second = disjoint_halves(clusters, seed)
        half = len(first)
        if half < 2:
            break
        floors.append(between([undefended], first, second))
        crossed += [between(defended, first, second), between(defended, second, first)]
    plain = moments(undefended)
    return Moved(
        distance=Estimate(
            value,
            float(np.maximum(0.0, value - half_width)),  # keeps NaN
            value + half_width,
            len(undefended),
            len(set(clusters)),
        ),
        floor=float(np.mean(floors)) if floors else math.nan,
        halves=float(np.mean(crossed)) if floors else math.nan,
        half=half,
        width=undefended.shape[1],
        note=frechet_distance(plain, plain, extractor).note,
    )


def disjoint_halves(clusters, seed=0):
    """Return the places of two random sets of equally many pictures that share no cluster.

    Args:
        clusters: One hashable id per picture.
        seed: Seed of the draw.

    Returns:
        Two integer arrays of one length; where one cluster has most pictures, they are short.
    """
    members = {}
    for place, name in enumerate(clusters):
        members.setdefault(name, []).append(place)
    groups, halves = list(members.values()), ([], [])
    for number in np.random.default_rng(seed).permutation(len(groups)):
        min(halves, key=len).extend(groups[number])
    count = min(map(len, halves))
    return tuple(np.asarray(half[:count], dtype=np.int64) for half in halves)
