"""Best of N: whole videos, judged once each, of which the best is kept (VT1 alg. 1). Or one after the other, until one
is good enough.

    budget 4x, ``until`` unset: videos 0 to 3 are sampled at once, all four are judged, the best wins.
    budget 4x, ``until`` 0.9: video 0 is sampled and judged, P(right) = 0.4; video 1, P = 0.95: it wins, and 2 and 3 are
    never made. Had all stayed below 0.9, the best of them would have won.
"""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import Field

from framegrove.config.base import Config
from framegrove.search.budget import Allotment, allot_linear
from framegrove.search.cohorts import ScoreCohort
from framegrove.search.fusion import Scoring, chance
from framegrove.search.policies.registry import PolicyEntry, Task
from framegrove.search.policies.single import unsearched
from framegrove.search.tree import Bet, Decision, Judgement, Layout, Members, PanelWork, PlannedWork, Policy, Scores
from framegrove.types import Assessment, Path, SampleWork


class LinearOptions(Config):
    """Options of best-of-N search."""

    roots: int | None = Field(
        default=None, ge=1, description="whole videos to choose from; default: all the budget pays"
    )


class Linear:
    """Samples ``roots`` videos to the end, unit by unit, and keeps the one that the panel finds best.

    Root 0 is the unsearched sample of the same seed. Without ``stop`` every work is certain from the start. With it,
    the videos are made one after the other, up to the first that is right with that probability.
    """

    assessments = (Assessment.FINAL,)
    grows_once = True

    def __init__(
        self,
        layout: Layout,
        roots: int,
        scoring: Scoring = Scoring(),  # noqa: B008 - it is frozen
        stop: float | None = None,
    ) -> None:
        self.layout = layout
        self.roots = roots
        self._stop = stop
        self._scoring = scoring
        self._scores: dict[int, Scores] = {}
        ends = tuple(self._path(root, layout.units) for root in range(roots))
        self._all = ScoreCohort(ends, Assessment.FINAL, scoring, {}, width=1, path_score="last")
        self._beaten: set[Path] = set()
        self._begun = 1 if stop is not None else roots

    def start(self) -> Decision:
        """Every work that is certain, one video after the other, so that early ones are judged while others grow."""
        works = tuple(work for root in range(self._begun) for work in self._video(root))
        cohorts = (Members(self._all.members, Assessment.FINAL),) if self._stop is None else ()
        return Decision(self._most(self.roots), works, cohorts=cohorts)

    def judged(self, work: PanelWork, scores: Scores) -> Decision:
        """Drop what is worse than another video; the best wins once the last score is in, or one is good enough."""
        self._scores[work.path[self.layout.given]] = scores
        beaten = self._all.add(work.path, scores).dropped
        if len(self._scores) == self.roots or self._is_good_enough(scores):
            return self._decided()
        self._beaten.update(beaten)
        more: tuple[PlannedWork, ...] = ()
        if self._stop is not None:
            more = self._video(self._begun)
            self._begun += 1
        return Decision(self._most(self.roots), more, tuple((path, Assessment.FINAL) for path in beaten))

    def _is_good_enough(self, scores: Scores) -> bool:
        return self._stop is not None and chance(Assessment.FINAL, scores, self._scoring.log_p) >= self._stop

    def speculative(self) -> Iterable[Bet]:
        """The next videos, should those under way not be good enough; each is as likely to be as not to be."""
        for root in range(self._begun, self.roots):
            for work in self._video(root):
                yield Bet(work, 0.5 ** (root - self._begun + 1))

    def _decided(self) -> Decision:
        """The best of the videos that were made wins."""
        paths = {self._path(root, self.layout.units): scores for root, scores in sorted(self._scores.items())}
        cohort = ScoreCohort(tuple(paths), Assessment.FINAL, self._scoring, {}, width=1, path_score="last")
        for path, scores in paths.items():
            cohort.add(path, scores)
        best = cohort.standings()
        return Decision(
            self._most(self._begun),
            dropped=tuple((place.path, Assessment.FINAL) for place in best[1:] if place.path not in self._beaten),
            judgements=tuple(Judgement(place.path, Assessment.FINAL, place.own, place.total) for place in best),
            winner=best[0].path,
        )

    def _most(self, videos: int) -> int:
        return videos * (self.layout.units - self.layout.given + 1)

    def _video(self, root: int) -> tuple[PlannedWork, ...]:
        lengths = range(self.layout.given + 1, self.layout.units + 1)
        paths = [self._path(root, length) for length in lengths]
        samples = tuple(SampleWork((path,), 0, self.layout.last_stage) for path in paths)
        return (*samples, PanelWork(paths[-1], Assessment.FINAL))

    def _path(self, root: int, length: int) -> Path:
        return (*self.layout.prefix, root, *(0,) * (length - self.layout.given - 1))


def plan(task: Task, options: LinearOptions) -> tuple[Policy, Allotment]:
    """As many videos as the budget pays for."""
    roots, allotment = allot_linear(task.multiple, task.layout, task.prices, options.roots)
    if roots == 1:
        return unsearched(task)  # there is nothing to choose from
    return Linear(task.layout, roots, task.scoring, task.until), allotment


ENTRY = PolicyEntry(
    name="linear",
    summary="best of N: whole videos, of which the panel picks one; with until, the first that is good enough",
    options=LinearOptions,
    plan=plan,
    stops=True,
    compares=lambda options: True,
)
