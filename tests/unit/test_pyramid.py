"""Coarse-to-fine search, step by step."""

from __future__ import annotations

import pytest

from framegrove.config.search import SearchConfig
from framegrove.search.budget import BudgetError
from framegrove.search.policies import make_policy
from framegrove.search.policies.pyramid import Pyramid
from framegrove.search.tree import PanelWork, Plan
from framegrove.types import Assessment, SampleWork
from tests.fakes import PAID


def test_drafts_are_previewed_and_the_best_are_refined() -> None:
    config = SearchConfig(policy="pyramid", budget="20x", options={"pyramid": {"drafts": 6, "refine": 0.33}})
    policy, allotment = make_policy(config, 2, 3, PAID)
    assert isinstance(policy, Pyramid)
    plan = Plan()
    plan.add(policy.start())

    def tell(assessment: Assessment, scores: dict[tuple[int, ...], float]) -> list[SampleWork]:
        before = set(plan.certain)
        for path, score in scores.items():
            plan.add(policy.judged(PanelWork(path, assessment), (("only", score),)))
        return [work for work in plan.certain if work not in before and isinstance(work, SampleWork)]

    drafted = [work.paths for work in plan.certain if isinstance(work, SampleWork)]
    assert drafted == [((0,), (1,), (2,), (3,)), ((4,), (5,))]
    drafts = {(n,): 0.1 * n for n in range(6)}
    assert set(tell(Assessment.POTENTIAL, drafts)) == {SampleWork(((n,),), 2, 2) for n in (4, 5)}
    (siblings,) = tell(Assessment.IMAGE, {(4,): 0.9, (5,): 0.4})
    assert siblings == SampleWork(tuple((4, n) for n in range(6)), 0, 1)  # they share their past
    refined = tell(Assessment.POTENTIAL, {(4, n): 1 - 0.1 * n for n in range(6)})
    assert {work.paths for work in refined} == {((4, 0),), ((4, 1),)}
    tell(Assessment.FINAL, {(4, 0): 0.5, (4, 1): 0.6})
    assert plan.winner == (4, 1)
    assert plan.at_most == len(plan.certain)
    assert PAID.works(tuple(plan.certain)) == allotment.worst_case  # whatever the scores


def test_what_it_cannot_do_is_refused() -> None:
    with pytest.raises(BudgetError, match="one stage has no coarse stages"):
        make_policy(SearchConfig(policy="pyramid"), 4, 1, PAID)
    with pytest.raises(BudgetError, match=r"9 drafts of every unit cost .* and the budget is 4x"):
        make_policy(SearchConfig(policy="pyramid", options={"pyramid": {"drafts": 9}}), 4, 3, PAID)
    with pytest.raises(BudgetError, match="allowed are 1 to 2"):
        make_policy(SearchConfig(policy="pyramid", options={"pyramid": {"draft_stages": 3}}), 4, 3, PAID)
