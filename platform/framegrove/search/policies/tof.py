"""Tree-of-Frames (VT1 alg. 2), with unit 0 pruned inside the pyramid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import Literal

from framegrove.search.ranks import Cohort
from framegrove.search.rounds import Round, Shape, rounds_of
from framegrove.search.tree import Judgement, Layout, Plan, Scores, Work
from framegrove.types import Assessment, Path, ScoreWork


@dataclass(frozen=True)
class TreeOfFrames:
    """Many first units, few last ones.

    Roots are drafted at the coarse stages and judged by a preview (POTENTIAL); those that stay are refined and
    judged as images (IMAGE). At every later depth each kept branch grows children with noise of their own, judged for
    motion (MOTION), at the end as whole videos (FINAL). Each round keeps the branches whose rank is not below its
    average, up to the width in ``shape``; the best of the last round wins.

    ``path_score`` "sum" is Video-T1's: a child's rank is added to what its path has collected. But every assessment
    sees all of a branch so far, so that a sum counts early units again and again; "last" goes by the newest rank
    alone, and need not wait for a whole cohort's scores. POTENTIAL ranks are in no sum.

    A branch certain to stay is extended before the rest of its cohort is scored; likely ones are bet on.
    """

    layout: Layout
    shape: Shape
    roots_per_work: int = 4
    weights: Mapping[str, float] = field(default_factory=dict)
    path_score: Literal["last", "sum"] = "last"

    @cached_property
    def rounds(self) -> tuple[Round, ...]:
        """What is sampled, judged and cut, one after the other."""
        return rounds_of(self.layout, self.shape, self.roots_per_work)

    def plan(self, scores: Scores) -> Plan:
        """Walk the rounds as far as the scores reach."""
        walk = _Walk({(*self.layout.prefix, root): Fraction(0) for root in range(self.shape.roots)})
        for index, step in enumerate(self.rounds):
            walk.at_most = len(walk.certain) + self._most_works(index, len(walk.entrants) + walk.awaited)
            walk.certain += step.works(walk.entrants)
            if walk.blocked:
                break
            summed = self.path_score == "sum" and step.assessment is not Assessment.POTENTIAL
            walk.judge(step, scores, self.weights, summed=summed)
            walk.bets = self.rounds[index + 1].works(walk.likely) if index + 1 < len(self.rounds) else ()
        # A lone draft is refined before its preview is judged: the winner waits for every score that was asked for.
        open_scores = any(isinstance(work, ScoreWork) and work not in scores for work in walk.certain)
        return Plan(
            certain=tuple(walk.certain),
            at_most=walk.at_most,
            speculative=walk.bets,
            dropped=walk.dropped,
            judgements=tuple(walk.judgements),
            winner=None if walk.blocked or open_scores else walk.best,
        )

    def _most_works(self, index: int, entrants: int) -> int:
        """The most works from this round on, if so many branches enter it."""
        total = 0
        for step in self.rounds[index:]:
            total += step.count(entrants)
            entrants = min(step.width, step.size(entrants))
        return total


class _Walk:
    """One walk through the rounds: what has been found so far."""

    def __init__(self, roots: Mapping[Path, Fraction]) -> None:
        self.entrants: tuple[Path, ...] = tuple(roots)  # certain to enter the next round
        self.awaited = 0  # how many others may still join them
        self.likely: tuple[Path, ...] = ()  # the likeliest of those
        self.blocked = False  # the next round's cohort, or what its paths have collected, is not known yet
        self.collected = dict(roots)
        self.certain: list[Work] = []
        self.bets: tuple[Work, ...] = ()
        self.dropped: dict[Path, Assessment] = {}
        self.judgements: list[Judgement] = []
        self.at_most = 0
        self.best: Path | None = None

    def judge(self, step: Round, scores: Scores, weights: Mapping[str, float], *, summed: bool) -> None:
        """Cut the round's cohort as far as its scores allow; ``summed``, later rounds add to its ranks."""
        members = step.members(self.entrants)
        works = {member: ScoreWork(member, step.assessment) for member in members}
        panels = {member: scores[work] for member, work in works.items() if work in scores}
        parents = {member: member[:-1] if step.children else member for member in members}
        before = {member: self.collected.get(parent, Fraction(0)) for member, parent in parents.items()}
        cohort = Cohort(members, panels, weights, before)
        cut = cohort.cut(step.width)
        self.entrants, self.likely = cut.kept, cut.bets
        self.awaited = min(len(cut.undecided), step.width - len(cut.kept))
        self.dropped |= dict.fromkeys(cut.dropped, step.assessment)
        if cohort.complete:
            standings = cohort.standings()
            self.best = standings[0].path
            self.judgements += (Judgement(s.path, step.assessment, float(s.rank), float(s.total)) for s in standings)
            before = {standing.path: standing.total for standing in standings}
        if summed:
            self.collected = before
        self.blocked = bool(cut.undecided) or (summed and not cohort.complete)
