"""Cohorts by path scores: what is certain early is what the last score confirms."""

from __future__ import annotations

import math
import random
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from framegrove.config.search import Fusion, PathScore
from framegrove.search.cohorts import ScoreCohort
from framegrove.search.fusion import Scoring
from framegrove.types import Assessment


def cohort(width: int, count: int, **more: object) -> ScoreCohort:
    return ScoreCohort([(n,) for n in range(count)], Assessment.IMAGE, Scoring(), {}, width, **more)  # type: ignore[arg-type]


def test_who_is_far_enough_ahead_stays_and_who_is_too_far_behind_goes() -> None:
    four = cohort(2, 4)
    assert four.add((0,), (("only", 0.5),)).kept == ()
    assert four.add((1,), (("only", 0.9),)).kept == ()  # two may yet be better
    assert four.likely() == ((1,), (0,))
    change = four.add((2,), (("only", 0.1),))
    assert (change.kept, change.dropped) == (((1,),), ((2,),))
    assert (four.likely(), four.most_kept, four.decided) == (((0,),), 2, False)
    change = four.add((3,), (("only", 0.7),))
    assert (change.kept, change.dropped) == (((3,),), ((0,),))
    assert (four.kept, four.decided) == (((1,), (3,)), True)
    assert [place.path for place in four.standings()] == [(1,), (3,), (0,), (2,)]
    assert four.standings()[0].own == pytest.approx(math.log(0.9))


def test_the_average_cuts_as_well_where_it_is_told_to() -> None:
    four = cohort(3, 4, above_average=True)
    for number, score in enumerate((0.9, 0.8, 0.1, 0.1)):
        change = four.add((number,), (("only", score),))
    assert (change.kept, change.dropped) == (((0,), (1,)), ((2,), (3,)))


@pytest.mark.parametrize("fusion", get_args(Fusion))
def test_equals_are_all_as_good_as_their_average(fusion: Fusion) -> None:
    for count in (3, 5, 6, 7):
        for score in (0.07, 0.1, 0.33, 0.9):
            equals = cohort(count, count, fusion=fusion, above_average=True)
            for number in range(count):
                equals.add((number,), (("only", score),))
            assert len(equals.kept) == count


def test_a_lone_member_stays_before_it_is_scored_and_a_stranger_is_refused() -> None:
    one = cohort(1, 1)
    assert one.initial.kept == ((0,),)
    with pytest.raises(ValueError, match="no member"):
        one.add((1,), (("only", 0.5),))


@settings(max_examples=200, deadline=None)
@given(
    count=st.integers(1, 12),
    width=st.integers(1, 12),
    grid=st.sampled_from([2, 5, 1000]),
    seed=st.integers(0, 2**32),
    fusion=st.sampled_from(get_args(Fusion)),
    path_score=st.sampled_from(get_args(PathScore)),
    above_average=st.booleans(),
)
def test_early_decisions_are_final_and_the_order_does_not_matter(
    count: int, width: int, grid: int, seed: int, fusion: Fusion, path_score: PathScore, above_average: bool
) -> None:
    lots = random.Random(seed)
    scores = {(n,): (("a", lots.randrange(grid) / grid), ("b", lots.randrange(grid) / grid)) for n in range(count)}
    before = {path: -lots.random() for path in scores if lots.random() < 0.7}
    ends = []
    for _ in range(2):
        each = ScoreCohort(
            tuple(scores),
            Assessment.MOTION,
            Scoring(),
            before,
            width,
            fusion=fusion,
            path_score=path_score,
            above_average=above_average,
        )
        kept, dropped = set(each.initial.kept), set(each.initial.dropped)
        for path in lots.sample(sorted(scores), count):
            change = each.add(path, scores[path])
            assert not {*change.kept, *change.dropped} & (kept | dropped)
            kept |= {*change.kept}
            dropped |= {*change.dropped}
            assert len(kept) <= each.most_kept <= width
            assert set(each.kept) == kept
        assert each.complete
        assert each.decided
        best = [place.path for place in each.standings()]
        assert kept == set(best[: len(kept)])  # nobody is kept before one who is better
        if not above_average:
            assert len(kept) == min(width, count)
        ends.append((kept, dropped, best))
    assert ends[0] == ends[1]
