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
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from framegrove.errors import UserError
from framegrove.search.tree import Panel
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
        self.looks = 0
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
            self._cached[fate] = self._paths(np.flatnonzero(self._fate == fate).tolist())
        return self._cached[fate]

    def _paths(self, numbers: Iterable[int]) -> tuple[Path, ...]:
        return tuple(self.members[number] for number in numbers)

    def standings(self) -> tuple[Standing, ...]:
        """The members of a complete cohort, best first."""
        assert self.complete, "ranks are known once every score is in"
        points, numbers = self._points().tolist(), self._numbers.tolist()
        full = 2 * len(self.members) * self._scale.weight
        order = np.lexsort((self._order, -self._means, -self._least)) if numbers else []
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
            self._points().astype(expected.dtype) * (count * scale.denominator) - half
        )
        average = sum(scale.exact) * scored + count * half
        hopeful = np.flatnonzero((self._fate == UNDECIDED) & (expected * count > average))
        order = np.lexsort((self._path_order[hopeful], -expected[hopeful]))
        return self._paths(hopeful[order[:room]].tolist())

    def _points(self) -> Whole:
        """What the scores so far have brought, by arrival."""
        collected = self._collected[self._numbers[: self._scored]]
        return (self._least[: self._scored] - collected) // self._scale.point

    # ---- scores

    def add(self, path: Path, panel: Panel) -> Change:
        """Take one member's scores and return what has become certain by them.

        Raises UserError when a verifier has no weight, or when the weights of this cohort's verifiers are all 0.
        """
        number = self._number.get(path)
        if number is None or number in self._numbers[: self._scored]:
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
        self._scored, self._missing = 0, count
        # Members without a score, by what their paths have collected; of the first self._missing entries, in use,
        # those at the ends are decided: self._lost at the start, self._safe at the end.
        self._waiting = np.argsort(self._collected, kind="stable")
        self._waiting_collected = self._collected[self._waiting]
        self._lost = int(np.count_nonzero(self._fate == DROPPED))
        self._safe = int(np.count_nonzero(self._fate == KEPT))
        # Members with a score, in order of arrival: the first self._scored entries are in use.
        self._numbers = np.zeros(count, np.int64)
        self._columns = np.zeros((len(weights), count), np.float64)
        self._means = np.zeros(count, np.float64)
        self._order = np.zeros(count, np.int64)
        self._least = np.zeros(count, scale.dtype)
        self._open = np.zeros(count, np.bool_)
        self._next_look = np.full((2, count), count, np.int64)
        self._margin = np.zeros(count, scale.dtype)
        self._range = np.arange(count + 1)
        self._gains = [2 * weight * scale.point for weight in weights]
        self._step = sum(self._gains)
        self._average = scale.average
        self._unscored_least = scale.weight * scale.point
        self._unscored_most = (2 * count - 1) * scale.weight * scale.point
        self._quota = (count - self.width, self.width)
        largest = max(scale.collected, default=0) + self._step * count
        self._never = (-1, largest)

    def _insert(self, number: int, scores: Sequence[float]) -> None:
        """Count the points that the new score brings to the others and to its own member."""
        new = self._scored
        own = 0
        least = self._least[:new]
        for column, gain, score in zip(self._columns, self._gains, scores, strict=True):
            known = column[:new]
            above, level = known > score, known == score
            least += np.multiply(above, gain, dtype=self._scale.dtype)
            ties = int(np.count_nonzero(level))
            if ties:
                least += np.multiply(level, gain // 2, dtype=self._scale.dtype)
            own += gain * (new - int(np.count_nonzero(above))) - gain // 2 * (ties - 1)
            column[new] = score
        self._least[new] = self._collected[number] + own
        self._means[new] = sum(weight * score for weight, score in zip(self._weights, scores, strict=True))
        self._numbers[new] = number
        self._order[new] = self._path_order[number]
        self._open[new] = self._fate[number] == UNDECIDED
        place = int(np.flatnonzero(self._waiting[: self._missing] == number)[0])
        self._lost -= place < self._lost
        self._safe -= place >= self._missing - self._safe
        for array in (self._waiting, self._waiting_collected):
            array[place : self._missing - 1] = array[place + 1 : self._missing]
        self._scored += 1
        self._missing -= 1

    # ---- what is certain

    def _settle(self) -> Change:
        """Decide every member that can be decided by now."""
        below = np.flatnonzero(self._open[: self._scored] & (self._least[: self._scored] < self._average - self._swing))
        self._open[below] = False
        going = [*below.tolist(), *self._find(AHEAD_OF_IT)]
        staying = self._find(BEHIND_IT)
        dropped = [*self._numbers[going].tolist(), *self._find_lost()]
        kept = [*self._numbers[staying].tolist(), *self._find_safe()]
        if not kept and not dropped:
            return NO_CHANGE
        self._fate[kept] = KEPT
        self._fate[dropped] = DROPPED
        self._cached.clear()
        return Change(self._paths(sorted(kept)), self._paths(sorted(dropped)))

    def _find(self, side: int) -> list[int]:
        """The undecided scored members that have enough others surely behind them to stay, or ahead to go."""
        scored, missing = self._scored, self._missing
        least = self._least[:scored]
        candidates = self._open[:scored] & (self._next_look[side, :scored] >= missing)
        if side == BEHIND_IT:
            candidates &= least >= self._average
        numbers = np.flatnonzero(candidates)
        totals = least[numbers]
        found = []
        for _ in range(len(numbers)):
            best = int(totals.argmax() if side == BEHIND_IT else totals.argmin())
            new = int(numbers[best])
            if not self._may_be_settled(new, side):
                break
            if self._is_settled(new, side):
                self._open[new] = False
                found.append(new)
            totals[best] = self._never[side]
        return found

    def _may_be_settled(self, new: int, side: int) -> bool:
        """A cheap test that members which are settled pass, and the better (worse) ones if any of them does."""
        least = self._least[: self._scored]
        waiting = self._waiting_collected[: self._missing]
        if side == BEHIND_IT:
            count = int(np.searchsorted(waiting, least[new] - self._unscored_most))
            if count + self._scored - 1 < self._quota[side]:
                return False
            return count + int(np.count_nonzero(least <= least[new])) - 1 >= self._quota[side]
        bound = least[new] + self._swing - self._unscored_least
        count = self._missing - int(np.searchsorted(waiting, bound, side="right"))
        if count + self._scored - 1 < self._quota[side]:
            return False
        return count + int(np.count_nonzero(least >= least[new])) - 1 >= self._quota[side]

    def _is_settled(self, new: int, side: int) -> bool:
        """Whether so many others are surely behind (ahead of) the member; if not, note when to look at it again."""
        self.looks += 1
        scored, missing = self._scored, self._missing
        margin = self._margin
        least, own = self._least[:scored], self._least[new]
        waiting = self._waiting_collected[:missing]
        better = np.greater if side == BEHIND_IT else np.less
        if side == BEHIND_IT:
            np.subtract(own, least, out=margin[:scored])
            np.subtract(own - self._unscored_most - 1, waiting, out=margin[scored:])
        else:
            np.subtract(least, own, out=margin[:scored])
            np.subtract(waiting, own + self._swing - self._unscored_least + 1, out=margin[scored:])
        for column, gain in zip(self._columns, self._gains, strict=True):
            margin[:scored] -= np.multiply(better(column[:scored], column[new]), missing * gain, dtype=margin.dtype)
        level = np.flatnonzero(margin[:scored] == 0)
        margin[level] -= self._precedes(new, level) != (side == BEHIND_IT)
        steps = np.minimum(-(margin // self._step), missing + 1)
        np.maximum(steps, 0, out=steps)
        steps[new] = missing + 1
        reach = np.cumsum(np.bincount(steps.astype(np.int64), minlength=missing + 2)[: missing + 1])
        if reach[0] >= self._quota[side]:
            return True
        reach += self._range[: missing + 1]
        first = int(np.searchsorted(reach, self._quota[side]))
        self._next_look[side, new] = missing - first
        return False

    def _precedes(self, new: int, others: npt.NDArray[np.int64]) -> Flags:
        """Whom the member precedes at equal totals."""
        mean, order = self._means[new], self._order[new]
        means = self._means[others]
        result: Flags = (mean > means) | ((mean == means) & (order < self._order[others]))
        return result

    @property
    def _swing(self) -> int:
        """The most that missing scores can still add to the total of a scored member."""
        return self._step * self._missing

    def _find_safe(self) -> list[int]:
        values = self._waiting_collected[: self._missing]
        found = []
        while self._lost + self._safe < self._missing:
            place = self._missing - 1 - self._safe
            low = values[place] + self._unscored_least
            if low < self._average:
                break
            behind = int(np.searchsorted(values, low - self._unscored_most))
            if behind + self._scored < self._quota[BEHIND_IT]:
                break
            behind += int(np.count_nonzero(self._least[: self._scored] < low - self._swing))
            if behind < self._quota[BEHIND_IT]:
                break
            found.append(int(self._waiting[place]))
            self._safe += 1
        return found

    def _find_lost(self) -> list[int]:
        values = self._waiting_collected[: self._missing]
        found = []
        while self._lost + self._safe < self._missing:
            high = values[self._lost] + self._unscored_most
            if high >= self._average:
                ahead = self._missing - int(np.searchsorted(values, high - self._unscored_least, side="right"))
                if ahead + self._scored < self._quota[AHEAD_OF_IT]:
                    break
                ahead += int(np.count_nonzero(self._least[: self._scored] > high))
                if ahead < self._quota[AHEAD_OF_IT]:
                    break
            found.append(int(self._waiting[self._lost]))
            self._lost += 1
        return found


UNDECIDED, KEPT, DROPPED = 0, 1, 2
BEHIND_IT, AHEAD_OF_IT = 0, 1
NO_CHANGE = Change()


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
