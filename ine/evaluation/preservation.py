"""Preservation under a named measure, with the floor and the ceiling that give it a meaning.

Always on benign prompts, and against the same model without the defence, same prompts and seeds.
Shape letters: P pictures, F features.
"""

from dataclasses import dataclass

import numpy as np

from ine.evaluation.metrics import Estimate, cluster_bootstrap, feature_floor


@dataclass(frozen=True, kw_only=True)
class Preservation:
    """How alike defended pictures are to undefended ones."""

    measure: str
    """"judge-cosine", "ssim", "lpips-alex@64", ...; larger is more alike, so distances enter as
    one minus the distance."""

    raw: Estimate
    """On the measure's own scale."""

    floor: float
    """What unrelated pictures have."""

    ceiling: float
    """What pictures have that nobody would tell apart: 1 for identical ones."""

    rescaled: Estimate
    """(raw - floor) / (ceiling - floor): unrelated pictures read 0, those at the ceiling 1."""


def preservation_of(measure, values, floor, clusters, ceiling=1.0, draws=2000, seed=0):
    """Return a `Preservation` from one similarity per picture.

    Args:
        measure: Its name.
        values: Similarity of each defended picture to its undefended one, (P,).
        floor: Mean similarity of unrelated pictures: `feature_floor`, or the mean over
            `unrelated_pairs`.
        clusters: One hashable id per picture, usually its prompt.
        ceiling: Above the floor; 1 where identical pictures are the measure of all things, else
            what, say, the same pictures on another machine or in another precision have.
        draws: Bootstrap samples.
        seed: Seed of the draws.

    Raises:
        ValueError: The ceiling is not above the floor: a measure that tells nothing apart.
    """
    if not ceiling > floor:
        raise ValueError(f"{measure}: ceiling {ceiling} is not above the floor {floor}")
    raw = cluster_bootstrap(values, clusters, draws, seed)
    width = ceiling - floor
    rescaled = Estimate(
        *((x - floor) / width for x in (raw.value, raw.low, raw.high)), raw.count, raw.clusters
    )
    return Preservation(measure=measure, raw=raw, floor=floor, ceiling=ceiling, rescaled=rescaled)


def cosine_preservation(measure, defended, undefended, groups, clusters, ceiling=1.0):
    """Return the `Preservation` by the cosine of unit features.

    Args:
        measure: Its name, such as "judge-cosine".
        defended: Unit features, (P, F).
        undefended: Unit features of the same prompts and seeds without the defence, (P, F).
        groups: One hashable id per picture; pictures that share one are related (one subject),
            and the floor is the mean cosine of undefended pictures that do not.
        clusters: One hashable id per picture, for the interval.
        ceiling: As `preservation_of`.

    Raises:
        ValueError: Shapes differ, or as `feature_floor`.
    """
    defended, undefended = np.asarray(defended), np.asarray(undefended)
    if defended.shape != undefended.shape:
        raise ValueError(f"features {defended.shape} and {undefended.shape}: expected equal ones")
    floor = feature_floor(undefended, groups)
    feature_floor(defended)  # refuses features that are not unit
    cosines = (defended.astype(np.float64) * undefended).sum(axis=1)
    return preservation_of(measure, cosines, floor, clusters, ceiling)


def unrelated_pairs(groups, count=200, seed=0):
    """Return pairs of pictures of different groups, for the floor of a measure that takes two.

    Args:
        groups: One hashable id per picture, at least two different ones.
        count: Pairs, drawn with replacement.
        seed: Seed of the draws.

    Returns:
        Two integer arrays, (count,).

    Raises:
        ValueError: All pictures are of one group.
    """
    number = {name: i for i, name in enumerate(dict.fromkeys(groups))}
    if len(number) < 2:
        raise ValueError(f"{len(groups)} pictures of {len(number)} group: a floor needs two groups")
    index = np.asarray([number[name] for name in groups])
    rng = np.random.default_rng(seed)
    first, second = np.empty((2, 0), dtype=np.int64)
    while len(first) < count:
        one, two = rng.integers(len(index), size=(2, 4 * count))
        apart = index[one] != index[two]
        first, second = np.append(first, one[apart]), np.append(second, two[apart])
    return first[:count], second[:count]
