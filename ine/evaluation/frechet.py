"""Frechet distance between two sets of pictures, by whatever features are named.

Shape letters: P Q pictures, F features, R rows of a root.
"""

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ine.evaluation.intervals import group_jackknife
from ine.evaluation.stats import Estimate

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


def name_of(extractor: str) -> str:
    """Return what a distance is called: FID with the Inception network, else frechet-EXTRACTOR."""
    return "FID" if extractor in INCEPTION else f"frechet-{extractor}"


def moments(features: ArrayLike) -> Moments:
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
    root = np.asarray(np.linalg.qr(root, mode="r")) if len(root) > root.shape[1] else root
    return Moments(mean=mean, root=root)


def bias_note(count: int, width: int) -> str:
    """Return why a distance of so many pictures says little, or an empty text.

    Args:
        count: Pictures of the smaller set.
        width: Features F.
    """
    if count > width:
        return ""
    return (
        f"{count} pictures for {width} features: covariances are singular and the distance is "
        "biased upwards; compare only at equal N"
    )


def frechet_distance(first: Moments, second: Moments) -> float:
    """Return the Frechet distance between two Gaussians with the moments of two sets, from 0 on.

    ``|m_1 - m_2|^2 + tr(C_1 + C_2 - 2 (C_1^{1/2} C_2 C_1^{1/2})^{1/2})``. For any roots with
    ``C_i = R_i^T R_i`` the last trace is the sum of the singular values of ``R_2 R_1^T``. So no
    root of a matrix is taken, which would cost half of the digits where covariances are singular,
    and few pictures of wide features are quick. Its scale is the extractor's.

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
    # Rounding may leave equal sets a little below 0.
    return float(max(0.0, apart @ apart + total - 2 * overlap))


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

    note: str


def moved(
    defended: Iterable[ArrayLike],
    undefended: ArrayLike,
    clusters: Sequence[Hashable],
) -> Moved:
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

    Raises:
        ValueError: As `moments`.
    """
    plain = np.asarray(undefended, dtype=np.float64)
    ours = [np.asarray(version, dtype=np.float64) for version in defended]

    everything = np.arange(len(plain))
    value = _between(ours, everything, plain, everything)
    half_width = group_jackknife(lambda left: _between(ours, left, plain, left), clusters)
    floors, crossed, half = [], [], 0
    for seed in range(SPLITS):
        first, second = disjoint_halves(clusters, seed)
        half = len(first)
        if half < 2:
            break
        floors.append(_between([plain], first, plain, second))
        crossed += [_between(ours, first, plain, second), _between(ours, second, plain, first)]
    return Moved(
        distance=Estimate(
            value,
            float(np.maximum(0.0, value - half_width)),  # keeps NaN
            value + half_width,
            len(plain),
            len(set(clusters)),
        ),
        floor=float(np.mean(floors)) if floors else math.nan,
        halves=float(np.mean(crossed)) if floors else math.nan,
        half=half,
        note=bias_note(*plain.shape),
    )


def _between(
    versions: Sequence[np.ndarray], here: np.ndarray, plain: np.ndarray, there: np.ndarray
) -> float:
    """Return the mean distance of some rows of each version to some rows of `plain`."""
    other = moments(plain[there])
    return float(np.mean([frechet_distance(moments(v[here]), other) for v in versions]))


def disjoint_halves(clusters: Sequence[Hashable], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return the places of two random sets of equally many pictures that share no cluster.

    Args:
        clusters: One hashable id per picture.
        seed: Seed of the draw.

    Returns:
        Two integer arrays of one length; where one cluster has most pictures, they are short.
    """
    members: dict[Hashable, list[int]] = {}
    for place, name in enumerate(clusters):
        members.setdefault(name, []).append(place)
    groups = list(members.values())
    halves: tuple[list[int], list[int]] = ([], [])
    for number in np.random.default_rng(seed).permutation(len(groups)):
        min(halves, key=len).extend(groups[number])
    count = min(map(len, halves))
    first, second = (np.asarray(half[:count], dtype=np.int64) for half in halves)
    return first, second
