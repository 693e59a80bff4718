"""Policies decide from scores alone: whatever the order, and never against what they said before."""

from __future__ import annotations

import random
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from framegrove.config.search import SearchConfig
from framegrove.search.policies import Linear, TreeOfFrames, make_policy
from framegrove.search.rounds import Shape
from framegrove.search.tree import Layout, Panel, Plan, Policy
from framegrove.types import Assessment, SampleWork, ScoreWork
from tests.fakes import World, fake_cost

SMALL = TreeOfFrames(
    Layout(3, 3, draft_stage=1),
    Shape(roots=4, children=(2, 2), widths=(2, 1, 1)),
    roots_per_work=2,
    path_score="sum",
)


def test_tree_of_frames_step_by_step() -> None:
    scores: dict[ScoreWork, Panel] = {}
    plan = SMALL.plan(scores)
    assert plan.certain == (
        SampleWork(((0,), (1,)), 0, 1),
        SampleWork(((2,), (3,)), 0, 1),
        *(ScoreWork((root,), Assessment.POTENTIAL) for root in range(4)),
    )
    assert plan.speculative == ()

    answer(scores, Assessment.POTENTIAL, {(0,): 0.2, (1,): 0.9})
    assert SMALL.plan(scores).speculative[0] == SampleWork(((1,),), 2, 2)  # ahead so far: worth a bet
    answer(scores, Assessment.POTENTIAL, {(2,): 0.1})
    plan = SMALL.plan(scores)
    assert SampleWork(((1,),), 2, 2) in plan.certain  # two below already: stays, whatever root 3 is like
    assert plan.dropped == {(2,): Assessment.POTENTIAL}

    answer(scores, Assessment.POTENTIAL, {(3,): 0.5})
    plan = SMALL.plan(scores)
    assert plan.certain[6:] == (
        SampleWork(((1,),), 2, 2),
        SampleWork(((3,),), 2, 2),
        ScoreWork((1,), Assessment.IMAGE),
        ScoreWork((3,), Assessment.IMAGE),
    )
    answer(scores, Assessment.IMAGE, {(1,): 0.3, (3,): 0.6})
    plan = SMALL.plan(scores)
    assert plan.certain[10:] == (
        SampleWork(((3, 0), (3, 1)), 0, 2),  # siblings in step: they share their past
        ScoreWork((3, 0), Assessment.MOTION),
        ScoreWork((3, 1), Assessment.MOTION),
    )
    answer(scores, Assessment.MOTION, {(3, 0): 0.3, (3, 1): 0.2})
    answer(scores, Assessment.FINAL, {(3, 0, 0): 0.4, (3, 0, 1): 0.7})
    plan = SMALL.plan(scores)
    assert plan.winner == (3, 0, 1)
    assert plan.at_most == len(plan.certain)
    best = next(judgement for judgement in plan.judgements if judgement.path == plan.winner)
    assert best.total == 3 * 0.75  # three cohorts of two, ahead in each; the draft's rank is not counted


def test_the_paths_score_is_collected_over_depths() -> None:
    tree = TreeOfFrames(Layout(2, 1), Shape(roots=4, children=(1,), widths=(2,)), path_score="sum")
    scores: dict[ScoreWork, Panel] = {}
    answer(scores, Assessment.IMAGE, {(0,): 0.1, (1,): 0.9, (2,): 0.2, (3,): 0.8})
    answer(scores, Assessment.FINAL, {(1, 0): 0.4, (3, 0): 0.5})
    # 7/8 + 1/4 against 5/8 + 3/4
    assert tree.plan(scores).winner == (3, 0)
    answer(scores, Assessment.FINAL, {(1, 0): 0.5, (3, 0): 0.5})
    assert tree.plan(scores).winner == (1, 0)
    assert replace(tree, path_score="last").plan(scores).winner == (1, 0)  # the earlier of equals


