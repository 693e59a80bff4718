"""Scores fused by weighted ranks (VT1 eq. 7), and which branches a cut keeps, known as early as the scores allow.

**Rank.** A cohort is the set of branches judged by one assessment at one depth. Each verifier ranks its ``n`` members on
its own, so that verifiers on different scales can be added: the rank of a member is

    (members with a lower score + half of those with the same score, itself included) / n,

which lies in (0, 1) and averages exactly 1/2. The fused rank is the weighted mean of the verifiers' ranks.

**Total.** A member's total is its fused rank plus what its path has collected in earlier cohorts (``before``).

**Cut.** A cut keeps the members whose total is not below the cohort's average (VT1 alg. 2), at most ``width`` of them,
best first. Since ranks average 1/2, the average is known before any score is. The order is by total, then by weighted
mean score, then by path: a total order, so nothing is left to chance and ties never widen the tree.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from framegrove.errors import UserError
from framegrove.search.tree import Scores as Panel
from framegrove.types import Path

Whole = npt.NDArray[Any]  # int64, or Python integers where 64 bits are too few
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Standing:
    """A member's fused rank in a complete cohort, and its path's total with that rank added."""

    path: Path
    rank: Fraction
    total: Fraction


@dataclass(frozen=True)
class Change:
    """The members that became certain to stay and certain to go, each in member order."""

    kept: tuple[Path, ...] = ()
    dropped: tuple[Path, ...] = ()


class Cohort:
    """A cut that takes one member's scores after another and says at once what has become certain.

    ``weights`` gives each verifier's weight by name; an empty mapping counts all alike. ``before`` is what each
    member's path has collected in earlier cohorts. At most ``width`` members are kept.
    """

    def __init__(
        self,
        members: Sequence[Path],
        weights: Mapping[str, float],
        before: Mapping[Path, Fraction],
        width: int,
    ) -> None:
        self.members = tuple(members)
        self.width = width
        self._given_weights = dict(weights)
        self._before = [Fraction(before[path]) for path in self.members]
        self._number = {path: number for number, path in enumerate(self.members)}
        if len(self._number) != len(self.members) or width < 1:
            raise ValueError(f"a cohort needs distinct members and a width of at least 1, not {width}")
        count = len(self.members)
        self._path_order = np.empty(count, np.int64)
        self._path_order[sorted(range(count), key=self.members.__getitem__)] = np.arange(count)
        self._fate = np.zeros(count, np.int8)  # by member: UNDECIDED, KEPT or DROPPED
        self._names: tuple[str, ...] | None = None
        self._begin((1,))
        self._cached: dict[int, tuple[Path, ...]] = {}
        self.initial = self._settle()

    # ---- what is certain so far

    @property
    def complete(self) -> bool:
        """Whether every member has been scored."""
        return self._missing == 0

    @property
    def kept(self) -> tuple[Path, ...]:
        """The members certain to stay, in member order."""
        return self._with_fate(KEPT)

    @property
    def dropped(self) -> tuple[Path, ...]:
        """The members certain to go, in member order."""
        return self._with_fate(DROPPED)

    @property
    def undecided(self) -> tuple[Path, ...]:
        """The members whose fate depends on missing scores, in member order."""
        return self._with_fate(UNDECIDED)

    def _with_fate(self, fate: int) -> tuple[Path, ...]:
        if fate not in self._cached:
            self._cached[fate] = self._paths(np.flatnonzero(self._fate == fate))
        return self._cached[fate]

    def _paths(self, numbers: npt.NDArray[np.int64]) -> tuple[Path, ...]:
        return tuple(self.members[number] for number in numbers.tolist())

    def standings(self) -> tuple[Standing, ...]:
        """The members of a complete cohort, best first."""
        assert self.complete, "ranks are known once every score is in"
        points, numbers = self._points.tolist(), self._numbers.tolist()
        full = 2 * len(self.members) * self._scale.weight
        order = np.lexsort((self._paths_scored, -self._means, -self._least)) if numbers else []
        return tuple(
            Standing(self.members[number], rank, self._before[number] + rank)
            for number, rank in ((numbers[n], Fraction(points[n], full)) for n in order)
        )

    def likely(self) -> tuple[Path, ...]:
        """Undecided members that would stay if each kept its place among those scored so far, best first.

        A member that has not been scored counts as if its rank were 1/2. Members of equal expectation come in the
        order of their paths.
        """
        room = self.width - len(self.kept)
        count, scored = len(self.members), max(self._scored, 1)
        scale = self._scale
        # In units of 1 / (scored * scale.denominator) points.
        fits = _fits_int64(
            4 * scored * count * (max(scale.exact, default=0) + count * scale.weight * scale.denominator)
        )
        exact = np.array(scale.exact, np.int64 if fits else object)
        half = count * scale.weight * scored * scale.denominator
        expected = exact * scored + half
        expected[self._numbers[: self._scored]] += (
            self._points[: self._scored].astype(expected.dtype) * (count * scale.denominator) - half
        )
        average = sum(scale.exact) * scored + count * half
        hopeful = np.flatnonzero((self._fate == UNDECIDED) & (expected * count > average))
        order = np.lexsort((self._path_order[hopeful], -expected[hopeful]))
        return self._paths(hopeful[order[:room]])

    # ---- scores

    def add(self, path: Path, panel: Panel) -> Change:
        """Take one member's scores and return what has become certain by them.

        Raises UserError when a verifier has no weight, or when the weights of this cohort's verifiers are all 0.
        """
        number = self._number.get(path)
        if number is None or self._is_scored[number]:
            raise ValueError(f"branch {path} is no member of this cohort, or was scored before")
        scores = dict(panel)
        names = tuple(sorted(scores))
        if self._names is None:
            self._begin(_whole_weights(names, self._given_weights))
            self._names = names
        if names != self._names:
            raise ValueError(
                f"branch {path} was scored by {', '.join(names)} and others of its cohort by {', '.join(self._names)}"
            )
        self._insert(number, [scores[name] for name in names])
        return self._settle()

    def _begin(self, weights: Sequence[int]) -> None:
        """Prepare for scores of verifiers with these weights. Before the first score, any weight gives the same."""
        count = len(self.members)
        self._weights = tuple(weights)
        self._scale = scale = _Scale(self._before, sum(weights))
        self._collected = np.array(scale.collected, scale.dtype)
        self._waiting = np.sort(self._collected)
        self._is_scored = np.zeros(count, np.bool_)
        self._scored, self._missing = 0, count
        # What follows is in order of arrival: the first self._scored entries are in use.
        self._numbers = np.zeros(count, np.int64)
        self._columns = np.zeros((len(weights), count), np.float64)
        self._means = np.zeros(count, np.float64)
        self._paths_scored = np.zeros(count, np.int64)
        self._points = np.zeros(count, scale.dtype)
        self._least = np.zeros(count, scale.dtype)
        self._look_stays = np.full(count, count, np.int64)
        self._look_goes = np.full(count, count, np.int64)

    def _insert(self, number: int, scores: Sequence[float]) -> None:
        """Count the points that the new score brings to the others and to its own member."""
        scale, new = self._scale, self._scored
        own = 0
        gains: Whole = np.zeros(new, scale.dtype)
        for column, weight, score in zip(self._columns, self._weights, scores, strict=True):
            above, level = column[:new] > score, column[:new] == score
            gains += above.astype(scale.dtype) * (2 * weight) + level.astype(scale.dtype) * weight
            own += weight * (2 * (new - int(above.sum())) - int(level.sum()) + 1)
            column[new] = score
        self._points[:new] += gains
        self._least[:new] += gains * scale.point
        self._points[new] = own
        self._least[new] = self._collected[number] + own * scale.point
        self._means[new] = sum(weight * score for weight, score in zip(self._weights, scores, strict=True))
        self._numbers[new] = number
        self._paths_scored[new] = self._path_order[number]
        self._is_scored[number] = True
        place = int(np.searchsorted(self._waiting, self._collected[number]))
        self._waiting = np.delete(self._waiting, place)
        self._scored += 1
        self._missing -= 1

    # ---- what is certain

    def _settle(self) -> Change:
        """Decide every member that can be decided by now."""
        undecided = self._fate == UNDECIDED
        kept: list[int] = []
        dropped: list[int] = []
        scale, scored = self._scale, self._scored
        open_ = undecided[self._numbers[:scored]]
        least = self._least[:scored]
        most = least + self._swing
        # below the average
        below = open_ & (most < scale.average)
        dropped += self._numbers[:scored][below].tolist()
        open_ &= ~below
        for new in np.flatnonzero(open_).tolist():
            if least[new] >= scale.average and self._look_stays[new] >= self._missing and self._stays(new):
                kept.append(int(self._numbers[new]))
            elif self._look_goes[new] >= self._missing and self._goes(new):
                dropped.append(int(self._numbers[new]))
        for number in np.flatnonzero(undecided & ~self._is_scored).tolist():
            low = self._collected[number] + scale.weight * scale.point
            high = self._collected[number] + self._unscored_most
            if low >= scale.average and self._count_reaching(low) - 1 < self.width:
                kept.append(number)
            elif high < scale.average or self._count_surely_above(high) >= self.width:
                dropped.append(number)
        self._fate[kept] = KEPT
        self._fate[dropped] = DROPPED
        if kept or dropped:
            self._cached.clear()
        return Change(self._paths(np.sort(kept).astype(int)), self._paths(np.sort(dropped).astype(int)))

    @property
    def _swing(self) -> int:
        """The most that missing scores can still add to the total of a scored member."""
        return 2 * self._scale.weight * self._missing * self._scale.point

    @property
    def _unscored_most(self) -> int:
        return (2 * len(self.members) - 1) * self._scale.weight * self._scale.point

    def _count_reaching(self, low: int) -> int:
        scored = int((self._least[: self._scored] + self._swing >= low).sum())
        return scored + int((self._waiting + self._unscored_most >= low).sum())

    def _count_surely_above(self, high: int) -> int:
        return int((self._least[: self._scored] > high).sum()) + int(
            (self._waiting + self._scale.weight * self._scale.point > high).sum()
        )

    def _stays(self, new: int) -> bool:
        scale, scored = self._scale, self._scored
        least = self._least[:scored]
        behind = np.zeros(scored, scale.dtype)
        for column, weight in zip(self._columns, self._weights, strict=True):
            behind += (column[:scored] > column[new]).astype(scale.dtype) * weight
        gap = least[new] - least - 2 * self._missing * behind * scale.point
        rivals = ~((gap > 0) | ((gap == 0) & self._tie(new)))
        count = int(rivals.sum()) - 1 + int((self._waiting + self._unscored_most >= least[new]).sum())
        return count < self.width

    def _goes(self, new: int) -> bool:
        scale, scored = self._scale, self._scored
        least = self._least[:scored]
        ahead = np.zeros(scored, scale.dtype)
        for column, weight in zip(self._columns, self._weights, strict=True):
            ahead += (column[:scored] < column[new]).astype(scale.dtype) * weight
        gap = least - least[new] - 2 * self._missing * ahead * scale.point
        tie = ~self._tie(new)
        tie[new] = False
        sure = (gap > 0) | ((gap == 0) & tie)
        count = int(sure.sum()) + int((self._waiting + scale.weight * scale.point > least[new] + self._swing).sum())
        return count >= self.width

    def _tie(self, new: int) -> Flags:
        """Whom the member precedes at equal totals."""
        means, paths = self._means[: self._scored], self._paths_scored[: self._scored]
        result: Flags = (means[new] > means) | ((means[new] == means) & (paths[new] < paths))
        return result


UNDECIDED, KEPT, DROPPED = 0, 1, 2


class _Scale:
    """Totals as whole numbers that compare as the exact totals do.

    In points, of which 2 * count * weight make a rank of 1, a total is a whole number and what the path has collected.
    """

    def __init__(self, before: Sequence[Fraction], weight: int) -> None:
        count = len(before)
        self.weight = weight
        full = 2 * count * weight
        self.denominator = math.lcm(*(value.denominator for value in before))
        self.exact = [value.numerator * (self.denominator // value.denominator) * full for value in before]
        rests = sorted({value % self.denominator for value in self.exact} | {0})
        place = {rest: index for index, rest in enumerate(rests)}
        self.point = len(rests)
        self.collected = [
            value // self.denominator * self.point + place[value % self.denominator] for value in self.exact
        ]
        average = Fraction(sum(self.exact), max(count, 1) * self.denominator) + count * weight
        rest = (average % 1) * self.denominator
        self.average = math.floor(average) * self.point + sum(value < rest for value in rests)
        largest = max(self.collected, default=0) + 4 * full * self.point
        self.dtype: type = np.int64 if _fits_int64(4 * largest) else object


def _fits_int64(value: int) -> bool:
    return value < 2**62


def _whole_weights(names: Sequence[str], weights: Mapping[str, float]) -> list[int]:
    """The weights of these verifiers as whole numbers in the same proportion; decimals are taken as written."""
    if not names:
        raise ValueError("a branch was scored by no verifier")
    missing = [name for name in names if weights and name not in weights]
    if missing:
        raise UserError(
            f"verifier {missing[0]!r} has no weight, the weights name {', '.join(weights)}: "
            "add it, or leave the weights empty to count all verifiers alike"
        )
    exact = [Fraction(str(weights[name])) if weights else Fraction(1) for name in names]
    if min(exact) < 0 or sum(exact) == 0:
        raise UserError(
            f"the weights of {', '.join(names)} are {', '.join(map(str, exact))}: they must not be negative nor all 0"
        )
    scale = math.lcm(*(value.denominator for value in exact))
    return [int(value * scale) for value in exact]
