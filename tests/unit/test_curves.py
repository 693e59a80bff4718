from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from framegrove.evaluation import curves
from framegrove.evaluation.curves import CurvePoint, Interval


def test_interval_covers_the_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = [
        interval.low <= 0.3 <= interval.high
        for interval in (curves.bootstrap((rng.random(64) < 0.3).astype(float)) for _ in range(100))
    ]
    assert 0.88 <= np.mean(covered) <= 1.0


def test_interval_is_the_same_every_time() -> None:
    assert curves.bootstrap([0.0, 1.0, 1.0]) == curves.bootstrap([0.0, 1.0, 1.0])


def test_pairing_sees_what_the_prompts_spread_hides() -> None:
    rng = np.random.default_rng(1)
    difficulty = rng.random(64)
    scores = {
        "tof": {i: float(d + 0.05) for i, d in enumerate(difficulty)},
        "single": {i: float(d + rng.normal(0, 0.02)) for i, d in enumerate(difficulty)},
    }
    comparison = curves.compare("tof", "single", scores)
    assert comparison.p < 0.05
    assert comparison.prompts == 64
    assert comparison.difference.low > 0.03


def test_only_shared_prompts_are_compared() -> None:
    comparison = curves.compare("a", "b", {"a": {0: 1.0, 1: 1.0}, "b": {1: 0.0, 2: 0.0}})
    assert (comparison.prompts, comparison.difference.mean) == (1, 1.0)
    with pytest.raises(ValueError, match="share no prompt"):
        curves.compare("a", "b", {"a": {0: 1.0}, "b": {1: 0.0}})


def test_nothing_has_no_mean() -> None:
    with pytest.raises(ValueError, match="at least one value"):
        curves.bootstrap([])


def _point(label: str, flops: float, mean: float) -> CurvePoint:
    return CurvePoint(label, flops, Interval(mean, mean - 0.05, mean + 0.04))


def test_front_holds_only_what_nothing_beats() -> None:
    points = [_point("a", 1, 0.4), _point("b", 2, 0.3), _point("c", 2, 0.6), _point("d", 4, 0.6), _point("e", 8, 0.7)]
    assert [p.label for p in curves.pareto(points)] == ["a", "c", "e"]


def test_picture_is_written(tmp_path: Path) -> None:
    drawn = {
        "linear": [_point("1x", 1.3, 0.41), _point("4x", 5.4, 0.52)],
        "tof": [_point("1x", 1.3, 0.43), _point("4x", 5.1, 0.61)],
    }
    curves.draw_curves(drawn, tmp_path / "curves.png", title="Search on digits", score="oracle score")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_sign_flips_are_counted_exactly_where_they_are_few() -> None:
    """All of five differences have one sign: two of 32 patterns are as far from 0. Zeros have no sign to flip."""
    assert curves.sign_flips([1.0, 2.0, 0.5, 3.0, 1.5]) == pytest.approx(2 / 32)
    assert curves.sign_flips([1.0, 2.0, 0.0, 0.5, 3.0, 0.0, 1.5]) == pytest.approx(2 / 32)
    assert curves.sign_flips([1.0, -1.0]) == 1.0
    assert curves.sign_flips([0.0, 0.0]) == 1.0


def test_sign_flips_find_as_many_differences_as_chance_has() -> None:
    rng = np.random.default_rng(0)
    found = [curves.sign_flips(rng.normal(size=20)) for _ in range(200)]
    assert 0.02 <= np.mean(np.array(found) < 0.05) <= 0.09
    assert curves.sign_flips(rng.normal(1.5, 1, 40)) < 0.001


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("count", [3, 40])
def test_values_that_are_no_finite_numbers_are_refused(value: float, count: int) -> None:
    values = [1.0] * (count - 1) + [value]
    for refusing in (curves.bootstrap, curves.sign_flips):
        with pytest.raises(ValueError, match="must be finite numbers, not"):
            refusing(values)


def test_holm_corrects_for_the_number_of_tests() -> None:
    assert curves.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert curves.holm([0.9, 0.5]) == pytest.approx([1.0, 1.0])
    assert curves.holm([]) == []
