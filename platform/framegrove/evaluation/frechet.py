"""Fréchet distances between two sets of features: FID of pictures, FVD of videos, by whatever the features are of.

The distance of Fréchet (1957) between two Gaussians with the sets' means and covariances (Dowson and Landau, 1982; FID:
Heusel et al., arXiv 1706.08500; FVD: Unterthiner et al., arXiv 1812.01717), squared as is usual:

    |m1 - m2|² + tr(C1 + C2 - 2 (C1^½ C2 C1^½)^½)

It is biased upwards where samples are few (Chong and Forsyth, arXiv 1911.07023): compare distances of equally many.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from framegrove.errors import UserError

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Gaussian:
    """A mean (D,) and a covariance (D, D), and how many samples they are of."""

    mean: Array
    covariance: Array
    count: int

    @classmethod
    def of(cls, features_ND: npt.ArrayLike) -> Gaussian:
        """That of a set of features (N, D), by the unbiased estimate.

        Raises UserError where there are fewer than 2, and where some are no finite numbers.
        """
        given = np.asarray(features_ND, np.float64)
        if given.ndim != 2:
            raise ValueError(f"features are (N, D), not {given.shape}")
        if len(given) < 2:
            raise UserError(f"a Fréchet distance takes at least two samples of each kind, not {len(given)}")
        with np.errstate(all="ignore"):  # told below, in words
            mean, covariance = given.mean(0), np.atleast_2d(np.cov(given, rowvar=False))
        if not np.isfinite(covariance).all():  # and so are features without one, or of which squares overflow
            raise UserError(
                "a Fréchet distance takes finite features, and some of these are infinite, huge or not a number"
            )
        return cls(mean, covariance, len(given))


def frechet_distance(one: Gaussian, other: Gaussian) -> float:
    """The squared Fréchet distance, 0 for equal ones. Covariances may be singular, as those of few samples are."""
    root = _root(one.covariance)
    product = root @ other.covariance @ root
    shared = np.sqrt(np.clip(np.linalg.eigvalsh((product + product.T) / 2), 0, None)).sum()
    apart = one.mean - other.mean
    squared = apart @ apart + np.trace(one.covariance) + np.trace(other.covariance) - 2 * shared
    return max(0.0, float(squared))  # rounding leaves -1e-12 of a set and itself


def _root(covariance: Array) -> Array:
    """The symmetric square root; rounding makes small eigenvalues negative, which are 0."""
    values, vectors = np.linalg.eigh(covariance)
    return np.asarray((vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T)
