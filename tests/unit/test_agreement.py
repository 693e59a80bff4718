"""Figures of agreement, in closed form: ties count half, groups are kept apart, prompts are drawn as a whole."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from framegrove.evaluation.agreement import agreement, pairs_agreement, share


def test_closed_forms() -> None:
    #       prompt 0: siblings 0 (0.9 right, 0.4 wrong), 1 (0.5 right, 0.5 wrong); prompt 1: siblings 2
    said = [0.9, 0.4, 0.5, 0.5, 0.2, 0.7]
    right = [True, False, True, False, True, False]
    found = agreement(said, right, [0, 0, 0, 0, 1, 1], [0, 0, 1, 1, 2, 2])
    assert (found.verdicts, found.right, found.pairs) == (6, 3, 3)
    assert found.within.mean == pytest.approx((1 + 0.5 + 0) / 3)
    assert found.accuracy.mean == pytest.approx((1 + 1 + 0.5 + 0.5 + 0 + 0) / 6)
    assert found.across.mean == pytest.approx((3 + (1 + 0.5 + 0) + 0) / 9)  # of 0.9, of 0.5, of 0.2
    # One verdict in each bin: the mean distance of what is said from what is true.
    assert found.calibration.mean == pytest.approx((0.1 + 0.4 + 0.5 + 0.5 + 0.8 + 0.7) / 6)


def test_without_groups_the_videos_of_a_prompt_are_compared() -> None:
    found = agreement([0.9, 0.4, 0.5, 0.5], [True, False, True, False], [0, 0, 1, 1])
    assert (found.pairs, found.within.mean) == (2, 0.75)
    alone = agreement([0.9, 0.4], [True, True], [0, 1])
    assert alone.pairs == 0
    assert math.isnan(alone.within.mean)
    assert math.isnan(alone.across.mean)
    with pytest.raises(ValueError, match="no verdicts"):
        agreement([], [], [])


def test_pairs_count_a_tie_half() -> None:
    assert pairs_agreement([0.9, 0.5, 0.1], [0.1, 0.5, 0.2], [0, 0, 1]).mean == pytest.approx(0.5)
    certain = pairs_agreement([0.9, 0.8], [0.1, 0.2], [0, 1])
    assert (certain.mean, certain.low, certain.high) == (1, 1, 1)


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans(), st.integers(0, 3)), min_size=4, max_size=30))
def test_across_prompts_it_is_the_area_that_others_compute(drawn: list[tuple[int, bool, int]]) -> None:
    said, right, prompts = ([row[column] for row in drawn] for column in range(3))
    if len(set(right)) < 2:
        return
    found = agreement([value / 4 for value in said], right, prompts).across
    assert found.mean == pytest.approx(roc_auc_score(right, said))
    assert math.isnan(found.low) or 0 <= found.low <= found.high <= 1


def test_intervals_are_of_prompts_and_not_of_verdicts() -> None:
    rng = np.random.default_rng(1)
    lucky = rng.random(40) < 0.5
    interval = share([25.0 * each for each in lucky], [25.0] * 40)
    deviation = math.sqrt(lucky.mean() * (1 - lucky.mean()) / 40)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * deviation, rel=0.1)
    narrow = share(rng.random(1000) < 0.5, np.ones(1000))
    assert narrow.high - narrow.low < 0.5 * (interval.high - interval.low)


def test_a_drawing_is_the_same_every_time() -> None:
    given_ = [0.1, 0.8, 0.6, 0.3], [False, True, False, True], [0, 1, 0, 1]
    assert agreement(*given_) == agreement(*given_)
