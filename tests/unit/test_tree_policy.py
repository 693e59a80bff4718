"""Breadth-first search, step by step: who has children, and how many."""

from __future__ import annotations

from collections import Counter

import pytest

from framegrove.config.search import SearchConfig
from framegrove.search.budget import BudgetError
from framegrove.search.policies import make_policy
from framegrove.search.policies.tree import HalvingOptions, Leg, Tree, TreeOptions, legs_of
from framegrove.search.tree import Layout, PanelWork, Plan
from framegrove.types import SampleWork
from tests.fakes import FREE, PAID, Game

LAYOUT = Layout(units=3, stages=2)


def game_of(options: TreeOptions, population: int, layout: Layout = LAYOUT) -> Game:
    return Game(Tree(layout, legs_of(layout, population, options), options, seed=3))


def test_the_example_of_the_docstring() -> None:
    game = game_of(TreeOptions(select="top", keep=1 / 3), 6)
    assert [len(work.paths) for work in game.plan.certain if isinstance(work, SampleWork)] == [4, 2]
    assert game.tell({(1,): 0.9, (0,): 0.1, (2,): 0.2, (3,): 0.3}) == []
    assert next(iter(game.policy.speculative())).work == SampleWork(((1, 0), (1, 1), (1, 2)), 0, 1)
    assert game.tell({(5,): 0.1}) == [(1, 0), (1, 1), (1, 2)]  # whatever branch 4 is like
    assert game.tell({(4,): 0.8}) == [(4, 0), (4, 1), (4, 2)]
    assert set(game.plan.dropped) == {(0,), (2,), (3,), (5,)}
    # The path's sum decides: 0.9 x 0.5 and 0.9 x 0.4 before 0.8 x 0.44.
    scores = {(1, 0): 0.5, (1, 1): 0.4, (1, 2): 0.1, (4, 0): 0.44, (4, 1): 0.1, (4, 2): 0.1}
    assert set(game.tell(scores)) == {(1, n, m) for n in (0, 1) for m in range(3)}
    game.tell({(1, n, m): (1 + n + 2 * m) / 10 for n in (0, 1) for m in range(3)})
    assert game.plan.winner == (1, 0, 2)  # 0.5 x 0.5 before 0.4 x 0.6
    assert game.plan.at_most == len(game.plan.certain)


def test_those_above_a_threshold_share_the_population() -> None:
    game = game_of(TreeOptions(select="threshold", threshold=0.5), 5)
    children = game.tell({(0,): 0.6, (1,): 0.2, (2,): 0.9, (3,): 0.4, (4,): 0.5})
    assert Counter(path[0] for path in children) == {2: 2, 0: 2, 4: 1}  # the best ones have one more
    nobody = game_of(TreeOptions(select="threshold", threshold=0.9), 3)
    assert {path[0] for path in nobody.tell({(0,): 0.1, (1,): 0.3, (2,): 0.2})} == {1}


def test_systematic_resampling_gives_everyone_its_share_to_within_one() -> None:
    game = game_of(TreeOptions(select="systematic"), 8)
    scores = {(n,): (n + 1) / 10 for n in range(8)}
    drawn = Counter(path[0] for path in game.tell(scores))
    assert sum(drawn.values()) == 8
    for (n,), score in scores.items():
        assert abs(drawn[n] - 8 * score / sum(scores.values())) < 1


def test_multinomial_resampling_follows_the_scores_and_the_seed() -> None:
    counts: Counter[int] = Counter()
    for seed in range(200):
        tree = Tree(LAYOUT, legs_of(LAYOUT, 4, TreeOptions()), TreeOptions(select="multinomial"), seed=seed)
        plan = Plan()
        plan.add(tree.start())
        for n, score in enumerate((0.1, 0.2, 0.3, 0.4)):
            plan.add(tree.judged(PanelWork((n,), LAYOUT.assessment(0)), (("only", score),)))
        counts += Counter(p[0] for w in plan.certain if isinstance(w, SampleWork) for p in w.paths if len(p) == 2)
    assert counts.total() == 800
    for n, share in enumerate((0.1, 0.2, 0.3, 0.4)):
        assert counts[n] / 800 == pytest.approx(share, abs=0.06)


def test_halving_rejects_the_worse_half_whenever_the_length_has_doubled() -> None:
    layout = Layout(units=16, stages=2)
    legs = legs_of(layout, 8, HalvingOptions())
    assert legs == (Leg(0, 0, 8, 4), Leg(1, 1, 4, 2), Leg(2, 3, 2, 1), Leg(4, 7, 1, 1), Leg(8, 15, 1, 1))
    game = game_of(HalvingOptions(), 4, layout)
    game.tell({(n,): n / 10 for n in range(4)})
    game.tell({(2, 0): 0.9, (3, 0): 0.1})
    assert game.plan.winner is None
    game.tell({(2, 0, 0, 0): 0.1})
    game.tell({(2, *(0,) * 7): 0.1})
    assert game.plan.winner == (2, *(0,) * 15)  # the last one left: nothing to choose from, so it is not judged
    assert PanelWork(game.plan.winner, layout.assessment(15)) not in game.plan.certain


def test_units_that_are_not_judged_are_grown_at_once() -> None:
    game = game_of(TreeOptions(select="top", every=2, keep=0.5), 2, Layout(units=5, stages=2))
    asked = [len(work.path) for work in game.plan.certain if isinstance(work, PanelWork)]
    assert asked == [2, 2]
    game.tell({(0, 0): 0.9, (1, 0): 0.8})
    assert {(0, 0, 0, 0), (0, 0, 1, 0)} <= {p for w in game.plan.certain if isinstance(w, SampleWork) for p in w.paths}


def test_a_population_that_the_budget_cannot_pay_for_is_refused() -> None:
    def make(options: dict[str, object]) -> object:
        return make_policy(SearchConfig(policy="beam", budget="4x", options={"beam": options}), 4, 3, PAID)

    with pytest.raises(BudgetError, match=r"a population of 9 costs up to .*x and the budget is 4x: raise it or lower"):
        make({"population": 9})
    make({"population": 3})


def test_a_lone_survivor_is_judged_only_where_it_may_matter() -> None:
    policy, allotment = make_policy(SearchConfig(policy="smc", budget="6x"), 4, 3, FREE, seed=1)
    assert isinstance(policy, Tree)
    assert len({leg.population for leg in policy.legs}) == 1
    assert allotment.utilisation > 0.8