def test_by_the_newest_rank_alone_nobody_waits_for_a_whole_cohort() -> None:
    tree = TreeOfFrames(Layout(2, 1), Shape(roots=4, children=(1,), widths=(2,)))
    scores: dict[ScoreWork, Panel] = {}
    answer(scores, Assessment.IMAGE, {(0,): 0.1, (1,): 0.9, (2,): 0.2})
    assert SampleWork(((1, 0),), 0, 0) in tree.plan(scores).certain
    answer(scores, Assessment.IMAGE, {(3,): 0.8})
    answer(scores, Assessment.FINAL, {(1, 0): 0.4, (3, 0): 0.5})
    assert tree.plan(scores).winner == (3, 0)


def test_linear_asks_once_and_takes_the_best() -> None:
    linear = Linear(Layout(2, 3), roots=3)
    plan = linear.plan({})
    assert plan.certain[:3] == (
        SampleWork(((0,),), 0, 2),
        SampleWork(((0, 0),), 0, 2),
        ScoreWork((0, 0), Assessment.FINAL),
    )
    assert len(plan.certain) == plan.at_most == 9
    scores: dict[ScoreWork, Panel] = {}
    answer(scores, Assessment.FINAL, {(0, 0): 0.5, (1, 0): 0.9})
    assert linear.plan(scores).winner is None
    answer(scores, Assessment.FINAL, {(2, 0): 0.1})
    assert linear.plan(scores).winner == (1, 0)
    assert set(linear.plan(scores).dropped) == {(0, 0), (2, 0)}


POLICIES = st.builds(
    lambda name, budget, units, stages, first, per_work, branching, path_score: make_policy(
        SearchConfig(
            policy=name, budget=f"{budget}x", roots_per_work=per_work, branching=branching, path_score=path_score
        ),
        units,
        stages,
        fake_cost,
        given=min(first, units - 1),
    )[0],
    st.sampled_from(["tof", "tof", "linear"]),
    st.sampled_from([1, 1.5, 3, 4, 7.5]),
    st.integers(1, 5),
    st.integers(1, 3),
    st.integers(0, 1),
    st.integers(1, 4),
    st.sampled_from(["units", "prompts", "never"]),
    st.sampled_from(["last", "sum"]),
)


@settings(max_examples=60, deadline=None)
@given(policy=POLICIES, seed=st.integers(0, 2**32), grid=st.sampled_from([1, 2, 5, 1000]), orders=st.integers(0, 2**32))
def test_knowledge_only_adds_and_its_order_does_not_matter(policy: Policy, seed: int, grid: int, orders: int) -> None:
    world = World(seed=seed, grid=grid)
    first, second = (play(policy, world, random.Random(orders + n)) for n in range(2))
    assert first.winner == second.winner
    assert set(first.certain) == set(second.certain)
    assert first.dropped == second.dropped
    assert first.judgements == second.judgements


def play(policy: Policy, world: World, order: random.Random) -> Plan:
    """Score one work after the other, certain or bet, in random order; every plan must extend the one before."""
    scores: dict[ScoreWork, Panel] = {}
    plan = policy.plan(scores)
    while plan.winner is None:
        wanted = [w for w in (*plan.certain, *plan.speculative) if isinstance(w, ScoreWork) and w not in scores]
        work = order.choice(wanted)
        scores[work] = tuple((v, world.score(str(work.path), work.assessment, v)) for v in world.verifiers)
        plan, before = policy.plan(scores), plan
        check_extends(plan, before)
    return plan


def check_extends(plan: Plan, before: Plan) -> None:
    assert set(before.certain) <= set(plan.certain)
    assert len(set(plan.certain)) == len(plan.certain)
    assert before.dropped.items() <= plan.dropped.items()
    assert set(before.judgements) <= set(plan.judgements)
    assert len(plan.certain) <= plan.at_most <= before.at_most
    assert not set(plan.speculative) & set(plan.certain)
    for bet in plan.speculative:
        paths = bet.paths if isinstance(bet, SampleWork) else (bet.path,)
        assert not any(path[:length] in plan.dropped for path in paths for length in range(1, len(path) + 1))


def answer(scores: dict[ScoreWork, Panel], assessment: Assessment, values: dict[tuple[int, ...], float]) -> None:
    scores.update({ScoreWork(path, assessment): (("only", value),) for path, value in values.items()})
