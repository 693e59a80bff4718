"""Strengths from comparisons."""

from __future__ import annotations

import math

import numpy as np
import pytest

from framegrove.verification.bradley_terry import both_orders, strengths


def sigmoid(odds: float) -> float:
    return 1 / (1 + math.exp(-odds))


def test_both_orders_cancel_a_liking_for_the_first() -> None:
    assert both_orders(1.5 + 0.7, -1.5 + 0.7) == pytest.approx(1.5)
    assert both_orders(math.inf, -math.inf) == 16
    assert both_orders(math.inf, math.inf) == 0


def test_two_are_as_far_apart_as_their_odds_say_less_the_pull() -> None:
    """With one comparison of P(win) p, the penalised likelihood has its top where p - s(d) = pull * d / 2."""
    first, second = strengths(2, {(0, 1): 0.9}, pull=0.1)
    assert first == pytest.approx(-second)
    gap = first - second
    assert 0.9 - sigmoid(gap) == pytest.approx(0.1 * gap / 2, abs=1e-9)
    assert strengths(2, {(0, 1): 0.9}, pull=1e-9)[0] * 2 == pytest.approx(math.log(9), rel=1e-4)


def test_comparisons_that_agree_are_recovered() -> None:
    """Where all odds are differences of strengths, and hardly anything pulls, those are the strengths."""
    true = np.array([1.0, -0.5, 0.25, -0.75])
    won = {(a, b): sigmoid(true[a] - true[b]) for a in range(4) for b in range(a + 1, 4)}
    assert strengths(4, won, pull=1e-9) == pytest.approx(list(true - true.mean()), abs=1e-5)


def test_a_chain_orders_those_that_never_met_and_the_undefeated_stays_finite() -> None:
    found = strengths(3, {(0, 1): 1.0, (1, 2): 1.0})
    assert found[0] > found[1] > found[2]
    assert all(math.isfinite(each) for each in found)
    assert sum(found) == pytest.approx(0, abs=1e-9)
    assert strengths(1, {}) == (0.0,)
    assert strengths(3, {}) == (0.0, 0.0, 0.0)


def test_no_comparison_leaves_the_cohort() -> None:
    for won in ({(0, 2): 0.5}, {(1, 1): 0.5}, {(0, 1): 1.5}):
        with pytest.raises(ValueError, match="two of the 2"):
            strengths(2, won)


def test_a_pair_may_stand_for_many_comparisons() -> None:
    """Three of them are the same as a pair that is there three times; and more of them leave the prior less to say."""
    won = {(0, 1): 0.75, (1, 2): 0.6}
    both_ways = strengths(3, {**won, (1, 0): 0.25, (2, 1): 0.4})
    assert strengths(3, won, weights=dict.fromkeys(won, 2.0)) == pytest.approx(both_ways)
    many = strengths(2, {(0, 1): 0.75}, weights={(0, 1): 1e6})
    assert many[0] - many[1] == pytest.approx(math.log(3), rel=1e-4)
