"""Rank fusion; a cut says early only what holds in the end, and says it as early as the plain reference."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from framegrove.errors import UserError
from framegrove.search.points import Scale, whole_weights
from framegrove.search.ranks import Change, Cohort, Weigh, equally
from framegrove.search.tree import Scores
from framegrove.types import Path
from tests.stock_ranks import StockCohort


def weigh(weights: Mapping[str, float]) -> Weigh:
    """Weights by column; none count all alike."""
    return weights.__getitem__ if weights else equally


def cohort(
    scores: Mapping[Path, Mapping[str, float]], count: int, weights: Mapping[str, float] | None = None, width: int = 1
) -> Cohort:
    """A cohort of ``count`` branches of one unit, with these scores added."""
    members = [(n,) for n in range(count)]
    result = Cohort(members, weigh(weights or {}), dict.fromkeys(members, Fraction(0)), width)
    for path, panel in scores.items():
        result.add(path, tuple(panel.items()))
    return result


# ---- the rules


def test_ranks_are_the_weighted_mean_over_verifiers_and_average_a_half() -> None:
    fused = cohort(
        {(0,): {"a": 0.9, "b": 0.1}, (1,): {"a": 0.5, "b": 0.2}, (2,): {"a": 0.5, "b": 0.3}}, 3, {"a": 3, "b": 1}
    )
    ranks = {standing.path: standing.own for standing in fused.standings()}
    assert ranks == {
        (0,): (3 * Fraction(5, 6) + Fraction(1, 6)) / 4,
        (1,): (3 * Fraction(2, 6) + Fraction(3, 6)) / 4,  # level with (2,) for a: half of the two counts as below
        (2,): (3 * Fraction(2, 6) + Fraction(5, 6)) / 4,
    }
    assert sum(ranks.values()) / 3 == Fraction(1, 2)


def test_a_verifier_of_weight_0_is_recorded_and_decides_nothing() -> None:
    scores = {(0,): {"a": 0.1, "unseen": 0.9}, (1,): {"a": 0.2, "unseen": 0.1}}
    assert cohort(scores, 2, {"a": 1, "unseen": 0}).standings()[0].path == (1,)


def test_ties_never_widen_the_tree() -> None:
    level = cohort({(n,): {"a": 0.5} for n in range(4)}, 4, width=2)
    assert level.kept == ((0,), (1,))
    assert level.dropped == ((2,), (3,))
    higher_score_first = cohort({(0,): {"a": 0.2, "b": 0.3}, (1,): {"a": 0.1, "b": 0.9}}, 2, width=1)
    assert higher_score_first.kept == ((1,),)


def test_below_the_average_goes_even_where_there_is_room() -> None:
    assert cohort({(n,): {"a": n / 10} for n in range(5)}, 5, width=5).kept == ((2,), (3,), (4,))


def test_what_a_path_has_collected_counts() -> None:
    ahead = Cohort([(0, 0), (1, 0)], equally, {(0, 0): Fraction(3), (1, 0): Fraction(1)}, 1)
    ahead.add((0, 0), (("a", 0.1),))
    ahead.add((1, 0), (("a", 0.9),))
    assert [standing.path for standing in ahead.standings()] == [(0, 0), (1, 0)]
    assert ahead.standings()[0].total == Fraction(3) + Fraction(1, 4)


# ---- what is certain before the last score


def test_a_lone_branch_stays_before_it_is_scored() -> None:
    assert cohort({}, 1).initial == Change(kept=((0,),))


def test_a_branch_too_far_behind_goes_before_any_score() -> None:
    behind = Cohort([(0, 0), (1, 0)], equally, {(0, 0): Fraction(3), (1, 0): Fraction(1)}, 2)
    assert behind.initial == Change(kept=((0, 0),), dropped=((1, 0),))


def test_survivors_are_known_before_the_last_score() -> None:
    partly = cohort({(n,): {"a": n / 10} for n in range(6)}, 8, width=4)
    assert partly.kept == ((4,), (5,))  # four below already: in the upper half whatever comes
    assert partly.dropped == ((0,), (1,))  # four above already
    assert partly.likely() == ((3,),)
    assert partly.undecided == ((2,), (3,), (6,), (7,))
    assert not partly.complete


@pytest.mark.parametrize(
    ("last", "kept"), [({"a": 0.7, "b": 0.1}, ((0,), (1,))), ({"a": 0.7, "b": 0.65}, ((0,), (3,)))]
)
def test_the_worked_example_of_the_docstring(last: Mapping[str, float], kept: tuple[Path, ...]) -> None:
    scores = {(0,): {"a": 0.9, "b": 0.6}, (1,): {"a": 0.5, "b": 0.7}, (2,): {"a": 0.1, "b": 0.2}}
    example = cohort(scores, 4, width=2)
    assert (example.kept, example.dropped) == ((), ((2,),))
    assert (example.most_kept, example.decided) == (2, False)
    assert cohort(scores, 4, width=3).kept == ((0,), (1,))
    change = example.add((3,), tuple(last.items()))
    assert change.kept == example.kept == kept
    assert example.decided


@st.composite
def partly_scored(draw: st.DrawFn) -> Any:
    """Members, the scores that are in, weights, what was collected before, and a width."""
    count = draw(st.integers(1, 5))
    names = draw(st.sampled_from([["a"], ["a", "b"]]))
    weights = {"a": 1.0, "b": draw(st.sampled_from([0.0, 0.3, 1.0]))}
    grid = st.sampled_from([0.25, 0.5, 0.75])
    missing = draw(st.integers(0, min(count, 3 - len(names))))
    panels = {(n,): {name: draw(grid) for name in names} for n in range(missing, count)}
    before = {(n,): Fraction(draw(st.integers(0, 2)), 3) for n in range(count)}
    return count, panels, weights, before, draw(st.integers(1, count))


@settings(max_examples=100, deadline=None)
@given(partly_scored())
def test_early_answers_hold_for_every_way_the_missing_scores_can_fall(case: Any) -> None:
    count, panels, weights, before, width = case
    members = [(n,) for n in range(count)]
    early = Cohort(members, weigh(weights), before, width)
    for path, panel in panels.items():
        early.add(path, tuple(panel.items()))
    names = list(next(iter(panels.values()), {"a": 0.0}))
    missing = [path for path in members if path not in panels]
    values = [0.0, 0.25, 0.4, 0.5, 0.6, 0.75, 1.0]  # every place among the known ones, ties included
    for filled in itertools.product(itertools.product(values, repeat=len(names)), repeat=len(missing)):
        full = panels | {
            path: dict(zip(names, scores, strict=True)) for path, scores in zip(missing, filled, strict=True)
        }
        stay = survivors(full, weights, before, width)
        assert set(early.kept) <= stay
        assert not stay & set(early.dropped)
    if not missing:
        assert not early.undecided


def survivors(
    panels: Mapping[Path, Mapping[str, float]],
    weights: Mapping[str, float],
    before: Mapping[Path, Fraction],
    width: int,
) -> set[Path]:
    """The rule as it reads in the docstring, with all scores known."""
    total = {}
    share = sum(Fraction(str(weights[name])) for name in next(iter(panels.values())))
    for path, panel in panels.items():
        total[path] = before[path]
        for name, score in panel.items():
            below = sum(other[name] < score for other in panels.values())
            level = sum(other[name] == score for other in panels.values())
            rank = (below + Fraction(level, 2)) / len(panels)
            total[path] += Fraction(str(weights[name])) / share * rank
    average = sum(total.values()) / len(panels)

    def place(path: Path) -> Any:
        return -total[path], -sum(weights[name] * score for name, score in panels[path].items()), path

    return {path for path in sorted(panels, key=place)[:width] if total[path] >= average}


# ---- no later and no earlier than the reference

WEIGHTS = [0.0, 0.125, 0.3, 0.7, 1.0, 2.0, 3.0]
FINE_WEIGHTS = [*WEIGHTS, 0.1 + 0.2, 123456.789]  # 0.1 + 0.2 is 0.30000000000000004: 64 bits are too few
BEFORE = {
    "nothing": st.just(Fraction(0)),
    "few": st.builds(Fraction, st.integers(0, 2), st.just(3)),
    "ranks": st.builds(Fraction, st.integers(0, 40), st.sampled_from([3, 7, 20, 22])),
    "long": st.builds(Fraction, st.integers(0, 10**18), st.sampled_from([10**6 + 3, 10**17 + 3])),
}


@st.composite
def lives(draw: st.DrawFn) -> Any:
    """A cohort's members, weights, what was collected before, width, and all panels in the order they arrive."""
    count = draw(st.one_of(st.integers(1, 12), st.just(20)))
    names = ["a", "b", "c", "d"][: draw(st.integers(1, 4))]
    weight = st.sampled_from(draw(st.sampled_from([WEIGHTS, FINE_WEIGHTS])))
    weights = draw(st.one_of(st.just({}), st.fixed_dictionaries(dict.fromkeys(names, weight))))
    if not any(weights.values()):
        weights = {}
    chance = random.Random(draw(st.integers(0, 2**32)))  # quick: most of a case is scores
    members = chance.sample(list(itertools.product(range(count), range(3))), count)
    kind = draw(st.sampled_from(sorted(BEFORE)))
    choices = draw(st.lists(BEFORE[kind], min_size=1, max_size=6))
    before = {path: chance.choice(choices) for path in members}
    steps = draw(st.sampled_from([1, 3, 10, 1000]))
    order = chance.sample(members, count)
    panels = {path: tuple((name, chance.randint(0, steps) / steps) for name in names) for path in order}
    return members, weights, before, draw(st.integers(1, count + 1)), panels


