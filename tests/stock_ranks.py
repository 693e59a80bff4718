"""The cut of search/ranks.py computed plainly: from scratch, over all pairs, in exact arithmetic.

This is the reference that the incremental ``Cohort`` is compared with after every score.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from framegrove.search.ranks import RankedPath
from framegrove.search.tree import Scores
from framegrove.types import Path


@dataclass(frozen=True)
class StockCut:
    """Who stays and who goes, whatever the missing scores are; ``likely`` are those of ``undecided`` likely to stay."""

    kept: tuple[Path, ...]
    dropped: tuple[Path, ...]
    undecided: tuple[Path, ...]
    likely: tuple[Path, ...]


class StockCohort:
    """The members of a cohort, the scores that are in, and what each path had collected ``before``."""

    def __init__(
        self,
        members: Sequence[Path],
        panels: Mapping[Path, Scores],
        weights: Mapping[str, float],
        before: Mapping[Path, Fraction],
    ) -> None:
        self.members = tuple(members)
        self._panels = {path: dict(panels[path]) for path in self.members if path in panels}
        self._missing = len(self.members) - len(self._panels)
        names = sorted(next(iter(self._panels.values()), {}))
        exact = [Fraction(str(weights[name])) if weights else Fraction(1) for name in names]
        scale = math.lcm(*(value.denominator for value in exact))
        self._weights = {name: int(value * scale) for name, value in zip(names, exact, strict=True)}
        self._points = self._count_points()
        self._measure(before)

    def cut(self, width: int) -> StockCut:
        """Keep at most ``width`` members, none below the average."""
        kept = tuple(path for path in self.members if self._stays(path, width))
        dropped = tuple(path for path in self.members if self._goes(path, width))
        undecided = tuple(path for path in self.members if path not in kept and path not in dropped)
        return StockCut(kept, dropped, undecided, self._likely(undecided)[: width - len(kept)])

    def standings(self) -> tuple[RankedPath, ...]:
        """Members of a complete cohort, best first."""
        ordered = sorted(self.members, key=lambda path: (-self._least[path], *self._tie_break(path)))
        return tuple(
            RankedPath(
                path,
                own=Fraction(self._least[path] - self._collected[path], self._one),
                total=Fraction(self._least[path], self._one),
            )
            for path in ordered
        )

    # ---- totals are whole numbers: self._one of them make 1

    def _count_points(self) -> dict[Path, dict[str, int]]:
        """Twice the members below plus those level, of the scored ones: 2 n times the rank once all are scored."""
        columns = {name: sorted(panel[name] for panel in self._panels.values()) for name in self._weights}
        return {
            path: {
                name: bisect_left(column, panel[name]) + bisect_right(column, panel[name])
                for name, column in columns.items()
            }
            for path, panel in self._panels.items()
        }

    def _measure(self, before: Mapping[Path, Fraction]) -> None:
        """Bound every member's total: a missing score is worth up to 2 points of each verifier to a scored member."""
        count, weight = len(self.members), sum(self._weights.values()) or 1
        self._fine = math.lcm(*(before[path].denominator for path in self.members))
        self._one = 2 * count * weight * self._fine
        self._collected = {path: int(before[path] * self._one) for path in self.members}
        self._average = sum(self._collected.values()) + count * self._one // 2  # count times the average
        self._least, self._most = {}, {}
        for path in self.members:
            points = self._points.get(path)
            low = self._sum(points) if points is not None else weight
            high = low + 2 * weight * (self._missing if points is not None else count - 1)
            self._least[path] = self._collected[path] + low * self._fine
            self._most[path] = self._collected[path] + high * self._fine

    def _sum(self, points: Mapping[str, int]) -> int:
        return sum(self._weights[name] * value for name, value in points.items())

    def _stays(self, path: Path, width: int) -> bool:
        """Surely not below the average, and fewer than ``width`` members can come before it."""
        if len(self.members) * self._least[path] < self._average:
            return False
        rivals = (other for other in self.members if other != path and not self._ahead_surely(path, other))
        return sum(1 for _ in rivals) < width

    def _goes(self, path: Path, width: int) -> bool:
        """Surely below the average, or ``width`` members surely come before it."""
        if len(self.members) * self._most[path] < self._average:
            return True
        return sum(1 for other in self.members if other != path and self._ahead_surely(other, path)) >= width

    def _ahead_surely(self, one: Path, other: Path) -> bool:
        """Whether ``one`` comes before ``other`` in the order, however the missing scores fall."""
        if one not in self._panels or other not in self._panels:
            return self._least[one] > self._most[other]
        # A missing score that falls between the two widens their gap on that verifier: it can only help the better one.
        behind = sum(w for name, w in self._weights.items() if self._panels[one][name] < self._panels[other][name])
        gap = self._least[one] - self._least[other] - 2 * self._missing * behind * self._fine
        return gap > 0 or (gap == 0 and self._tie_break(one) < self._tie_break(other))

    def _tie_break(self, path: Path) -> tuple[float, Path]:
        """Smaller goes first: the higher weighted mean score, then the earlier path."""
        return -sum(weight * self._panels[path][name] for name, weight in self._weights.items()), path

    def _likely(self, undecided: Sequence[Path]) -> tuple[Path, ...]:
        """Undecided members above the average if each kept the place it has among those scored so far, best first.

        A member without a score of its own is judged by its path alone, as if its rank were average.
        """
        scored, count = len(self._panels), len(self.members)

        def expected(path: Path) -> Fraction:
            points = self._points.get(path)
            if points is None:
                return Fraction(self._collected[path] + self._one // 2)
            return self._collected[path] + Fraction(self._sum(points) * count * self._fine, scored)

        likely = [path for path in undecided if count * expected(path) > self._average]
        return tuple(sorted(likely, key=lambda path: (-expected(path), path)))
