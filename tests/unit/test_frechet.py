"""Fréchet distances against their closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import linalg

from framegrove.errors import UserError
from framegrove.evaluation.frechet import Gaussian, frechet_distance


def gaussian(mean: list[float], covariance: object) -> Gaussian:
    return Gaussian(np.asarray(mean, float), np.asarray(covariance, float), 10)


def test_in_one_dimension() -> None:
    """(m1 - m2)² + (s1 - s2)²."""
    one, other = gaussian([1.0], [[4.0]]), gaussian([4.0], [[9.0]])
    assert frechet_distance(one, other) == pytest.approx(9 + 1)


def test_of_equal_covariances_only_the_means_count() -> None:
    covariance = [[2.0, 0.5], [0.5, 1.0]]
    assert frechet_distance(gaussian([0, 0], covariance), gaussian([3, 4], covariance)) == pytest.approx(25)
    assert frechet_distance(gaussian([3, 4], covariance), gaussian([3, 4], covariance)) == pytest.approx(0, abs=1e-12)


def test_of_covariances_that_commute() -> None:
    """In a shared basis it is the sum of the squared differences of the standard deviations."""
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(5, 5)))[0]
    a, b = np.array([1.0, 4, 9, 16, 0]), np.array([4.0, 4, 1, 25, 0])
    one, other = (gaussian([0] * 5, (turn * values) @ turn.T) for values in (a, b))
    assert frechet_distance(one, other) == pytest.approx(((np.sqrt(a) - np.sqrt(b)) ** 2).sum())


def test_of_any_covariances_it_is_the_usual_formula() -> None:
    rng = np.random.default_rng(1)
    one, other = (Gaussian.of(rng.normal(size=(400, 6)) @ rng.normal(size=(6, 6)) + rng.normal(size=6)) for _ in "ab")
    covmean = linalg.sqrtm(one.covariance @ other.covariance).real
    apart = one.mean - other.mean
    usual = apart @ apart + np.trace(one.covariance + other.covariance - 2 * covmean)
    assert frechet_distance(one, other) == pytest.approx(usual, rel=1e-9)
    assert frechet_distance(other, one) == pytest.approx(usual, rel=1e-9)


def test_few_samples_of_many_dimensions() -> None:
    """Their covariances are singular; a set and itself moved are as far apart as it was moved."""
    features = np.random.default_rng(2).normal(size=(4, 32))
    moved = features + 0.5
    assert frechet_distance(Gaussian.of(features), Gaussian.of(moved)) == pytest.approx(32 * 0.25)
    assert frechet_distance(Gaussian.of(features), Gaussian.of(features)) == pytest.approx(0, abs=1e-9)


def test_samples_come_close_to_what_they_are_drawn_from() -> None:
    rng = np.random.default_rng(3)
    one = Gaussian.of(rng.normal(0.0, 1.0, (20_000, 2)))
    other = Gaussian.of(rng.normal(1.0, 2.0, (20_000, 2)))
    assert frechet_distance(one, other) == pytest.approx(2 * (1 + 1), rel=0.03)


def test_a_single_sample_has_no_spread() -> None:
    with pytest.raises(UserError, match="at least two samples of each kind, not 1"):
        Gaussian.of(np.zeros((1, 3)))
    with pytest.raises(ValueError, match="features are"):
        Gaussian.of(np.zeros(3))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e200])
def test_what_is_no_finite_number_is_at_no_distance(value: float) -> None:
    """max(0.0, nan) is 0.0, which is the distance of what is perfect."""
    features = np.random.default_rng(4).normal(size=(8, 3))
    features[2, 1] = value
    with pytest.raises(UserError, match="takes finite features"):
        Gaussian.of(features)
