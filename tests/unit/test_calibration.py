"""Calibration and the figures of an examination, on constructed branches whose truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from framegrove.verification.calibration import (
    auc,
    auc_within,
    calibration_error,
    confident_mistakes,
    fitted,
    pairs_within,
)


def sigmoid(odds: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-odds))


def test_a_calibration_finds_the_odds_that_branches_were_drawn_with() -> None:
    rng = np.random.default_rng(0)
    alignment, motion = rng.normal(2, 2, 20_000), rng.normal(1, 3, 20_000)
    right = rng.random(20_000) < sigmoid(-1.5 + 0.7 * alignment + 0.25 * motion)
    scores = [
        {"alignment": float(a), "motion": float(m)} for a, m in zip(sigmoid(alignment), sigmoid(motion), strict=True)
    ]
    found = fitted(scores, right.tolist())
    assert found.bias == pytest.approx(-1.5, abs=0.1)
    assert found.slopes == pytest.approx({"alignment": 0.7, "motion": 0.25}, abs=0.05)
    said = [math.exp(found.log_p(each)) for each in scores]
    assert calibration_error(said, right.tolist()) < 0.015
    raw = [each["alignment"] * each["motion"] for each in scores]
    assert calibration_error(raw, right.tolist()) > 0.1


def test_a_score_that_would_count_against_a_branch_is_left_out() -> None:
    rng = np.random.default_rng(1)
    odds = rng.normal(0, 2, 4000)
    right = rng.random(4000) < sigmoid(odds)
    harmful = sigmoid(rng.normal(0, 1, 4000) - 2 * right)
    scores = [{"good": float(g), "bad": float(b)} for g, b in zip(sigmoid(odds), harmful, strict=True)]
    assert fitted(scores, right.tolist()).slopes.keys() == {"good"}


def test_what_is_always_right_is_said_by_the_bias_and_certainty_stays_finite() -> None:
    found = fitted([{"alignment": 0.5}, {"alignment": 0.9}, {"alignment": 1.0}], [True] * 3)
    assert found.slopes == {}
    assert math.exp(found.log_p({"alignment": 0.1})) == pytest.approx(0.8, abs=1e-3)  # Platt: (3 + 1) / (3 + 2)
    separable = fitted([{"a": 0.9}] * 50 + [{"a": 0.1}] * 50, [True] * 50 + [False] * 50)
    assert 0.9 < math.exp(separable.log_p({"a": 0.9})) < 1
    with pytest.raises(ValueError, match="branches"):
        fitted([], [])


def test_order_counts_within_groups_only() -> None:
    # In group 0 the right one is above; in group 1 there is a tie and a pair in the wrong order; group 2 has no pair.
    scores = [0.9, 0.1, 0.5, 0.5, 0.6, 0.99]
    right = [True, False, True, False, False, False]
    groups = [0, 0, 1, 1, 1, 2]
    assert pairs_within(scores, right, groups) == (1.5, 3)
    assert auc_within(scores, right, groups) == pytest.approx(0.5)
    assert auc(scores, right) == pytest.approx((3 + 1.5) / 8)
    assert math.isnan(auc_within([0.2, 0.3], [True, True], [0, 0]))


def test_a_shift_between_groups_does_not_change_the_order_within() -> None:
    rng = np.random.default_rng(3)
    groups = np.repeat(np.arange(200), 4)
    right = rng.random(800) < 0.6
    scores = rng.normal(0, 1, 800) + 2 * right
    shifted = scores + rng.normal(0, 50, 200)[groups]
    assert auc_within(shifted, right.tolist(), groups.tolist()) == pytest.approx(
        auc_within(scores, right.tolist(), groups.tolist())
    )
    assert auc(shifted, right.tolist()) < 0.7 < auc_within(scores, right.tolist(), groups.tolist())


def test_errors_and_mistakes_are_counted_as_shares() -> None:
    said = [0.95] * 10 + [0.05] * 10
    right = [True] * 5 + [False] * 5 + [False] * 10
    assert calibration_error(said, right, bins=2) == pytest.approx((0.45 + 0.05) / 2)
    assert confident_mistakes(said, right) == pytest.approx(0.25)
    assert math.isnan(calibration_error([], []))
