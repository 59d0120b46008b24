"""Frechet distance between two sets of pictures, by whatever features are named.

Shape letters: P pictures, F features.
"""

from dataclasses import dataclass

import numpy as np

INCEPTION = ("inception-v3", "inception-v3-fid")
"""Extractors whose distance may be called FID: the network of Heusel et al. 2017."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Moments:
    """What is kept of a set of pictures."""

    mean: np.ndarray
    """(F,) float64."""

    covariance: np.ndarray
    """(F, F) float64, divided by P - 1."""

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
        """What to call it: FID with the Inception network alone, else frechet-EXTRACTOR."""
        return "FID" if self.extractor in INCEPTION else f"frechet-{self.extractor}"

    @property
    def note(self):
        """Why the figure says little, or an empty text."""
        if min(self.counts) <= self.width:
            return (
                f"{min(self.counts)} pictures for {self.width} features: covariances are singular "
                "and the distance is biased upwards; compare only at equal N"
            )
        return ""


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
    return Moments(
        mean=features.mean(axis=0),
        covariance=np.atleast_2d(np.cov(features, rowvar=False)),
        count=len(features),
    )


def frechet_distance(first, second, extractor):
    """Return the Frechet distance between two Gaussians with the moments of two sets.

    ``|m_1 - m_2|^2 + tr(C_1 + C_2 - 2 (C_1^{1/2} C_2 C_1^{1/2})^{1/2})``. Both roots are of
    symmetric matrices, taken by eigenvalues; the product ``C_1 C_2`` has the same trace of the
    root but is not symmetric, and its general root can turn out complex.

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
    root = symmetric_root(first.covariance)
    middle = root @ second.covariance @ root
    trace = np.sqrt(np.linalg.eigvalsh((middle + middle.T) / 2).clip(0)).sum()
    apart = first.mean - second.mean
    total = np.trace(first.covariance) + np.trace(second.covariance)
    return FrechetDistance(
        # Rounding may leave equal sets a little below 0.
        value=float(max(0.0, apart @ apart + total - 2 * trace)),
        extractor=extractor,
        counts=(first.count, second.count),
        width=len(first.mean),
    )


def symmetric_root(matrix):
    """Return the symmetric root of a symmetric, positive semidefinite matrix, (F, F)."""
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    return (vectors * np.sqrt(values.clip(0))) @ vectors.T
