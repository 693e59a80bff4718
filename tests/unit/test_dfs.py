"""Depth-first search, step by step, and what becomes of its budget."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from framegrove.search.policies.dfs import DepthFirst, DfsOptions
from framegrove.search.tree import Layout, PanelWork
from framegrove.types import Assessment, SampleWork
from tests.fakes import FREE, PAID, Game, World, played

LAYOUT = Layout(units=3, stages=2)
PLENTY = 100 * PAID.one_sample(LAYOUT)


def game_of(allowed: int = PLENTY, until: float | None = None) -> Game:
    return Game(DepthFirst(LAYOUT, allowed, PAID, DfsOptions(accept=0.5, grow=2, most=3), until=until))


def test_the_example_of_the_docstring() -> None:
    game = game_of()
    assert game.tell({(0,): 0.9}) == [(0, 0)]
    assert game.tell({(0, 0): 0.2}) == [(0, 1), (0, 2)]
    assert SampleWork(((0, 1), (0, 2)), 0, 1) in game.plan.certain  # in one work: they share their past
    assert game.tell({(0, 1): 0.4}) == []  # the other's score is out
    assert game.tell({(0, 2): 0.7}) == [(0, 2, 0)]
    assert game.tell({(0, 2, 0): 0.1}) == [(0, 2, 1), (0, 2, 2)]
    assert game.tell({(0, 2, 1): 0.3, (0, 2, 2): 0.2}) == [(1,)]
    assert game.tell({(1,): 0.8}) == [(1, 0)]
    assert game.tell({(1, 0): 0.1}) == [(1, 1), (1, 2)]
    assert game.tell({(1, 1): 0.8, (1, 2): 0.6}) == [(1, 1, 0)]
    assert game.tell({(1, 1, 0): 0.1}) == [(1, 1, 1), (1, 1, 2)]
    assert game.tell({(1, 1, 1): 0.1, (1, 1, 2): 0.1}) == [(1, 2, 0)]  # accepted before, and not tried yet
    assert game.plan.winner is None
    assert game.tell({(1, 2, 0): 0.6}) == []
    assert game.plan.winner == (1, 2, 0)
    assert game.plan.at_most == len(game.plan.certain)
    assert {(0,), (1, 1), (0, 2, 1)} <= game.plan.dropped.keys()
    assert not game.plan.is_dropped((1, 2, 0))


def test_children_may_be_stretches_that_are_judged_as_whole_videos() -> None:
    layout = Layout(units=5, stages=2)
    game = Game(DepthFirst(layout, PLENTY, PAID, DfsOptions(accept=0.5, grow=2, most=3, every=2, whole=True)))
    assert game.policy.assessments == {Assessment.FINAL}
    assert game.tell({(0, 0): 0.9}) == [(0, 0, 0), (0, 0, 0, 0)]
    assert set(game.plan.certain) >= {SampleWork(((0,),), 0, 1), PanelWork((0, 0), Assessment.FINAL)}
    told = game.tell({(0, 0, 0, 0): 0.3})
    assert told == [(0, 0, 1), (0, 0, 2), (0, 0, 1, 0), (0, 0, 2, 0)]  # the first units together
    # In one work: they share their past, and what follows does not.
    assert SampleWork(((0, 0, 1), (0, 0, 2)), 0, 1) in game.plan.certain
    game.tell({(0, 0, 1, 0): 0.6, (0, 0, 2, 0): 0.7})
    assert PanelWork((0, 0, 2, 0, 0), Assessment.FINAL) in game.plan.certain  # the last stretch is a single unit
    game.tell({(0, 0, 2, 0, 0): 0.8})
    assert game.plan.winner == (0, 0, 2, 0, 0)


def test_a_picture_is_not_judged_as_a_video() -> None:
    game = Game(DepthFirst(LAYOUT, PLENTY, PAID, DfsOptions(whole=True)))
    assert PanelWork((0,), Assessment.IMAGE) in game.plan.certain
    assert game.tell({(0,): 0.9}) == [(0, 0)]
    assert PanelWork((0, 0), Assessment.FINAL) in game.plan.certain


def test_a_whole_video_is_accepted_from_until_on() -> None:
    game = game_of(until=0.9)
    game.tell({(0,): 0.9})
    game.tell({(0, 0): 0.9})
    assert game.tell({(0, 0, 0): 0.8}) == [(0, 0, 1), (0, 0, 2)]
    game.tell({(0, 0, 1): 0.95, (0, 0, 2): 0.2})
    assert game.plan.winner == (0, 0, 1)


def test_where_the_budget_ends_the_most_promising_branch_is_finished() -> None:
    one = sum(PAID.unit(LAYOUT, depth) for depth in range(3))
    game = game_of(allowed=one + PAID.sample(0, 0, 1, 1) + PAID.judge(0, LAYOUT.assessment(0)))
    assert game.tell({(0,): 0.2}) == [(1,)]  # one more, not two: the rest is kept back
    assert game.tell({(1,): 0.4}) == [(1, 0), (1, 0, 0)]
    assert game.plan.winner == (1, 0, 0)
    asked = [work.path for work in game.plan.certain if isinstance(work, PanelWork)]
    assert asked == [(0,), (1,)]  # nothing that would follow from more scores


def test_idle_workers_are_told_what_is_likeliest_to_be_needed() -> None:
    """With units that are right four times in five, in the order of how likely each is needed."""
    policy = DepthFirst(LAYOUT, PLENTY, PAID, DfsOptions(expect=0.8, grow=2, most=3))
    policy.start()
    bets = [bet for bet in policy.speculative() if isinstance(bet.work, SampleWork)]
    assert [(bet.work.paths, round(bet.likely, 3)) for bet in bets[:3] if isinstance(bet.work, SampleWork)] == [
        (((0, 0),), 0.8),
        (((0, 0, 0),), 0.64),
        (((1,),), 0.2),
    ]
    assert [bet.likely for bet in bets] == sorted((bet.likely for bet in bets), reverse=True)
    assert (((0, 1), (0, 2)), 0.16) in [(bet.work.paths, round(bet.likely, 3)) for bet in bets]


def test_nobody_works_ahead_on_a_branch_that_is_closed() -> None:
    game = game_of()
    game.tell({(0,): 0.9})
    game.tell({(0, 0): 0.1})
    assert game.tell({(0, 1): 0.1, (0, 2): 0.1}) == [(1,)]  # (0) was accepted, and has no good child
    assert not {bet.work for bet in game.policy.speculative()} & set(game.plan.certain)


class Hoarder(DepthFirst):
    """Drops nothing before there is a winner."""

    def _forget(self) -> None:
        pass


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    units=st.integers(1, 7),
    multiple=st.floats(1.5, 30),
    every=st.integers(1, 3),
    accept=st.sampled_from([0.3, 0.6, 0.9]),
)
def test_few_branches_are_kept_and_the_outcome_is_as_if_all_were(
    seed: int, units: int, multiple: float, every: int, accept: float
) -> None:
    layout = Layout(units=units, stages=2)
    options = DfsOptions(accept=accept, every=every, whole=every > 1)
    allowed = int(multiple * PAID.one_sample(layout))
    policies = [kind(layout, allowed, PAID, options) for kind in (DepthFirst, Hoarder)]
    if policies[0].least > allowed:
        return
    kept, all_ = (played(policy, World(seed=seed, aspects=("only",))) for policy in policies)
    assert kept.winner == all_.winner
    assert list(kept.certain) == list(all_.certain)
    # Of every length: one that is open, its siblings, and one that may be finished, with what it grew from.
    assert len(policies[0]._branches) <= units * (units + options.most + 1) + 1


def test_what_cannot_win_is_dropped_at_once() -> None:
    game = game_of()
    game.tell({(0,): 0.9})
    game.tell({(0, 0): 0.1})
    game.tell({(0, 1): 0.2, (0, 2): 0.15})  # (0) is closed, and (0, 1) the best of its length
    assert game.plan.dropped.keys() == {(0, 0), (0, 2)}
    game.tell({(1,): 0.4})
    assert game.plan.dropped.keys() == {(0, 0), (0, 2), (1,)}  # less likely than (0), which is as long
    game.tell({(2,): 0.95})
    game.tell({(2, 0): 0.3})
    game.tell({(2, 1): 0.1, (2, 2): 0.1})
    assert {(2, 1), (2, 2), (0,)} <= game.plan.dropped.keys()  # (2) and (2, 0) are better than (0) and (0, 1)


@pytest.mark.parametrize("prices", [FREE, PAID])
def test_with_enough_budget_the_winner_is_right_wherever_a_right_one_can_be_grown(prices: object) -> None:
    for seed in range(30):
        world = World(seed=seed, aspects=("only",))
        policy = DepthFirst(LAYOUT, PLENTY, PAID)
        winner = played(policy, world).winner
        assert winner is not None
        for length in range(1, 4):
            path = winner[:length]
            assert world.score(str(path), LAYOUT.assessment(length - 1), "only") >= 0.5


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    units=st.integers(1, 8),
    multiple=st.floats(1.5, 8),
    accept=st.floats(0.05, 0.95),
    grow=st.integers(1, 4),
    most=st.integers(1, 5),
    every=st.integers(1, 5),
    whole=st.booleans(),
)
def test_it_ends_within_its_budget_whatever_the_scores(
    seed: int, units: int, multiple: float, accept: float, grow: int, most: int, every: int, whole: bool
) -> None:
    layout = Layout(units=units, stages=2)
    allowed = math.ceil(multiple * sum(PAID.unit(layout, depth) for depth in range(units)))
    options = DfsOptions(accept=accept, grow=grow, most=most, every=every, whole=whole)
    plan = played(DepthFirst(layout, allowed, PAID, options), World(seed=seed))
    assert plan.winner is not None
    assert len(plan.winner) == units
    assert PAID.works(tuple(plan.certain)) <= allowed
    sampled = {path for work in plan.certain if isinstance(work, SampleWork) for path in work.paths}
    assert all(path[:-1] in sampled or len(path) == 1 for path in sampled)
