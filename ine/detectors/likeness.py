"""How alike pictures are by their features, where unrelated pictures read 0 and equal ones 1.

Shape letters: P pictures, F features.
"""

from collections.abc import Hashable, Iterable

import numpy as np
from numpy.typing import ArrayLike


def rescaled_cosine(cosines: ArrayLike, floor: float) -> np.ndarray:
    """Return (cos - floor) / (1 - floor): unrelated pictures read 0, identical ones 1.

    Args:
        cosines: Cosines of picture features, any shape.
        floor: Mean cosine of unrelated pictures, below 1; see `feature_floor`.

    Raises:
        ValueError: The floor is not in [-1, 1): a feature that cannot distinguish pictures.
    """
    if not -1 <= floor < 1:
        raise ValueError(f"floor {floor}: expected a mean cosine in [-1, 1)")
    return (np.asarray(cosines, dtype=np.float64) - floor) / (1 - floor)


def feature_floor(features: ArrayLike, groups: Iterable[Hashable] | None = None) -> float:
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
