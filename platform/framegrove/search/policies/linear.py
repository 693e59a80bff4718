"""Best of N: N whole videos, judged once each (VT1 alg. 1)."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction

from pydantic import Field

from framegrove.config.base import Config
from framegrove.search.budget import Allotment, allot_linear
from framegrove.search.policies.registry import PolicyEntry, Task
from framegrove.search.ranks import Cohort, Weigh, equally
from framegrove.search.tree import Decision, Judgement, Layout, PanelWork, PlannedWork, Scores
from framegrove.types import Assessment, Path, SampleWork


class LinearOptions(Config):
    """Options of best-of-N search."""

    roots: int | None = Field(
        default=None, ge=1, description="whole videos to choose from; default: all the budget pays"
    )


class Linear:
    """Samples ``roots`` videos to the end, unit by unit, and keeps the one that the panel ranks first.

    Root 0 is the unsearched sample of the same seed. Nothing is ever cut, so every work is certain from the start.
    ``weigh`` gives the weights of the panel's scores in the fused rank.
    """

    assessments = (Assessment.FINAL,)

    def __init__(self, layout: Layout, roots: int, weigh: Weigh = equally) -> None:
        self.layout = layout
        self.roots = roots
        self._videos = [self._path(root, layout.units) for root in range(roots)]
        before = dict.fromkeys(self._videos, Fraction(0))
        self._cohort = Cohort(self._videos, weigh, before, width=1)
        self._works = 0

    def start(self) -> Decision:
        """Every work of every video, one video after the other, so that early ones are judged while others grow."""
        works = tuple(work for root in range(self.roots) for work in self._video(root))
        self._works = len(works)
        return Decision(self._works, works)

    def judged(self, work: PanelWork, scores: Scores) -> Decision:
        """Nothing follows from a score before the last one is in."""
        self._cohort.add(work.path, scores)
        if not self._cohort.complete:
            return Decision(self._works)
        best = self._cohort.standings()
        return Decision(
            self._works,
            dropped=tuple((standing.path, Assessment.FINAL) for standing in best[1:]),
            judgements=tuple(Judgement(s.path, Assessment.FINAL, float(s.rank), float(s.total)) for s in best),
            winner=best[0].path,
        )

    def speculative(self) -> Iterable[PlannedWork]:
        """Nothing is uncertain."""
        return ()

    def _video(self, root: int) -> tuple[PlannedWork, ...]:
        lengths = range(self.layout.given + 1, self.layout.units + 1)
        paths = [self._path(root, length) for length in lengths]
        samples = tuple(SampleWork((path,), 0, self.layout.last_stage) for path in paths)
        return (*samples, PanelWork(paths[-1], Assessment.FINAL))

    def _path(self, root: int, length: int) -> Path:
        return (*self.layout.prefix, root, *(0,) * (length - self.layout.given - 1))


def plan(task: Task, options: LinearOptions) -> tuple[Linear, Allotment]:
    """As many videos as the budget pays for."""
    layout = Layout(task.units, task.stages, given=task.given)
    roots, allotment = allot_linear(task.multiple, layout, task.cost, options.roots)
    return Linear(layout, roots, task.weigh), allotment


ENTRY = PolicyEntry(
    name="linear",
    summary="best of N: whole videos, of which the panel picks one",
    options=LinearOptions,
    plan=plan,
)
