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
from framegrove.search.tree import Scores
from framegrove.types import Path

Whole = npt.NDArray[Any]  # int64, or Python integers where 64 bits are too few
Flags = npt.NDArray[np.bool_]
Weigh = Callable[[str], float]
"""The weight of a column of scores, by its name."""


def equally(column: str) -> float:
    """All columns count alike."""
    return 1.0


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

    ``weigh`` gives the weight of each of the panel's scores by its name. ``before`` is what each
    member's path has collected in earlier cohorts. At most ``width`` members are kept.
    """

    def __init__(
        self,
        members: Sequence[Path],
        weigh: Weigh,
        before: Mapping[Path, Fraction],
        width: int,
    ) -> None:
        self.members = tuple(members)
        self.width = width
        self.looks = 0
        self._weigh = weigh
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

    def add(self, path: Path, panel: Scores) -> Change:
        """Take one member's scores and return what has become certain by them.

        Raises UserError when the weights of this cohort's scores are all 0, or one is negative.
        """
        number = self._number.get(path)
        if number is None or number in self._numbers[: self._scored]:
            raise ValueError(f"branch {path} is no member of this cohort, or was scored before")
        scores = dict(panel)
        names = tuple(sorted(scores))
        if self._names is None:
            self._begin(_whole_weights(names, [self._weigh(name) for name in names]))
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
        self._look_stays = np.full(count, count, np.int64)
        self._look_goes = np.full(count, count, np.int64)

    def _insert(self, number: int, scores: Sequence[float]) -> None:
        """Count the points that the new score brings to the others and to its own member."""
        scale, new = self._scale, self._scored
        own = 0
        least = self._least[:new]
        for column, weight, score in zip(self._columns, self._weights, scores, strict=True):
            known = column[:new]
            above, level = known > score, known == score
            least += above.astype(scale.dtype) * (2 * weight * scale.point)
            ties = int(np.count_nonzero(level))
            if ties:
                least += level.astype(scale.dtype) * (weight * scale.point)
            own += weight * (2 * (new - int(np.count_nonzero(above))) - ties + 1)
            column[new] = score
        self._least[new] = self._collected[number] + own * scale.point
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
        average = self._scale.average
        least = self._least[: self._scored]
        fallen = np.flatnonzero(self._open[: self._scored] & (least < average - self._swing)).tolist()
        self._open[fallen] = False
        leaving = self._find_leaving()
        self._open[leaving] = False
        staying = self._find_staying()
        self._open[staying] = False
        dropped = [*self._numbers[[*fallen, *leaving]].tolist(), *self._find_lost()]
        kept = [*self._numbers[staying].tolist(), *self._find_safe()]
        if not kept and not dropped:
            return Change()
        self._fate[kept] = KEPT
        self._fate[dropped] = DROPPED
        self._cached.clear()
        return Change(self._paths(sorted(kept)), self._paths(sorted(dropped)))

    def _find_safe(self) -> list[int]:
        scale, values = self._scale, self._waiting_collected[: self._missing]
        found = []
        while self._lost + self._safe < self._missing:
            place = self._missing - 1 - self._safe
            low = values[place] + scale.weight * scale.point
            if low < scale.average:
                break
            rivals = self._missing - int(np.searchsorted(values, low - self._unscored_most)) - 1
            if rivals >= self.width:
                break
            rivals += int(np.count_nonzero(self._least[: self._scored] >= low - self._swing))
            if rivals >= self.width:
                break
            found.append(int(self._waiting[place]))
            self._safe += 1
        return found

    def _find_lost(self) -> list[int]:
        scale, values = self._scale, self._waiting_collected[: self._missing]
        found = []
        while self._lost + self._safe < self._missing:
            high = values[self._lost] + self._unscored_most
            if high >= scale.average:
                ahead = self._missing - int(np.searchsorted(values, high - scale.weight * scale.point, side="right"))
                if ahead + self._scored < self.width:
                    break
                ahead += int(np.count_nonzero(self._least[: self._scored] > high))
                if ahead < self.width:
                    break
            found.append(int(self._waiting[self._lost]))
            self._lost += 1
        return found

    def _find_staying(self) -> list[int]:
        least = self._least[: self._scored]
        candidates = np.flatnonzero(
            self._open[: self._scored]
            & (self._look_stays[: self._scored] >= self._missing)
            & (least >= self._scale.average)
        )
        values = self._waiting_collected[: self._missing]
        found = []
        while candidates.size:
            best = int(np.argmax(least[candidates]))
            new = int(candidates[best])
            first = int(np.searchsorted(values, least[new] - self._unscored_most))
            rivals = self._missing - first
            if rivals >= self.width or rivals + int(np.count_nonzero(least > least[new])) >= self.width:
                break
            if self._stays(new, values[first:]):
                found.append(new)
            candidates = np.delete(candidates, best)
        return found

    def _find_leaving(self) -> list[int]:
        scale = self._scale
        least = self._least[: self._scored]
        candidates = np.flatnonzero(self._open[: self._scored] & (self._look_goes[: self._scored] >= self._missing))
        values = self._waiting_collected[: self._missing]
        found = []
        while candidates.size:
            best = int(np.argmin(least[candidates]))
            new = int(candidates[best])
            first = int(np.searchsorted(values, least[new] + self._swing - scale.weight * scale.point, side="right"))
            ahead = self._missing - first
            if (
                ahead + self._scored - 1 < self.width
                or ahead + int(np.count_nonzero(least >= least[new])) - 1 < self.width
            ):
                break
            if self._goes(new, ahead, values[:first]):
                found.append(new)
            candidates = np.delete(candidates, best)
        return found

    @property
    def _step(self) -> int:
        return 2 * self._scale.weight * self._scale.point

    @property
    def _swing(self) -> int:
        """The most that missing scores can still add to the total of a scored member."""
        return self._step * self._missing

    @property
    def _unscored_most(self) -> int:
        return (2 * len(self.members) - 1) * self._scale.weight * self._scale.point

    def _stays(self, new: int, waiting_rivals: Whole) -> bool:
        """Whether the scored member surely stays; if not, note when to look again."""
        scored = self._scored
        least = self._least[:scored]
        gap = least[new] - least - self._worst_loss(new, np.greater)
        rivals = gap < 0
        level = np.flatnonzero(gap == 0)
        rivals[level] = ~self._tie(new, level)
        rivals[new] = False
        self.looks += 1
        need = int(np.count_nonzero(rivals)) + len(waiting_rivals) - self.width + 1
        if need <= 0:
            return True
        steps = np.maximum(-(gap[rivals] // self._step), 1)
        waiting = (waiting_rivals + (self._unscored_most - least[new])) // self._step + 1
        self._look_stays[new] = self._missing - self._fewest_scores(need, steps, waiting)
        return False

    def _goes(self, new: int, waiting_ahead: int, waiting_behind: Whole) -> bool:
        scored = self._scored
        least = self._least[:scored]
        gap = least - least[new] - self._worst_loss(new, np.less)
        others = gap < 0
        level = np.flatnonzero(gap == 0)
        others[level] = self._tie(new, level)
        others[new] = True
        self.looks += 1
        need = self.width - waiting_ahead - (scored - int(np.count_nonzero(others)))
        if need <= 0:
            return True
        others[new] = False
        steps = np.maximum(-(gap[others] // self._step), 1)
        bound = least[new] + self._swing - self._scale.weight * self._scale.point
        waiting = (bound - waiting_behind) // self._step + 1
        self._look_goes[new] = self._missing - self._fewest_scores(need, steps, waiting)
        return False

    def _worst_loss(self, new: int, better: Callable[..., Flags]) -> Whole:
        loss: Whole = np.zeros(self._scored, self._scale.dtype)
        for column, weight in zip(self._columns, self._weights, strict=True):
            loss += better(column[: self._scored], column[new]).astype(self._scale.dtype) * (
                2 * self._missing * weight * self._scale.point
            )
        return loss

    def _fewest_scores(self, need: int, *steps: Whole) -> int:
        """The fewest further scores by which ``need`` of these may be settled, one more with each score."""
        horizon = min(need, self._missing + 1)
        counts = sum(np.bincount(np.minimum(some, horizon).astype(np.int64), minlength=horizon + 1) for some in steps)
        reach = np.cumsum(counts[:horizon]) + np.arange(horizon) >= need
        return int(np.argmax(reach)) if reach.any() else horizon

    def _tie(self, new: int, others: npt.NDArray[np.int64]) -> Flags:
        """Whom the member precedes at equal totals."""
        mean, order = self._means[new], self._order[new]
        means = self._means[others]
        result: Flags = (mean > means) | ((mean == means) & (order < self._order[others]))
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


def _whole_weights(names: Sequence[str], weights: Sequence[float]) -> list[int]:
    """The weights as whole numbers in the same proportion; decimals are taken as written."""
    if not names:
        raise ValueError("a branch was scored by no verifier")
    exact = [Fraction(str(weight)) for weight in weights]
    if min(exact) < 0 or sum(exact) == 0:
        raise UserError(
            f"the weights of {', '.join(names)} are {', '.join(map(str, weights))}: they must not be negative nor all 0"
        )
    scale = math.lcm(*(value.denominator for value in exact))
    return [int(value * scale) for value in exact]
