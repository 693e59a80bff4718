"""Which frames of a clip are shown: what each view promises, for clips and verifiers of any size."""

from __future__ import annotations

import doctest
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from framegrove.config.request import FRAMES_PER_UNIT, frames_of, unit_lengths
from framegrove.verification import views
from framegrove.verification.views import Shown, View, frames_of_view, grouped, shown_frames

UNITS, MOST = st.integers(1, 80), st.integers(2, 16)
LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=30) | st.integers(1, 400).map(lambda frames: [frames])


def unit_of(frame: int) -> int:
    return -(-frame // FRAMES_PER_UNIT)


def shown(view: View, units: int, most: int) -> tuple[Shown, ...]:
    return frames_of_view(view, pyramidal(units), most)


def pyramidal(units: int) -> tuple[int, ...]:
    return unit_lengths(frames_of(units))


def test_the_examples_of_the_module() -> None:
    assert doctest.testmod(views).failed == 0


@given(st.sampled_from(View), LENGTHS | st.integers(1, 700).map(unit_lengths), MOST)
def test_selections_are_ascending_short_and_not_empty(view: View, lengths: list[int], most: int) -> None:
    selections = frames_of_view(view, lengths, most)
    assert 1 <= len(selections) <= 5
    for selection in selections:
        assert 1 <= len(selection) <= most
        assert list(selection) == sorted(set(selection))
        assert 0 <= selection[0] <= selection[-1] < sum(lengths)


@given(st.sampled_from(View), UNITS, MOST)
def test_of_a_pyramidal_clip_the_frames_are_those_that_stand_for_units(view: View, units: int, most: int) -> None:
    """By the rule for units of eight frames after one, which shipped verifiers were trained with."""
    newest = range(frames_of(units - 1) if units > 1 else 0, frames_of(units))

    def stands_for(unit: int) -> int:
        return FRAMES_PER_UNIT * (unit - 1) + 1 + (unit + 1) % FRAMES_PER_UNIT

    def spread(places: range, count: int) -> list[int]:
        count = min(count, len(places))
        return [places[-1 - (len(places) * back) // count] for back in reversed(range(count))]

    if view is View.VIDEO:
        count = max(1, min(5, -(-(units - 1) // (most - 1))))
        chosen = spread(range(1, units), count * (most - 1))
        expected = [[0, *map(stands_for, chosen[at::count])] for at in range(count)]
    elif view is View.RECENT:
        latest = range(1, units)[-(most - 1) :]
        before = latest.start - 1
        expected = [[0, *(stands_for(unit - before) + FRAMES_PER_UNIT * before for unit in latest)]]
    elif view is View.UNIT:
        earlier = {0, newest.start - 1} if most >= 4 else {0}
        expected = [[*sorted(earlier), *spread(newest, most - len(earlier))]] if newest.start else [[0]]
    else:
        expected = [list(newest[at :: -(-len(newest) // most)]) for at in range(-(-len(newest) // most))]
    assert shown(view, units, most) == tuple(map(tuple, expected))


@given(LENGTHS, MOST)
def test_a_long_unit_is_looked_at_several_times(lengths: list[int], most: int) -> None:
    selections = frames_of_view(View.VIDEO, lengths, most)
    seen = sorted(frame for selection in selections for frame in selection[1:])
    looks = -(-(lengths[0] - 1) // FRAMES_PER_UNIT) + sum(-(-frames // FRAMES_PER_UNIT) for frames in lengths[1:])
    assert len(seen) == min(looks, 5 * (most - 1))
    if len(seen) == looks:  # all of them are seen
        assert all(b - a < 2 * FRAMES_PER_UNIT for a, b in itertools.pairwise([0, *seen]))
    if looks:
        assert seen[-1] >= sum(lengths) - FRAMES_PER_UNIT, "the newest look among them"


@given(st.integers(2, 400), MOST)
def test_a_video_of_one_unit_is_shown_like_one_of_many(frames: int, most: int) -> None:
    whole = 1 + FRAMES_PER_UNIT * (frames // FRAMES_PER_UNIT)
    for view in (View.VIDEO, View.RECENT):
        assert frames_of_view(view, [whole], most) == frames_of_view(view, unit_lengths(whole), most)


@given(st.sampled_from(View), MOST)
def test_of_a_single_frame_every_view_is_that_frame(view: View, most: int) -> None:
    assert shown(view, 1, most) == ((0,),)


@given(st.sampled_from([View.RECENT, View.UNIT, View.DENSE]), UNITS, MOST)
def test_judging_a_middle_unit_costs_as_much_in_a_long_video_as_in_a_short_one(
    view: View, units: int, most: int
) -> None:
    long = [len(selection) for selection in shown(view, units + most, most)]
    assert long == [len(selection) for selection in shown(view, units + most + 20, most)]


@given(UNITS, MOST)
def test_a_video_is_shown_as_a_whole(units: int, most: int) -> None:
    selections = shown(View.VIDEO, units, most)
    assert all(selection[0] == 0 for selection in selections)
    seen = [unit_of(frame) for selection in selections for frame in selection[1:]]
    assert len(seen) == len(set(seen))  # the selections have the first frame in common and nothing else
    assert units == 1 or units - 1 in seen
    assert len(selections) <= 5
    if units <= 1 + 5 * (most - 1):
        assert sorted(seen) == list(range(1, units))
    if units <= most:
        assert len(selections) == 1


@given(st.integers(2, 80), MOST)
def test_the_recent_view_has_the_first_frame_and_the_latest_units(units: int, most: int) -> None:
    (selection,) = shown(View.RECENT, units, most)
    assert selection[0] == 0
    assert [unit_of(frame) for frame in selection[1:]] == list(range(max(1, units - most + 1), units))
    if most <= FRAMES_PER_UNIT - 1:
        assert {b - a for a, b in itertools.pairwise(selection[1:])} <= {FRAMES_PER_UNIT + 1}


@given(st.integers(2, 80), st.integers(4, 16))
def test_the_unit_view_begins_with_what_was_there_before(units: int, most: int) -> None:
    (selection,) = shown(View.UNIT, units, most)
    last_of_parent, newest = frames_of(units) - 1 - FRAMES_PER_UNIT, [f for f in selection if unit_of(f) == units - 1]
    assert selection[: len(selection) - len(newest)] == tuple(sorted({0, last_of_parent}))
    assert len(newest) == min(FRAMES_PER_UNIT, most - len({0, last_of_parent}))
    assert newest[-1] == frames_of(units) - 1


@given(st.integers(2, 80), MOST)
def test_the_dense_view_has_every_frame_of_the_newest_unit_once(units: int, most: int) -> None:
    selections = shown(View.DENSE, units, most)
    seen = sorted(frame for selection in selections for frame in selection)
    assert seen == list(range(frames_of(units) - FRAMES_PER_UNIT, frames_of(units)))
    assert len(selections) == -(-FRAMES_PER_UNIT // most)


def test_shown_frames_come_one_from_every_unit() -> None:
    assert shown_frames(unit_lengths(25)) == (0, 3, 12, 21)
    for units in range(1, 30):
        frames = shown_frames(pyramidal(units), most=64)
        assert [unit_of(frame) for frame in frames] == list(range(units))


@pytest.mark.parametrize("most", [2, 4, 7])
def test_a_parents_frames_begin_its_childs_unless_they_must_thin_out(most: int) -> None:
    for units in range(1, most):
        parent, child = (shown_frames(pyramidal(n), most) for n in (units, units + 1))
        assert child[: len(parent)] == parent
    for units in range(2, 60):
        assert unit_of(shown_frames(pyramidal(units), most)[-1]) == units - 1  # the newest unit is always seen


def test_a_clip_that_ends_inside_a_unit_shows_its_last_frame() -> None:
    assert shown_frames([1, 1]) == (0, 1)
    assert frames_of_view(View.UNIT, [1, 8, 3], 4) == ((0, 8, 10, 11),)
    assert frames_of_view(View.DENSE, unit_lengths(12), 2) == ((9, 11), (10,))
    with pytest.raises(ValueError, match="at least 1 unit of 1 frame"):
        frames_of_view(View.VIDEO, [], 4)
    with pytest.raises(ValueError, match="2 shown ones"):
        frames_of_view(View.VIDEO, [9], 1)


def test_questions_about_the_same_frames_stand_together() -> None:
    asked = [View.DENSE, View.RECENT, View.DENSE, View.VIDEO]
    assert grouped(asked, [1, 8], 4) == {(1, 3, 5, 7): [0, 2], (2, 4, 6, 8): [0, 2], (0, 3): [1, 3]}
    assert grouped(asked, [1], 4) == {(0,): [0, 1, 2, 3]}
