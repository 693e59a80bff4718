"""A cohort of branches that are compared by their path scores, and of which the best are kept.

The counterpart of ranks.Cohort for any fusion and any path score, and much simpler: what is certain before the last
score is in follows from counting. With log-p a branch's score does not depend on the others', so that of n members

- one stays once n - width others are scored and behind it,
- one goes once width others are scored and ahead of it.

With ranks and z-scores, and where the average decides as well, nothing is certain before all are scored.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from framegrove.config.search import Fusion, PathScore
from framegrove.search.fusion import Scoring, fused
from framegrove.search.ranks import NO_CHANGE, Change
from framegrove.search.tree import Scores
from framegrove.types import Assessment, Path


@dataclass(frozen=True)
class Place:
    """A member of a complete cohort: its own fused score, and its path's."""

    path: Path
    own: float
    total: float


class ScoreCohort:
    """``members`` judged by one assessment, of which at most ``width`` are kept, best path score first.

    ``before`` has the path scores of their parents, where these were judged. ``above_average`` drops members below the
    cohort's average as well (VT1 alg. 2). Equals come in the order of their paths.
    """

    def __init__(
        self,
        members: Sequence[Path],
        assessment: Assessment,
        scoring: Scoring,
        before: Mapping[Path, float],
        width: int,
        *,
        fusion: Fusion = "log-p",
        path_score: PathScore = "sum",
        above_average: bool = False,
    ) -> None:
        self.members = tuple(members)
        if len(set(members)) < len(members) or width < 1:
            raise ValueError(f"a cohort has distinct members and a width of at least 1, not {width}")
        self.width = width
        self._assessment = assessment
        self._scoring = scoring
        self._before = before
        self._fusion = scoring.fusion or fusion
        self._path_score = path_score
        self._above_average = above_average
        self._order = {path: place for place, path in enumerate(self.members)}
        self._scores: dict[Path, Scores] = {}
        self._best_first: list[tuple[float, Path]] = []  # (-path score, path) of those whose score is known
        self._own: dict[Path, float] = {}
        self._fates: dict[Path, bool] = {}
        self.initial = Change(self.members) if len(self.members) == 1 else NO_CHANGE
        self._fates |= dict.fromkeys(self.initial.kept, True)

    @property
    def complete(self) -> bool:
        """Whether every member has been scored."""
        return len(self._scores) == len(self.members)

    @property
    def scored_share(self) -> float:
        """The share of the members that has been scored."""
        return len(self._scores) / len(self.members)

    @property
    def kept(self) -> tuple[Path, ...]:
        """The members certain to stay, in member order."""
        return tuple(path for path in self.members if self._fates.get(path))

    @property
    def decided(self) -> bool:
        """Whether the fate of every member is certain."""
        return len(self._fates) == len(self.members)

    @property
    def most_kept(self) -> int:
        """The most members that can still be kept in the end."""
        return min(self.width, len(self.members) - sum(not stays for stays in self._fates.values()))

    def add(self, path: Path, scores: Scores) -> Change:
        """Take a member's scores and return what has become certain by them.

        Raises ValueError for a path that is no member or was scored before.
        """
        if path not in self._order or path in self._scores:
            raise ValueError(f"branch {path} is no member of this cohort, or was scored before")
        self._scores[path] = scores
        if self._fusion == "log-p":
            place = self._place(path, self._scoring.log_p(self._assessment, scores))
            return self._whole() if self._above_average else self._counted(place)
        if not self.complete:
            return NO_CHANGE
        cohort = [self._scores[each] for each in self.members]
        for each, own in zip(self.members, fused(self._fusion, self._assessment, cohort, self._scoring), strict=True):
            self._place(each, own)
        return self._whole()

    def likely(self) -> tuple[Path, ...]:
        """Undecided members that are scored and among the best ``width`` so far, best first."""
        leading = [path for _, path in self._best_first[: self.width]]
        return tuple(path for path in leading if path not in self._fates)

    def standings(self) -> tuple[Place, ...]:
        """The members of a complete cohort, best first."""
        assert self.complete, "places are known once every score is in"
        return tuple(Place(path, self._own[path], -negative) for negative, path in self._best_first)

    def _place(self, path: Path, own: float) -> int:
        """Put a member in its place among those whose score is known."""
        self._own[path] = own
        entry = (-self._scoring.along(self._before.get(path), own, self._path_score), path)
        place = bisect.bisect(self._best_first, entry)
        self._best_first.insert(place, entry)
        return place

    def _counted(self, place: int) -> Change:
        """What the score that has come to this place makes certain, by counting: at most one stays and one goes."""
        known, count = len(self._best_first), len(self.members)
        staying = min(self.width, count) - (count - known)  # so many of the best stay, whatever the others are like
        kept = [min(place, staying - 1)] if staying > 0 else []
        dropped = [max(place, self.width)] if known > self.width else []
        return self._decide(kept, dropped)

    def _whole(self) -> Change:
        """Who stays and who goes in a complete cohort."""
        if not self.complete:
            return NO_CHANGE
        # Exact: by rounding, the average of equal scores can be above them all.
        average = sum(Fraction(-negative) for negative, _ in self._best_first) / len(self._best_first)
        good = [
            place
            for place, (negative, _) in enumerate(self._best_first[: self.width])
            if not place or not self._above_average or -negative >= average
        ]
        return self._decide(good, range(len(good), len(self.members)))

    def _decide(self, kept: Sequence[int], dropped: Sequence[int]) -> Change:
        """The members at these places stay and go; those of whom it was certain before are left out."""
        staying, going = (self._undecided(places) for places in (kept, dropped))
        self._fates |= dict.fromkeys(staying, True) | dict.fromkeys(going, False)
        return Change(staying, going)

    def _undecided(self, places: Sequence[int]) -> tuple[Path, ...]:
        paths = (self._best_first[place][1] for place in places)
        return tuple(sorted((path for path in paths if path not in self._fates), key=self._order.__getitem__))
