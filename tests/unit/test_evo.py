"""Evolutionary search, step by step, and what becomes of its budget."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from framegrove.config.base import ConfigError
from framegrove.config.search import SearchConfig
from framegrove.lineage import Mutation, branch_name, mutation_of
from framegrove.search.policies import make_policy
from framegrove.search.policies.evo import Evolution, EvoOptions, population_for, price_of_generation
from framegrove.search.tree import Layout, PanelWork, Plan
from framegrove.types import Path, SampleWork
from tests.fakes import FREE, PAID, World, played

LAYOUT = Layout(units=2, stages=2)
PLENTY = 100 * PAID.one_sample(LAYOUT)
MILD = {"strength": 0.6, "jump_strength": 0.6}
OPTIONS = EvoOptions(elite=2, generations=3, accept=0.5, **MILD)


def by(parent: int, number: int) -> int:
    """The index of a mutation with the strengths of these tests."""
    return Mutation(parent, number, 60, 60).index


class Game:
    """A search that is told the scores of branches by name."""

    def __init__(self, allowed: int = PLENTY, until: float | None = None, options: EvoOptions = OPTIONS) -> None:
        self.policy = Evolution(LAYOUT, allowed, 3, PAID, options, until=until)
        self.plan = Plan()
        self.plan.add(self.policy.start())

    def tell(self, scores: dict[Path, float]) -> list[Path]:
        """The branches that are sampled next."""
        before = set(self.plan.certain)
        for path, score in scores.items():
            work = PanelWork(path, LAYOUT.assessment(len(path) - 1))
            assert work in before
            self.plan.add(self.policy.judged(work, (("only", score),)))
        new = [work for work in self.plan.certain if work not in before]
        return [path for work in new if isinstance(work, SampleWork) for path in work.paths]


def test_the_example_of_the_docstring() -> None:
    game = Game()
    assert SampleWork(((0,), (1,), (2,)), 0, 1) in game.plan.certain
    assert game.tell({(0,): 0.9, (1,): 0.4}) == []  # the last may be better still
    assert game.tell({(2,): 0.7}) == [(0, 0), (0, 1), (0, 2)]
    assert set(game.plan.dropped) == {(1,), (2,)}
    first = [(0, by(1, 0)), (0, by(2, 0)), (0, by(1, 1))]
    assert game.tell({(0, 0): 0.1, (0, 1): 0.3, (0, 2): 0.2}) == first
    assert SampleWork(tuple(first), 0, 1) in game.plan.certain  # in one work: they share their past
    assert game.plan.is_dropped((0, 0))
    second = [(0, by(by(1, 0), 0)), (0, by(1, 2)), (0, by(by(1, 0), 1))]
    assert game.tell(dict(zip(first, (0.4, 0.1, 0.2), strict=True))) == second
    assert [branch_name(path) for path in second] == ["0.1~0(60)~0(60)", "0.1~2(60)", "0.1~0(60)~1(60)"]
    assert not game.plan.is_dropped((0, 1))  # of the elite still
    assert game.plan.winner is None
    assert game.tell(dict(zip(second, (0.2, 0.6, 0.1), strict=True))) == []
    assert game.plan.winner == (0, by(1, 2))
    assert game.plan.at_most == len(game.plan.certain)
    assert {(0, 1), *first} <= game.plan.dropped.keys()


def test_after_the_last_generation_the_best_of_all_goes_on() -> None:
    game = Game(options=EvoOptions(generations=2, strength=0.3, jump_strength=0))
    children = game.tell({(0,): 0.1, (1,): 0.45, (2,): 0.2})
    assert children == [(Mutation(1, number, 30, 0).index,) for number in range(3)]
    assert game.tell(dict.fromkeys(children, 0.4)) == [(1, 0), (1, 1), (1, 2)]


def test_a_whole_video_is_accepted_from_until_on() -> None:
    game = Game(until=0.95)
    game.tell({(0,): 0.9, (1,): 0.4, (2,): 0.7})
    assert game.tell({(0, 0): 0.9, (0, 1): 0.3, (0, 2): 0.2}) != []
    game = Game(until=0.85)
    game.tell({(0,): 0.9, (1,): 0.4, (2,): 0.7})
    game.tell({(0, 0): 0.9, (0, 1): 0.3, (0, 2): 0.2})
    assert game.plan.winner == (0, 0)


def test_what_the_budget_pays_for_is_the_size_of_a_generation() -> None:
    first, finishing = price_of_generation(PAID, LAYOUT, 0, 3), PAID.unjudged(LAYOUT, 1)
    game = Game(allowed=first + price_of_generation(PAID, LAYOUT, 0, 2) + finishing)
    low = {(0,): 0.1, (1,): 0.4, (2,): 0.2}
    assert game.tell(low) == [(by(1, 0),), (by(2, 0),)]  # two, not three: the rest is kept back
    assert game.tell({(by(1, 0),): 0.3, (by(2, 0),): 0.1}) == [(1, 0)]  # nobody to compare it with: not judged
    assert game.plan.winner == (1, 0)
    game = Game(allowed=first + finishing)
    assert game.tell(low) == [(1, 0)]
    assert game.plan.winner == (1, 0)


def test_half_of_the_budget_is_for_mutations() -> None:
    for multiple in (3, 4, 8, 16):
        policy, allotment = make_policy(SearchConfig(policy="evo", budget=f"{multiple}x"), 4, 2, FREE)
        assert isinstance(policy, Evolution)
        layout = policy.layout
        fresh = sum(price_of_generation(FREE, layout, depth, policy.population) for depth in range(4))
        assert policy.population == 2 or 2 * fresh <= allotment.allowed
        assert policy.population == population_for(layout, allotment.allowed, FREE)
    assert population_for(layout, 10 * allotment.allowed, FREE) == 8


def test_idle_workers_work_ahead_on_the_leading_child_and_its_mutations() -> None:
    policy = Evolution(LAYOUT, PLENTY, 3, PAID, EvoOptions(elite=1, **MILD))
    plan = Plan()
    plan.add(policy.start())
    for path, score in (((0,), 0.3), ((1,), 0.1)):
        plan.add(policy.judged(PanelWork(path, LAYOUT.assessment(0)), (("only", score),)))
    bets = {bet.work: bet.likely for bet in policy.speculative() if isinstance(bet.work, SampleWork)}
    assert bets == {
        SampleWork(((0, 0), (0, 1), (0, 2)), 0, 1): 0.25,
        SampleWork(((2, 0), (2, 1), (2, 2)), 0, 1): 0.25,
        SampleWork(((by(0, 0),), (by(0, 1),), (by(0, 2),)), 0, 1): 0.25,
        SampleWork(((by(2, 0),), (by(2, 1),), (by(2, 2),)), 0, 1): 0.25,
    }
    plan.add(policy.judged(PanelWork((2,), LAYOUT.assessment(0)), (("only", 0.2),)))
    assert SampleWork(((by(0, 0),), (by(0, 1),), (by(0, 2),)), 0, 1) in plan.certain


def test_strengths_that_change_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match="strength and jump_strength are both 0"):
        make_policy(SearchConfig(policy="evo", options={"evo": {"strength": 0.001, "jump_strength": 0}}), 2, 2, PAID)


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    units=st.integers(1, 6),
    multiple=st.floats(1.5, 12),
    population=st.sampled_from([None, 2, 3, 9]),
    elite=st.integers(1, 4),
    generations=st.integers(1, 5),
    accept=st.floats(0.05, 0.95),
)
def test_it_ends_within_its_budget_and_every_mutation_has_a_judged_parent(
    seed: int, units: int, multiple: float, population: int | None, elite: int, generations: int, accept: float
) -> None:
    options = {"population": population, "elite": elite, "generations": generations, "accept": accept}
    config = SearchConfig(policy="evo", budget=f"{multiple:.3f}", options={"evo": options})
    policy, allotment = make_policy(config, units, 2, PAID)
    plan = played(policy, World(seed=seed))
    assert plan.winner is not None
    assert len(plan.winner) == units
    assert PAID.works(tuple(plan.certain)) <= allotment.allowed
    order = {work: number for number, work in enumerate(plan.certain)}
    judged = {work.path: order[work] for work in plan.certain if isinstance(work, PanelWork)}
    for work, number in order.items():
        for path in work.paths if isinstance(work, SampleWork) else ():
            mutation = mutation_of(path[-1])
            if mutation is not None:
                assert judged[(*path[:-1], mutation.parent)] < number
    sampled = [path for work in plan.certain if isinstance(work, SampleWork) for path in work.paths]
    assert len(set(sampled)) == len(sampled)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32), accept=st.floats(0.05, 0.95))
def test_a_search_stops_at_the_first_generation_in_which_a_child_is_right(seed: int, accept: float) -> None:
    options = EvoOptions(accept=accept, generations=4)
    plan = played(Evolution(LAYOUT, PLENTY, 3, PAID, options), World(seed=seed, aspects=("only",)))
    assert plan.winner is not None
    for length in (1, 2):
        parent = plan.winner[: length - 1]
        judged = [each for each in plan.judgements if each.path[:-1] == parent and len(each.path) == length]
        good = [each.own >= math.log(accept) for each in judged]
        assert not any(good[:-3])  # all before the last generation
        assert any(good) or len(judged) == 12
        best = max(judged, key=lambda each: each.own)
        assert best.own == next(each.own for each in judged if each.path == plan.winner[:length])