@settings(max_examples=100, deadline=None)
@given(lives())
def test_after_every_score_exactly_that_is_certain_which_the_reference_finds_certain(case: Any) -> None:
    compare_lives(*case)


@pytest.mark.parametrize(
    ("weights", "summed", "dtype"),
    [
        ({}, False, np.int32),
        ({"a": 1.0, "b": 0.3333, "c": 2.5}, False, np.int32),
        ({}, True, np.int32),
        ({"a": 1.0, "b": 0.33333333, "c": 2.5}, True, np.int64),
        ({"a": 1.0, "b": 0.1 + 0.2, "c": 2.5}, True, np.object_),  # 0.30000000000000004
    ],
)
def test_a_larger_cohort_agrees_with_the_reference(weights: Mapping[str, float], summed: bool, dtype: type) -> None:
    chance = random.Random(len(weights))
    members = [(parent, child) for parent in range(60) for child in range(2)]
    parents = [Fraction(chance.randint(1, 119), 120) + Fraction(chance.randint(1, 72), 73) for _ in range(60)]
    before = {path: parents[path[0]] if summed else Fraction(0) for path in members}
    names = [*weights] or ["a"]
    panels = {path: tuple((name, chance.random()) for name in names) for path in chance.sample(members, len(members))}
    scale = Scale([*before.values()], sum(whole_weights(names, [weigh(weights)(name) for name in names])))
    assert np.dtype(scale.dtype) == dtype
    compare_lives(members, weights, before, 30, panels, every=8)


