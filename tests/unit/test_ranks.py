"""Rank fusion, and that what a cut says early is what it says in the end."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from framegrove.search.ranks import Cohort
from framegrove.types import Path


def cohort(
    scores: Mapping[Path, Mapping[str, float]], count: int, weights: Mapping[str, float] | None = None
) -> Cohort:
    members = [(n,) for n in range(count)]
    panels = {path: tuple(panel.items()) for path, panel in scores.items()}
    return Cohort(members, panels, weights or {}, dict.fromkeys(members, Fraction(0)))


def test_ranks_are_the_weighted_mean_over_verifiers_and_average_a_half() -> None:
    fused = cohort(
        {(0,): {"a": 0.9, "b": 0.1}, (1,): {"a": 0.5, "b": 0.2}, (2,): {"a": 0.5, "b": 0.3}}, 3, {"a": 3, "b": 1}
    )
    ranks = {standing.path: standing.rank for standing in fused.standings()}
    assert ranks == {
        (0,): (3 * Fraction(5, 6) + Fraction(1, 6)) / 4,
        (1,): (3 * Fraction(2, 6) + Fraction(3, 6))
        / 4,  # level with (2,) for a: both rank in the middle of their places
        (2,): (3 * Fraction(2, 6) + Fraction(5, 6)) / 4,
    }
    assert sum(ranks.values()) / 3 == Fraction(1, 2)


def test_a_verifier_of_weight_0_is_recorded_and_decides_nothing() -> None:
    scores = {(0,): {"a": 0.1, "unseen": 0.9}, (1,): {"a": 0.2, "unseen": 0.1}}
    assert cohort(scores, 2, {"a": 1, "unseen": 0}).standings()[0].path == (1,)


def test_ties_never_widen_the_tree() -> None:
    level = cohort({(n,): {"a": 0.5} for n in range(4)}, 4).cut(2)
    assert level.kept == ((0,), (1,))
    assert level.dropped == ((2,), (3,))
    higher_score_first = cohort({(0,): {"a": 0.2, "b": 0.3}, (1,): {"a": 0.1, "b": 0.9}}, 2).cut(1)
    assert higher_score_first.kept == ((1,),)


def test_below_the_average_goes_even_where_there_is_room() -> None:
    assert cohort({(n,): {"a": n / 10} for n in range(5)}, 5).cut(5).kept == ((2,), (3,), (4,))


def test_what_a_path_has_collected_counts() -> None:
    members = [(0, 0), (1, 0)]
    panels = {(0, 0): (("a", 0.1),), (1, 0): (("a", 0.9),)}
    ahead = Cohort(members, panels, {}, {(0, 0): Fraction(3), (1, 0): Fraction(1)})
    assert [standing.path for standing in ahead.standings()] == [(0, 0), (1, 0)]
    assert ahead.standings()[0].total == Fraction(3) + Fraction(1, 4)


def test_a_lone_branch_stays_before_it_is_scored() -> None:
    assert cohort({}, 1).cut(1).kept == ((0,),)


def test_survivors_are_known_before_the_last_score() -> None:
    partly = cohort({(n,): {"a": n / 10} for n in range(6)}, 8).cut(4)
    assert partly.kept == ((4,), (5,))  # four below already: in the upper half whatever comes
    assert partly.dropped == ((0,), (1,))  # four above already
    assert partly.bets == ((3,),)
    assert set(partly.undecided) == {(2,), (3,), (6,), (7,)}


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
    known = {path: tuple(panel.items()) for path, panel in panels.items()}
    cut = Cohort(members, known, weights, before).cut(width)
    names = list(next(iter(panels.values()), {"a": 0.0}))
    missing = [path for path in members if path not in panels]
    values = [0.0, 0.25, 0.4, 0.5, 0.6, 0.75, 1.0]  # every place among the known ones, ties included
    for filled in itertools.product(itertools.product(values, repeat=len(names)), repeat=len(missing)):
        full = panels | {
            path: dict(zip(names, scores, strict=True)) for path, scores in zip(missing, filled, strict=True)
        }
        stay = survivors(full, weights, before, width)
        assert set(cut.kept) <= stay
        assert not stay & set(cut.dropped)
    if not missing:
        assert not cut.undecided


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


def test_a_verifier_without_weight_is_named() -> None:
    with pytest.raises(ValueError, match="verifier 'b' has no weight, the weights name a"):
        cohort({(0,): {"a": 0.1, "b": 0.2}}, 1, {"a": 1.0})


def test_a_cohort_judged_by_different_panels_is_refused() -> None:
    with pytest.raises(ValueError, match="every branch must be scored by the whole panel"):
        cohort({(0,): {"a": 0.1}, (1,): {"b": 0.1}}, 2)
