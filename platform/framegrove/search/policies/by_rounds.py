"""A search in rounds: what Tree-of-Frames and the pyramid search have in common."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from framegrove.search.cohorts import ScoreCohort
from framegrove.search.fusion import Scoring
from framegrove.search.ranks import Change, Cohort
from framegrove.search.rounds import Round, filled
from framegrove.search.tree import Bet, Decision, Judgement, Layout, Members, NextDecision, PanelWork, Scores
from framegrove.types import Assessment, Path, depth_of

Cut = Callable[[Round, Sequence[Path], Mapping[Path, Any]], Cohort | ScoreCohort]
"""The cohort of a round: (round, members, path scores of those whose parents were judged) -> who stays."""


class ByRounds:
    """Runs ``rounds`` over ``roots`` first units: all are sampled and judged, ``cut`` says who enters the next round.

    A branch that is certain to stay is extended before the rest of its cohort is scored, as far as the cut can say so;
    likely ones are speculated on. POTENTIAL scores of previews are in no path score.
    """

    grows_once = True

    def __init__(self, layout: Layout, rounds: Sequence[Round], roots: int, scoring: Scoring, cut: Cut) -> None:
        self.layout = layout
        self.rounds = tuple(rounds)
        self.assessments = {step.assessment for step in self.rounds}
        self._roots = roots
        self._scoring = scoring
        self._cut = cut
        # Round i judges assessment a at depth d: where a score belongs.
        self._round_of = {(step.depth, step.assessment): index for index, step in enumerate(self.rounds)}
        # One for each round whose members are known; the last is the frontier.
        self._cohorts: list[Cohort | ScoreCohort] = []
        self._collected: dict[Path, Any] = {}  # path scores of judged branches: fractions of ranks, or floats
        self._early: dict[int, list[tuple[Path, Scores]]] = defaultdict(list)  # scores of rounds beyond the frontier
        self._planned = 0  # works of all rounds up to the frontier
        self._next = NextDecision()

    def start(self) -> Decision:
        """Sample and judge all roots."""
        roots = [(*self.layout.prefix, root) for root in range(self._roots)]
        self._next.works += self.rounds[0].works(roots)
        self._open(roots)
        return self._decision()

    def judged(self, work: PanelWork, scores: Scores) -> Decision:
        """Cut the branch's cohort as far as its scores now allow."""
        index = self._round_of[depth_of(work.path), work.assessment]
        if index < len(self._cohorts):
            self._add(index, work.path, scores)
        else:
            self._early[index].append((work.path, scores))
        return self._decision()

    def speculative(self) -> Iterator[Bet]:
        """The next round's works of branches that will probably stay; likelier, the more of their cohort is scored."""
        beyond = len(self._cohorts)
        if beyond < len(self.rounds):
            cohort = self._cohorts[-1]
            for path in cohort.likely():
                for work in self.rounds[beyond].works((path,)):
                    yield Bet(work, 0.5 + 0.5 * cohort.scored_share)

    def _open(self, entrants: Sequence[Path]) -> None:
        """All who enter the next round are known: it becomes the frontier."""
        index = len(self._cohorts)
        step = self.rounds[index]
        members = step.members(entrants)
        before = {member: self._collected[member[:-1]] for member in members if member[:-1] in self._collected}
        cohort = self._cut(step, members, before)
        self._cohorts.append(cohort)
        self._next.cohorts.append(Members(cohort.members, step.assessment))
        self._planned += step.count(len(entrants))
        self._follow(index, cohort.initial)
        for path, scores in self._early.pop(index, ()):
            self._add(index, path, scores)
        self._advance(index)

    def _add(self, index: int, path: Path, scores: Scores) -> None:
        step, cohort = self.rounds[index], self._cohorts[index]
        self._follow(index, cohort.add(path, scores))
        if cohort.complete:
            standings = cohort.standings()
            self._next.judgements += (
                Judgement(s.path, step.assessment, float(s.own), float(s.total)) for s in standings
            )
            if self._collects(step):
                self._collected |= {standing.path: standing.total for standing in standings}
            if index == len(self.rounds) - 1:
                self._next.winner = standings[0].path
        self._advance(index)

    def _follow(self, index: int, change: Change) -> None:
        """Extend the branches that are certain to stay; let go of those that are not."""
        self._next.dropped += ((path, self.rounds[index].assessment) for path in change.dropped)
        if index + 1 < len(self.rounds):
            for path in change.kept:
                self._next.works += self.rounds[index + 1].works((path,))

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
        return self._next.take(self._most_works())

    def _most_works(self) -> int:
        """The works of the rounds that are open, and the most that the others can come to."""
        closed = filled(self.rounds[len(self._cohorts) :], self._cohorts[-1].most_kept)
        return self._planned + sum(step.count(entrants) for step, entrants in closed)
