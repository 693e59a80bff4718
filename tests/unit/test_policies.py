"""Policies decide from scores alone: whatever the order, and never against what they said before."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from framegrove.config.base import ConfigError
from framegrove.config.search import SearchConfig
from framegrove.errors import UserError
from framegrove.search.fusion import Scoring
from framegrove.search.policies import Allotment, find, linear, make_policy, summaries
from framegrove.search.policies.linear import Linear
from framegrove.search.policies.tof import TreeOfFrames
from framegrove.search.rounds import TreeShape
from framegrove.search.tree import Decision, Layout, PanelWork, Plan, Policy, Scores, grows_once
from framegrove.types import Assessment, Path, SampleWork
from tests.fakes import FREE, PAID, World, replayed


def small() -> TreeOfFrames:
    return TreeOfFrames(
        Layout(3, 3, draft_stage=1),
        TreeShape(roots=4, children=(2, 2), widths=(2, 1, 1)),
        roots_per_work=2,
    )


def test_tree_of_frames_step_by_step() -> None:
    policy, plan = small(), Plan()
    plan.add(policy.start())
    assert tuple(plan.certain) == (
        SampleWork(((0,), (1,)), 0, 1),
        SampleWork(((2,), (3,)), 0, 1),
        *(PanelWork((root,), Assessment.POTENTIAL) for root in range(4)),
    )
    assert not list(policy.speculative())

    def answer(assessment: Assessment, values: dict[Path, float]) -> None:
        for path, value in values.items():
            plan.add(policy.judged(PanelWork(path, assessment), (("only", value),)))

    answer(Assessment.POTENTIAL, {(0,): 0.2, (1,): 0.9})
    assert next(iter(policy.speculative())).work == SampleWork(((1,),), 2, 2)  # ahead so far: worth working ahead
    answer(Assessment.POTENTIAL, {(2,): 0.1})
    assert SampleWork(((1,),), 2, 2) in plan.certain  # two below already: stays, whatever root 3 is like
    assert plan.dropped == {(2,): Assessment.POTENTIAL}

    answer(Assessment.POTENTIAL, {(3,): 0.5})
    assert tuple(plan.certain)[6:] == (
        SampleWork(((1,),), 2, 2),
        PanelWork((1,), Assessment.IMAGE),
        SampleWork(((3,),), 2, 2),
        PanelWork((3,), Assessment.IMAGE),
    )
    answer(Assessment.IMAGE, {(1,): 0.3, (3,): 0.6})
    assert tuple(plan.certain)[10:] == (
        SampleWork(((3, 0), (3, 1)), 0, 2),  # siblings in step: they share their past
        PanelWork((3, 0), Assessment.MOTION),
        PanelWork((3, 1), Assessment.MOTION),
    )
    answer(Assessment.MOTION, {(3, 0): 0.3, (3, 1): 0.2})
    answer(Assessment.FINAL, {(3, 0, 0): 0.4, (3, 0, 1): 0.7})
    assert plan.winner == (3, 0, 1)
    assert plan.at_most == len(plan.certain)
    best = next(judgement for judgement in plan.judgements if judgement.path == plan.winner)
    assert best.total == 3 * 0.75  # three cohorts of two, ahead in each; the draft's rank is not counted


def scored(assessment: Assessment, values: dict[Path, float]) -> dict[PanelWork, Scores]:
    return {PanelWork(path, assessment): (("only", value),) for path, value in values.items()}


def test_the_paths_score_is_collected_over_depths() -> None:
    def winner(path_score: Literal["last", "sum"], finals: dict[Path, float]) -> Path | None:
        tree = TreeOfFrames(
            Layout(2, 1), TreeShape(roots=4, children=(1,), widths=(2,)), scoring=Scoring(path=path_score)
        )
        return replayed(tree, images | scored(Assessment.FINAL, finals)).winner

    images = scored(Assessment.IMAGE, {(0,): 0.1, (1,): 0.9, (2,): 0.2, (3,): 0.8})
    # 7/8 + 1/4 against 5/8 + 3/4
    assert winner("sum", {(1, 0): 0.4, (3, 0): 0.5}) == (3, 0)
    assert winner("sum", {(1, 0): 0.5, (3, 0): 0.5}) == (1, 0)
    assert winner("last", {(1, 0): 0.5, (3, 0): 0.5}) == (1, 0)  # the earlier of equals


def test_by_the_newest_rank_alone_nobody_waits_for_a_whole_cohort() -> None:
    def plan(scores: dict[PanelWork, Scores]) -> Plan:
        shape = TreeShape(roots=4, children=(1,), widths=(2,))
        return replayed(TreeOfFrames(Layout(2, 1), shape, scoring=Scoring(path="last")), scores)

    images = scored(Assessment.IMAGE, {(0,): 0.1, (1,): 0.9, (2,): 0.2})
    assert SampleWork(((1, 0),), 0, 0) in plan(images).certain
    images |= scored(Assessment.IMAGE, {(3,): 0.8})
    assert plan(images | scored(Assessment.FINAL, {(1, 0): 0.4, (3, 0): 0.5})).winner == (3, 0)


def test_linear_asks_once_and_takes_the_best() -> None:
    def plan(finals: dict[Path, float]) -> Plan:
        return replayed(Linear(Layout(2, 3), roots=3), scored(Assessment.FINAL, finals))

    assert tuple(plan({}).certain)[:3] == (
        SampleWork(((0,),), 0, 2),
        SampleWork(((0, 0),), 0, 2),
        PanelWork((0, 0), Assessment.FINAL),
    )
    assert len(plan({}).certain) == plan({}).at_most == 9
    assert plan({(0, 0): 0.5, (1, 0): 0.9}).winner is None
    best = plan({(0, 0): 0.5, (1, 0): 0.9, (2, 0): 0.1})
    assert best.winner == (1, 0)
    assert set(best.dropped) == {(0, 0), (2, 0)}


def test_linear_lets_go_of_a_video_as_soon_as_there_is_a_better_one() -> None:
    policy, plan = Linear(Layout(2, 3), roots=3), Plan(grows_once=True)
    plan.add(policy.start())
    ended = [
        plan.add(policy.judged(PanelWork((root, 0), Assessment.FINAL), (("only", score),)))
        for root, score in ((0, 0.5), (1, 0.9), (2, 0.1))
    ]
    assert ended == [[], [(0,)], [(2,)]]
    assert list(plan.dropped) == [(0, 0), (2, 0)]


def test_a_branch_whose_children_are_all_dropped_has_ended() -> None:
    shape = TreeShape(roots=3, children=(2,), widths=(2,))
    policy, plan = TreeOfFrames(Layout(2, 1), shape), Plan(grows_once=True)
    plan.add(policy.start())
    values: dict[Path, float] = {(0,): 0.9, (1,): 0.8, (2,): 0.1}
    for work, scores in scored(Assessment.IMAGE, values).items():
        plan.add(policy.judged(work, scores))
    assert set(plan.dropped) == {(2,)}
    values = {(1, 0): 0.1, (1, 1): 0.2, (0, 0): 0.3, (0, 1): 0.9}
    ended = [plan.add(policy.judged(work, scores)) for work, scores in scored(Assessment.FINAL, values).items()]
    assert [(1,)] in ended
    assert plan.ended == {(1,)}
    assert plan.is_dead((1,))
    assert not plan.is_dropped((1,))
    assert plan.winner == (0, 1)


def test_single_asks_nobody() -> None:
    policy, allotment = make_policy(SearchConfig(policy="none", budget="4x"), 3, 3, FREE)
    plan = replayed(policy, {})
    assert tuple(plan.certain) == tuple(SampleWork(((0,) * length,), 0, 2) for length in (1, 2, 3))
    assert plan.winner == (0, 0, 0)
    assert plan.at_most == 3
    assert allotment.worst_case == allotment.one_sample
    assert not find("none").judged


@st.composite
def any_policy(draw: st.DrawFn) -> Callable[[], tuple[Policy, Allotment]]:
    """What makes a policy, with options of all kinds."""
    name = draw(st.sampled_from(["tof", "tof", "tree", "tree", *summaries()]))
    units = draw(st.integers(1, 5))
    config = SearchConfig(
        policy=name,
        budget=f"{draw(st.sampled_from([1, 1.5, 3, 4, 7.5]))}x",
        path_score=draw(st.sampled_from([None, "last", "sum", "min"])),
        fusion=draw(st.sampled_from([None, "log-p", "ranks", "z-scores"])),
        until=draw(st.sampled_from([None, 0.5, 0.9])),
        options={
            "tof": {
                "roots_per_work": draw(st.integers(1, 4)),
                "branching": draw(st.sampled_from(["units", "prompts", "never"])),
            },
            "tree": {
                "select": draw(st.sampled_from(["top", "threshold", "multinomial", "systematic"])),
                "every": draw(st.integers(1, 3)),
            },
            "dfs": {
                "accept": draw(st.sampled_from([0.3, 0.6])),
                "every": draw(st.integers(1, 3)),
                "whole": draw(st.booleans()),
            },
            "evo": {
                "accept": draw(st.sampled_from([0.1, 0.6])),
                "population": draw(st.sampled_from([None, 2, 5])),
                "elite": draw(st.integers(1, 3)),
                "generations": draw(st.integers(1, 4)),
            },
        },
    )
    stages = draw(st.integers(2 if name == "pyramid" else 1, 3))
    given_units = min(draw(st.integers(0, 1)), units - 1)
    return functools.partial(make_policy, config, units, stages, PAID, given=given_units)


@settings(max_examples=200, deadline=None)
@given(
    make=any_policy(), seed=st.integers(0, 2**32), grid=st.sampled_from([1, 2, 5, 1000]), orders=st.integers(0, 2**32)
)
def test_decisions_only_add_and_the_order_of_scores_does_not_matter(
    make: Callable[[], tuple[Policy, Allotment]], seed: int, grid: int, orders: int
) -> None:
    world = World(seed=seed, grid=grid)
    first, second = (play(make()[0], world, random.Random(orders + n)) for n in range(2))
    assert first.winner == second.winner
    assert set(first.certain) == set(second.certain)
    assert first.dropped == second.dropped
    assert first.ended == second.ended
    check_ends(make()[0], first)
    assert set(first.judgements) == set(second.judgements)
    assert first.at_most == second.at_most == len(first.certain)


def play(policy: Policy, world: World, order: random.Random) -> Plan:
    """Score one certain work after the other, in random order; every decision must add to the ones before."""
    plan = Plan(policy.layout.prefix, grows_once(policy))
    plan.add(policy.start())
    told: set[PanelWork] = set()
    while open_ := [work for work in plan.certain if isinstance(work, PanelWork) and work not in told]:
        work = order.choice(open_)
        told.add(work)
        scores = tuple((a, world.score(str(work.path), work.assessment, a)) for a in world.aspects)
        decision, most = policy.judged(work, scores), plan.at_most
        check_adds(decision, plan)
        plan.add(decision)
        assert len(plan.certain) <= plan.at_most <= most
        check_speculation(policy, plan)
    return plan


def check_adds(decision: Decision, plan: Plan) -> None:
    assert not set(decision.works) & plan.certain.keys()
    assert len(set(decision.works)) == len(decision.works)
    assert not {path for path, _ in decision.dropped} & plan.dropped.keys()
    assert not any(plan.is_dead(work.paths[0][:-1]) for work in decision.works if isinstance(work, SampleWork))
    assert not set(decision.judgements) & set(plan.judgements)
    assert plan.winner is None or decision.winner in (None, plan.winner)


def check_ends(policy: Policy, plan: Plan) -> None:
    """Whatever did not win is let go, where a policy lets go of anything by itself."""
    sampled = {path for work in plan.certain if isinstance(work, SampleWork) for path in work.paths}
    losers = {path for path in sampled if plan.winner is not None and plan.winner[: len(path)] != path}
    assert not grows_once(policy) or all(map(plan.is_dead, losers))
    assert not plan.ended & plan.dropped.keys()


def check_speculation(policy: Policy, plan: Plan) -> None:
    bets = list(policy.speculative())
    assert all(0 < bet.likely <= 1 for bet in bets)
    assert len({bet.work for bet in bets}) == len(bets)
    for work, _ in bets:
        assert work not in plan.certain
        paths = work.paths if isinstance(work, SampleWork) else (work.path,)
        assert not any(plan.is_dropped(path) for path in paths)


def test_a_policy_from_elsewhere_is_found_by_its_dotted_name() -> None:
    assert find("framegrove.search.policies.linear:ENTRY") is linear.ENTRY
    for name, says in (
        (
            "bees",
            "there is no policy 'bees': choose one of single, linear, tof, tree, beam, smc, halving, dfs, evo, pyramid",
        ),
        ("nowhere.at.all:ENTRY", "cannot be imported"),
        ("framegrove.search.policies.linear:Linear", "not a PolicyEntry"),
    ):
        with pytest.raises(UserError, match=says):
            find(name)


def test_unknown_options_are_refused_with_the_policys_own() -> None:
    with pytest.raises(ConfigError, match=r"options.linear: unknown key 'widths', allowed are roots"):
        make_policy(SearchConfig(policy="linear", options={"linear": {"widths": [1]}}), 3, 3, FREE)
    with pytest.raises(ConfigError, match="every width must be at least 1"):
        make_policy(SearchConfig(policy="tof", options={"tof": {"widths": [0]}}), 3, 3, FREE)
