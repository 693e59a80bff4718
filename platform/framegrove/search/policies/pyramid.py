"""Coarse to fine: every unit is drafted several times at the pyramid's coarse stages, and only the promising drafts are
refined.

    drafts 6, refine 2, keep 1: unit 0 is drafted six times and previewed. The best two are refined and judged, and the
    better one goes on: six drafts of unit 1, siblings that share their past, and so on.

A draft costs the coarse stages, and its preview a few large steps at the fine ones, its decoding and its judgement. It
pays where the fine stages cost much more than decoding does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from framegrove.config.base import Config
from framegrove.search.budget import Allotment, BudgetError, amounts
from framegrove.search.cohorts import ScoreCohort
from framegrove.search.fusion import Scoring
from framegrove.search.policies.by_rounds import ByRounds
from framegrove.search.policies.registry import PolicyEntry, Task
from framegrove.search.policies.single import unsearched
from framegrove.search.rounds import Round, worst_case
from framegrove.search.tree import TOGETHER, Layout, Policy
from framegrove.types import Assessment, Path


class PyramidOptions(Config):
    """Options of coarse-to-fine search."""

    drafts: int | None = Field(
        default=None, ge=1, description="drafts of a unit for each branch that is kept; default: as the budget allows"
    )
    refine: float = Field(
        default=1 / 3, gt=0, le=1, description="share of the drafts, rounded up, that are refined to full resolution"
    )
    keep: int = Field(default=1, ge=1, description="branches that go on to the next unit")
    draft_stages: int | None = Field(
        default=None, ge=1, description="coarse stages that a draft runs through; default: all but the finest"
    )


class Pyramid(ByRounds):
    """Drafts, refines and keeps, unit by unit, by path scores."""

    def __init__(
        self,
        layout: Layout,
        rounds: Sequence[Round],
        roots: int,
        scoring: Scoring = Scoring(),  # noqa: B008 - it is frozen
    ) -> None:
        super().__init__(layout, rounds, roots, scoring, self._best)

    def _best(self, step: Round, members: Sequence[Path], before: Mapping[Path, Any]) -> ScoreCohort:
        return ScoreCohort(members, step.assessment, self._scoring, before, step.width)


def rounds_of(layout: Layout, drafts: int, options: PyramidOptions) -> tuple[Round, ...]:
    """Two rounds for each unit: its drafts, and what is refined of them."""
    draft, last = layout.draft_stage, layout.last_stage
    assert draft is not None, "a pyramid of one stage has no drafts"
    rounds: list[Round] = []
    entrants = 1
    for depth in range(layout.given, layout.units):
        first = depth == layout.given
        members = drafts * (options.keep if first else entrants)
        refined = math.ceil(members * options.refine)
        width = min(options.keep, refined) if depth < layout.units - 1 else 1
        children, together = (0, TOGETHER) if first else (drafts, 1)
        rounds.append(Round(depth, Assessment.POTENTIAL, 0, draft, refined, children, together))
        rounds.append(Round(depth, layout.assessment(depth), draft + 1, last, width))
        entrants = width
    return tuple(rounds)


def plan(task: Task, options: PyramidOptions) -> tuple[Policy, Allotment]:
    """As many drafts of each unit as the budget pays for."""
    layout = Layout(task.units, task.stages, _draft_stage(task, options), task.given)
    one, allowed = amounts(task.multiple, layout, task.prices)
    if layout.draft_stage is None:
        raise BudgetError(
            "a pyramid of one stage has no coarse stages to draft at: choose another policy, such as beam"
        )

    def sized(drafts: int) -> tuple[tuple[Round, ...], int, int]:
        rounds = rounds_of(layout, drafts, options)
        roots = drafts * options.keep
        return rounds, roots, worst_case(rounds, roots, task.prices)

    drafts = options.drafts or 1
    if options.drafts is None:
        while sized(drafts + 1)[2] <= allowed:
            drafts += 1
        if drafts == 1:
            return unsearched(task)  # there is nothing to choose from
    rounds, roots, price = sized(drafts)
    if price > allowed:
        raise BudgetError(
            f"{drafts} drafts of every unit cost {price / one:.4g}x and the budget is {task.multiple:g}x: raise it or "
            "lower drafts"
        )
    return Pyramid(layout, rounds, roots, task.scoring), Allotment(one, allowed, price)


def _draft_stage(task: Task, options: PyramidOptions) -> int | None:
    count = task.stages - 1 if options.draft_stages is None else options.draft_stages
    if count >= task.stages > 1:
        raise BudgetError(
            f"draft_stages is {count} and the pyramid has {task.stages} stages: allowed are 1 to {task.stages - 1}"
        )
    return count - 1 if task.stages > 1 else None


ENTRY = PolicyEntry(
    name="pyramid",
    summary="coarse to fine: units are drafted at the coarse stages, and the promising drafts refined",
    options=PyramidOptions,
    plan=plan,
    compares=lambda options: True,
)
