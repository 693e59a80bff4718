"""Best of N: N whole videos, judged once each (VT1 alg. 1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from framegrove.search.ranks import Cohort
from framegrove.search.tree import Judgement, Layout, Plan, Scores, Work
from framegrove.types import Assessment, Path, SampleWork, ScoreWork


@dataclass(frozen=True)
class Linear:
    """Samples ``roots`` videos to the end, unit by unit, and keeps the one that the panel ranks first.

    Root 0 is the unsearched sample of the same seed. Nothing is ever cut, so every work is certain from the start.
    """

    layout: Layout
    roots: int
    weights: Mapping[str, float] = field(default_factory=dict)

    def plan(self, scores: Scores) -> Plan:
        """Every work of every video, one video after the other, so that early ones are judged while others grow."""
        certain = tuple(work for root in range(self.roots) for work in self._video(root))
        videos = [self._path(root, self.layout.units) for root in range(self.roots)]
        finals = {path: ScoreWork(path, Assessment.FINAL) for path in videos}
        panels = {path: scores[work] for path, work in finals.items() if work in scores}
        cohort = Cohort(videos, panels, self.weights, before=dict.fromkeys(videos, Fraction(0)))
        if not cohort.complete:
            return Plan(certain, at_most=len(certain))
        best = cohort.standings()
        return Plan(
            certain,
            at_most=len(certain),
            dropped={standing.path: Assessment.FINAL for standing in best[1:]},
            judgements=tuple(Judgement(s.path, Assessment.FINAL, float(s.rank), float(s.total)) for s in best),
            winner=best[0].path,
        )

    def _video(self, root: int) -> tuple[Work, ...]:
        units = range(self.layout.given + 1, self.layout.units + 1)
        paths = [self._path(root, length) for length in units]
        samples = tuple(SampleWork((path,), 0, self.layout.last_stage) for path in paths)
        return (*samples, ScoreWork(paths[-1], Assessment.FINAL))

    def _path(self, root: int, length: int) -> Path:
        return (*self.layout.prefix, root, *(0,) * (length - self.layout.given - 1))