def compare_lives(
    members: Sequence[Path],
    weights: Mapping[str, float],
    before: Mapping[Path, Fraction],
    width: int,
    panels: Mapping[Path, Scores],
    every: int = 1,
) -> None:
    """Add the panels one by one and compare with the reference after every so many and at the end."""
    grown = Cohort(members, weigh(weights), before, width)
    kept, dropped = set(grown.initial.kept), set(grown.initial.dropped)
    known: dict[Path, Scores] = {}
    waiting = list(panels.items())
    while True:
        if len(waiting) % every == 0:
            stock = StockCohort(members, known, weights, before)
            cut = stock.cut(width)
            assert (grown.kept, grown.dropped, grown.undecided) == (cut.kept, cut.dropped, cut.undecided)
            assert grown.likely() == cut.likely
            assert grown.decided == (not cut.undecided)
            assert grown.most_kept == min(len(cut.kept) + len(cut.undecided), width)
            assert (kept, dropped) == (set(cut.kept), set(cut.dropped)), "the changes add up to what is certain"
        if not waiting:
            break
        path, panel = waiting.pop(0)
        known[path] = panel
        change = grown.add(path, panel)
        assert change.kept == tuple(member for member in members if member in {*change.kept} - kept)
        assert change.dropped == tuple(member for member in members if member in {*change.dropped} - dropped)
        kept |= {*change.kept}
        dropped |= {*change.dropped}
    assert grown.complete
    assert grown.standings() == stock.standings()


# ---- mistakes


def test_weights_that_leave_an_assessment_without_any_are_refused() -> None:
    with pytest.raises(UserError, match="must not be negative nor all 0"):
        cohort({(0,): {"a": 0.1}}, 1, {"a": 0.0, "b": 1.0})


def test_a_cohort_judged_by_different_panels_is_refused() -> None:
    with pytest.raises(UserError, match="was scored by b and others of its cohort by a"):
        cohort({(0,): {"a": 0.1}, (1,): {"b": 0.1}}, 2)


def test_a_branch_is_scored_once_and_must_be_a_member() -> None:
    once = cohort({(0,): {"a": 0.1}}, 2)
    for path in [(0,), (7,)]:
        with pytest.raises(ValueError, match="is no member of this cohort, or was scored before"):
            once.add(path, (("a", 0.5),))
