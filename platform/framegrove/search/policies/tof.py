"""Tree-of-Frames as published (VT1 alg. 2), with unit 0 pruned inside the pyramid: the reference."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from typing import Any

from pydantic import Field, field_validator

from framegrove.config.base import Config
from framegrove.search.budget import Allotment, BudgetError, allot_tof
from framegrove.search.cohorts import ScoreCohort
from framegrove.search.fusion import Scoring
from framegrove.search.policies.registry import PolicyEntry, Task
from framegrove.search.policies.single import unsearched
from framegrove.search.ranks import Change, Cohort
from framegrove.search.rounds import Branching, Round, TreeShape, rounds_of
from framegrove.search.tree import Decision, Judgement, Layout, PanelWork, PlannedWork, Policy, Scores
from framegrove.types import Assessment, Path


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
    roots_per_work: int = Field(default=4, ge=1, description="drafts that one generator denoises in step")

    @field_validator("widths")
    @classmethod
    def _widths_keep_something(cls, given: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if given is not None and min(given, default=1) < 1:
            raise ValueError(f"every width must be at least 1, not {list(given)}")
        return given


class TreeOfFrames:
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
        self.layout = layout
        self.shape = shape
        self.rounds = rounds_of(layout, shape, roots_per_work)
        self.assessments = {step.assessment for step in self.rounds}
        self._scoring = scoring
        # Round i judges assessment a at depth d: where a score belongs.
        self._round_of = {(step.depth, step.assessment): index for index, step in enumerate(self.rounds)}
        self._cohorts: list[
            Cohort | ScoreCohort
        ] = []  # one for each round whose members are known; the last is the frontier
        self._collected: dict[Path, Any] = {}  # path scores of judged branches: fractions of ranks, or floats
        self._early: dict[int, list[tuple[Path, Scores]]] = defaultdict(list)  # scores of rounds beyond the frontier
        self._planned = 0  # works of all rounds up to the frontier
        # What the next decision will say.
        self._works: list[PlannedWork] = []
        self._dropped: list[tuple[Path, Assessment]] = []
        self._judgements: list[Judgement] = []
        self._winner: Path | None = None

    def start(self) -> Decision:
        """Sample and judge all roots."""
        roots = [(*self.layout.prefix, root) for root in range(self.shape.roots)]
        self._works += self.rounds[0].works(roots)
        self._open(roots)
        return self._decision()

    def judged(self, work: PanelWork, scores: Scores) -> Decision:
        """Cut the branch's cohort as far as its scores now allow."""
        index = self._round_of[len(work.path) - 1, work.assessment]
        if index < len(self._cohorts):
            self._add(index, work.path, scores)
        else:
            self._early[index].append((work.path, scores))
        return self._decision()

    def speculative(self) -> Iterator[PlannedWork]:
        """The next round's works of branches that will probably stay."""
        beyond = len(self._cohorts)
        if beyond < len(self.rounds):
            for path in self._cohorts[-1].likely():
                yield from self.rounds[beyond].works((path,))

    def _open(self, entrants: Sequence[Path]) -> None:
        """All who enter the next round are known: it becomes the frontier."""
        index = len(self._cohorts)
        step = self.rounds[index]
        members = step.members(entrants)
        parents = {member: member[:-1] if step.children else member for member in members}
        cohort = self._cohort(step, members, parents)
        self._cohorts.append(cohort)
        self._planned += step.count(len(entrants))
        self._follow(index, cohort.initial)
        for path, scores in self._early.pop(index, ()):
            self._add(index, path, scores)
        self._advance(index)

    def _cohort(self, step: Round, members: Sequence[Path], parents: Mapping[Path, Path]) -> Cohort | ScoreCohort:
        """A round's cut: by ranks as the scores come in, or by what the scoring says."""
        before = {member: self._collected[parent] for member, parent in parents.items() if parent in self._collected}
        if self._scoring.fusion in (None, "ranks") and self._scoring.path != "min":
            collected = dict.fromkeys(members, Fraction(0)) | before
            return Cohort(members, self._scoring.weigh, collected, step.width)
        return ScoreCohort(
            members, step.assessment, self._scoring, before, step.width, fusion="ranks", above_average=True
        )

    def _add(self, index: int, path: Path, scores: Scores) -> None:
        step, cohort = self.rounds[index], self._cohorts[index]
        self._follow(index, cohort.add(path, scores))
        if cohort.complete:
            standings = cohort.standings()
            self._judgements += (Judgement(s.path, step.assessment, float(s.own), float(s.total)) for s in standings)
            if self._collects(step):
                self._collected = {standing.path: standing.total for standing in standings}
            if index == len(self.rounds) - 1:
                self._winner = standings[0].path
        self._advance(index)

    def _follow(self, index: int, change: Change) -> None:
        """Extend the branches that are certain to stay; let go of those that are not."""
        self._dropped += ((path, self.rounds[index].assessment) for path in change.dropped)
        if index + 1 < len(self.rounds):
            for path in change.kept:
                self._works += self.rounds[index + 1].works((path,))

    def _advance(self, index: int) -> None:
        """Open the next round once it is known who enters it, and what their paths have collected."""
        cohort = self._cohorts[index]
        frontier = index == len(self._cohorts) - 1
        if not frontier or index == len(self.rounds) - 1 or not cohort.decided:
            return
        if cohort.complete or not self._collects(self.rounds[index]):
            self._open(cohort.kept)

    def _collects(self, step: Round) -> bool:
        return self._scoring.path != "last" and step.assessment is not Assessment.POTENTIAL

    def _decision(self) -> Decision:
        """Everything that was found since the last decision."""
        decision = Decision(
            self._most_works(), tuple(self._works), tuple(self._dropped), tuple(self._judgements), self._winner
        )
        self._works, self._dropped, self._judgements = [], [], []
        return decision

    def _most_works(self) -> int:
        """The works of the rounds that are open, and the most that the others can come to."""
        entrants = self._cohorts[-1].most_kept
        total = self._planned
        for step in self.rounds[len(self._cohorts) :]:
            total += step.count(entrants)
            entrants = min(step.width, step.size(entrants))
        return total


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
)
