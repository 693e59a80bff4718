"""Tree-of-Frames as published (VT1 alg. 2), with unit 0 pruned inside the pyramid: the reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from typing import Any

from pydantic import Field, field_validator

from framegrove.config.base import Config
from framegrove.search.budget import Allotment, BudgetError, allot_tof
from framegrove.search.cohorts import ScoreCohort
from framegrove.search.fusion import Scoring
from framegrove.search.policies.by_rounds import ByRounds
from framegrove.search.policies.registry import PolicyEntry, Task
from framegrove.search.policies.single import unsearched
from framegrove.search.ranks import Cohort
from framegrove.search.rounds import Branching, Round, TreeShape, rounds_of
from framegrove.search.tree import Layout, Policy
from framegrove.types import Path


class TofOptions(Config):
    """Options of Tree-of-Frames. Without ``roots`` and ``widths`` the tree is the one that uses the budget best."""

    roots: int | None = Field(
        default=None, ge=1, description="first units to start with; default: as the budget allows"
    )
    widths: tuple[int, ...] | None = Field(
        default=None,
        description="most branches kept by each cut: of the drafts, then at every depth but the last; default: as the "
        "budget allows",
    )
    branching: Branching = Field(
        default="prompts",
        description="where a branch has two children: at all units, where the prompt's stages switch (VT1), or never",
    )
    draft_stages: int | None = Field(
        default=None, ge=0, description="coarse stages that a draft of unit 0 runs through; default: all but the finest"
    )
    roots_per_work: int = Field(
        default=4,
        ge=1,
        description="drafts that one generator denoises in step: with fewer, more generators can begin at once. Never "
        "chosen by the number of generators, for the rounding of each draft depends on it",
    )

    @field_validator("widths")
    @classmethod
    def _widths_keep_something(cls, given: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if given is not None and min(given, default=1) < 1:
            raise ValueError(f"every width must be at least 1, not {list(given)}")
        return given


class TreeOfFrames(ByRounds):
    """Many first units, few last ones.

    Roots are drafted at the coarse stages and judged by a preview (POTENTIAL); those that stay are refined and
    judged as images (IMAGE). At every later depth each kept branch grows children with noise of their own, judged for
    motion (MOTION), at the end as whole videos (FINAL). Each round keeps the branches whose rank is not below its
    average, up to the width in ``shape``; the best of the last round wins.

    As published, branches are compared by the sum of their fused ranks along the path; POTENTIAL ranks are in no sum.
    ``scoring`` may say otherwise. By the newest rank alone ("last"), nobody waits for a whole cohort's scores: a branch
    that is certain to stay is extended before the rest of its cohort is scored. Likely ones are speculated on.
    """

    def __init__(
        self,
        layout: Layout,
        shape: TreeShape,
        roots_per_work: int = 4,
        scoring: Scoring = Scoring(),  # noqa: B008 - it is frozen
    ) -> None:
        self.shape = shape
        super().__init__(layout, rounds_of(layout, shape, roots_per_work), shape.roots, scoring, self._below_average)

    def _below_average(self, step: Round, members: Sequence[Path], before: Mapping[Path, Any]) -> Cohort | ScoreCohort:
        """Drops what is below its cohort's average: by ranks as the scores come in, or by what the scoring says."""
        if self._scoring.fusion in (None, "ranks") and self._scoring.path != "min":
            collected = {**dict.fromkeys(members, Fraction(0)), **before}
            return Cohort(members, self._scoring.weigh, collected, step.width)
        return ScoreCohort(
            members, step.assessment, self._scoring, before, step.width, fusion="ranks", above_average=True
        )


def plan(task: Task, options: TofOptions) -> tuple[Policy, Allotment]:
    """The widest tree that the budget pays for, with drafts unless they leave room for one root only.

    Where it pays for a single path, there is nothing to choose, and nothing is judged.
    """
    layout = Layout(task.units, task.stages, _draft_stage(task, options), task.given)
    if options.draft_stages is None and options.widths is None:
        with suppress(BudgetError):
            tree, allotment = _tree(task, options, layout)
            if tree.shape.roots > 1:
                return tree, allotment
        layout = replace(layout, draft_stage=None)  # a lone root is not worth a preview
    try:
        tree, allotment = _tree(task, options, layout)
    except BudgetError:
        if task.multiple < 1 or options.roots is not None or options.widths is not None:
            raise
        return unsearched(task)
    return (tree, allotment) if tree.shape.chooses else unsearched(task)


def _tree(task: Task, options: TofOptions, layout: Layout) -> tuple[TreeOfFrames, Allotment]:
    shape, allotment = allot_tof(
        task.multiple,
        layout,
        task.prices,
        roots_per_work=options.roots_per_work,
        branching=options.branching,
        roots=options.roots,
        widths=options.widths,
    )
    return TreeOfFrames(layout, shape, options.roots_per_work, task.scoring), allotment


def _draft_stage(task: Task, options: TofOptions) -> int | None:
    """Drafts are previews of unit 0: none where that is given, or where there is no coarse stage to draft at."""
    count = task.stages - 1 if options.draft_stages is None else options.draft_stages
    if count >= task.stages:
        raise BudgetError(
            f"draft_stages is {count} and the pyramid has {task.stages} stages: allowed are 0 to {task.stages - 1}"
        )
    return count - 1 if count and not task.given else None


ENTRY = PolicyEntry(
    name="tof",
    summary="Tree-of-Frames as published: many first units, pruned unit by unit",
    options=TofOptions,
    plan=plan,
    compares=lambda options: True,
)
