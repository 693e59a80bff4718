"""Scores fused by weighted ranks (VT1 eq. 7), and the members a cut keeps, found as early as the scores allow.

**Rank.** A cohort is the set of branches judged by one assessment at one depth. Each verifier ranks its n members on
its own, so that verifiers on different scales can be added. A member's rank is

    (members with a lower score + half of those with the same score, itself included) / n,

which lies in (0, 1) and averages exactly 1/2. The fused rank is the weighted mean of the verifiers' ranks.

**Total.** A member's total is its fused rank plus what its path has collected in earlier cohorts.

**Cut.** A cut keeps the members whose total is not below the cohort's average (VT1 alg. 2), at most ``width`` of them,
best first. Members are ordered by total, then by weighted mean score, then by path. No two are equal in this order:
nothing is left to chance, and ties never widen the tree.

**Points.** On a verifier of weight w, a member has 2w points for every scored member below it and w for every one level
with it, itself included. When all n are scored, 2 n W points make a rank of 1, W being the sum of the weights. Since
ranks average 1/2, the average total is known before any score is: n W points plus the average collected.

**What is certain early.** Each missing score will bring a scored member 0 to 2W points, so with m scores missing

- a scored member ends between *least*, the points it has, and *most* = least + 2W m;
- a member without a score ends between W (itself) and W (2n - 1).

One member is *surely ahead* of another if its least is above the other's most, or, when both are scored, if its lead
outlasts the worst case: wherever the other has the higher score, every missing score may fall between the two and bring
the other 2w points closer; elsewhere, a missing score cannot shorten the lead. That is,

    lead - 2m (weights of the verifiers by which the other is higher) > 0, or = 0 and the tie-break decides.

A member *stays* once its least reaches the average and it is surely ahead of n - width others. It *goes* once its most
is below the average or width others are surely ahead of it. Such an answer holds however the missing scores turn out.

*Example.* Four members, verifiers a and b of weight 1, nothing collected, width 2: 16 points make a rank of 1, and the
average is 8. Three are scored, D is missing:

          a    b    points      least  most
    A    0.9  0.6   5 + 3  =      8     12
    B    0.5  0.7   3 + 5  =      8     12
    C    0.1  0.2   1 + 1  =      2      6     goes: 6 < 8
    D                             2     14

A reaches the average, but needs n - width = 2 others surely behind it and has one. It is ahead of C (lead 6, and C is
higher nowhere) but not of D (8 is not above 14), nor of B: the lead is 0, and one missing score between 0.6 and 0.7
would give B two points on b, so 0 - 2 < 0. At a width of 3 one is enough: A and B would stay now. If D comes with 0.7
and 0.1, the points are A 12, B 10, D 6 and C 4: A and B stay. With 0.7 and 0.65, A, B and D have 10 each, and A and D
stay because their mean scores are higher.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from framegrove.search.points import Scale, whole_weights
from framegrove.search.tree import Scores
from framegrove.types import Path

Integers = npt.NDArray[np.int64]
Totals = npt.NDArray[Any]  # whole numbers of the type that the scale chooses
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
    """The members that have just become certain to stay and certain to go, each in member order."""

    kept: tuple[Path, ...] = ()
    dropped: tuple[Path, ...] = ()


UNDECIDED, KEPT, DROPPED = 0, 1, 2
# A scored member's fate depends on how many others are surely behind it (it stays) or ahead of it (it goes).
BEHIND, AHEAD = 0, 1
NO_CHANGE = Change()
CHUNK = 16  # members looked at together: enough to spread NumPy's overhead, few enough to stay in the cache


class Cohort:
    """A cut that takes its members' scores one after another and reports at once what each makes certain.

    ``weigh`` gives the weight of each column of scores; ``before`` is what each member's path has collected in earlier
    cohorts; at most ``width`` members are kept. What is certain before any score is in ``initial``: a lone member
    stays, and one too far behind the others goes.

        cohort = Cohort(members, weigh, before, width)
        for path, scores in arriving:
            change = cohort.add(path, scores)
        cohort.standings()
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
        self._number = {path: number for number, path in enumerate(self.members)}
        count = len(self.members)
        if len(self._number) < count or width < 1:
            raise ValueError(f"a cohort has distinct members and a width of at least 1, not {width}")
        self._weigh = weigh
        self._before = [before[path] for path in self.members]
        self._path_order = np.empty(count, np.int64)
        self._path_order[sorted(range(count), key=self.members.__getitem__)] = np.arange(count)
        self._fate = np.full(count, UNDECIDED, np.int8)
        self._undecided_count, self._kept_count = count, 0
        self._with_fate: dict[int, tuple[Path, ...]] = {}
        self._names: tuple[str, ...] | None = None
        self._prepare([1])  # without scores, bounds are in proportion to the weights: any will do
        self.initial = self._settle()

    @property
    def complete(self) -> bool:
        """Whether every member has been scored."""
        return self._missing == 0

    @property
    def kept(self) -> tuple[Path, ...]:
        """The members certain to stay, in member order."""
        return self._select(KEPT)

    @property
    def dropped(self) -> tuple[Path, ...]:
        """The members certain to go, in member order."""
        return self._select(DROPPED)

    @property
    def undecided(self) -> tuple[Path, ...]:
        """The members whose fate depends on missing scores, in member order."""
        return self._select(UNDECIDED)

    @property
    def decided(self) -> bool:
        """Whether no member is undecided; quicker than asking for ``undecided``."""
        return self._undecided_count == 0

    @property
    def most_kept(self) -> int:
        """The most members that can still be kept in the end."""
        return min(self._kept_count + self._undecided_count, self.width)

    def add(self, path: Path, scores: Scores) -> Change:
        """Take a member's scores and return what has become certain by them.

        Raises UserError when a column's weight is negative or all weights are 0, and ValueError for a path that is no
        member or was scored before, and for other columns than those of the cohort's first scores.
        """
        number = self._number.get(path)
        if number is None or number in self._numbers[: self._scored]:
            raise ValueError(f"branch {path} is no member of this cohort, or was scored before")
        by_name = dict(scores)
        names = tuple(sorted(by_name))
        if self._names is None:
            self._prepare(whole_weights(names, [self._weigh(name) for name in names]))
            self._names = names
        if names != self._names:
            raise ValueError(
                f"branch {path} was scored by {', '.join(names)} and others of its cohort by {', '.join(self._names)}"
            )
        self._insert(number, [by_name[name] for name in names])
        return self._settle()

    def likely(self) -> tuple[Path, ...]:
        """Undecided members that would be kept if each held the place it has among those scored so far, best first.

        A member without a score counts as if its rank were 1/2. Equals come in the order of their paths.
        """
        # Expectations are compared in units of 1 / (n * scored) of a rank, times the denominator of what is collected.
        undecided = np.flatnonzero(self._fate == UNDECIDED)
        count, scored, scale = len(self.members), max(self._scored, 1), self._scale
        half = count * scale.weight * scored * scale.denominator
        points = np.full(count, -1, scale.exact.dtype)
        arrived = self._numbers[: self._scored]
        points[arrived] = (self._least[: self._scored] - self._collected[arrived]) // scale.point
        points = points[undecided]
        expected = scale.exact[undecided] * scored
        expected += np.where(points < 0, half, points * (count * scale.denominator))
        hopeful = np.flatnonzero(expected * count > scale.exact_sum * scored + count * half)
        order = np.lexsort((self._path_order[undecided[hopeful]], -expected[hopeful]))
        return self._paths(undecided[hopeful[order[: self.width - self._kept_count]]].tolist())

    def standings(self) -> tuple[Standing, ...]:
        """The members of a complete cohort, best first."""
        assert self.complete, "ranks are known once every score is in"
        one = 2 * len(self.members) * self._scale.weight
        points = ((self._least - self._collected[self._numbers]) // self._scale.point).tolist()
        standings = []
        for place in np.lexsort((self._order, -self._means, -self._least)).tolist():
            number = int(self._numbers[place])
            rank = Fraction(points[place], one)
            standings.append(Standing(self.members[number], rank, self._before[number] + rank))
        return tuple(standings)

    def _select(self, fate: int) -> tuple[Path, ...]:
        if fate not in self._with_fate:
            self._with_fate[fate] = self._paths(np.flatnonzero(self._fate == fate).tolist())
        return self._with_fate[fate]

    def _paths(self, numbers: Iterable[int]) -> tuple[Path, ...]:
        return tuple(self.members[number] for number in numbers)

    # ---- state

    def _prepare(self, weights: Sequence[int]) -> None:
        """Make ready for scores of verifiers with these weights; no member has been scored."""
        count = len(self.members)
        self._scale = scale = Scale(self._before, sum(weights))
        self._gains = [2 * weight * scale.point for weight in weights]  # what one member below is worth
        self._gain = sum(self._gains)
        self._weights = weights
        self._scored, self._missing = 0, count
        # Members without a score, in ascending order of what they have collected, which alone decides their fate. The
        # first self._missing entries are in use; the first self._lost of those go, the last self._safe stay.
        self._collected: Whole = np.array(scale.collected, scale.dtype)
        self._waiting = np.argsort(self._collected, kind="stable")
        self._waiting_collected = self._collected[self._waiting]
        self._lost = int(np.count_nonzero(self._fate == DROPPED))
        self._safe = int(np.count_nonzero(self._fate == KEPT))
        self._waiting_least = self._gain // 2
        self._waiting_most = self._gain // 2 * (2 * count - 1)
        # Scored members in order of arrival: the first self._scored entries are in use.
        self._numbers = np.zeros(count, np.int64)
        self._columns = np.zeros((len(weights), count), np.float64)
        self._means = np.zeros(count, np.float64)
        self._order = np.zeros(count, np.int64)
        self._least: Whole = np.zeros(count, scale.dtype)
        self._open = np.zeros(count, np.bool_)
        self._quota = (count - self.width, self.width)
        self._next_look = np.full((2, count), count, np.int64)
        self._range = np.arange(count + 1)

    def _insert(self, number: int, scores: Sequence[float]) -> None:
        """Move a member from the waiting to the scored ones, and give everyone the points this brings."""
        new, dtype = self._scored, self._scale.dtype
        least = self._least[:new]
        own = self._collected[number]
        for column, gain, score in zip(self._columns, self._gains, scores, strict=True):
            above, level = column[:new] > score, column[:new] == score
            ties = int(np.count_nonzero(level))
            least += np.multiply(above, gain, dtype=dtype)
            if ties:
                least += np.multiply(level, gain // 2, dtype=dtype)
            own += gain * (new - int(np.count_nonzero(above)) - ties) + gain // 2 * (ties + 1)
            column[new] = score
        self._least[new] = own
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

    @property
    def _swing(self) -> int:
        """The most that missing scores can still add to a scored member's total."""
        return self._gain * self._missing

    # ---- what is certain

    def _settle(self) -> Change:
        """Decide every member that can be decided by now."""
        below = self._open[: self._scored] & (self._least[: self._scored] < self._scale.average - self._swing)
        going = np.flatnonzero(below)
        self._open[going] = False
        dropped = self._numbers[[*going.tolist(), *self._find_settled(AHEAD)]].tolist() + self._find_lost()
        kept = self._numbers[self._find_settled(BEHIND)].tolist() + self._find_safe()
        if not kept and not dropped:
            return NO_CHANGE
        self._fate[kept] = KEPT
        self._fate[dropped] = DROPPED
        self._undecided_count -= len(kept) + len(dropped)
        self._kept_count += len(kept)
        self._with_fate.clear()
        return Change(self._paths(sorted(kept)), self._paths(sorted(dropped)))

    def _find_safe(self) -> list[int]:
        """Members without a score that stay: those that have collected most."""
        waiting, least = self._waiting_collected[: self._missing], self._least[: self._scored]
        safe = []
        while self._lost + self._safe < self._missing:
            place = self._missing - 1 - self._safe
            own = waiting[place] + self._waiting_least
            behind = int(waiting.searchsorted(own - self._waiting_most))
            if own < self._scale.average or behind + self._scored < self._quota[BEHIND]:
                break
            if behind + int(np.count_nonzero(least < own - self._swing)) < self._quota[BEHIND]:
                break
            safe.append(int(self._waiting[place]))
            self._safe += 1
        return safe

    def _find_lost(self) -> list[int]:
        """Members without a score that go: those that have collected least."""
        waiting, least = self._waiting_collected[: self._missing], self._least[: self._scored]
        lost = []
        while self._lost + self._safe < self._missing:
            most = waiting[self._lost] + self._waiting_most
            if most >= self._scale.average:
                ahead = self._missing - int(waiting.searchsorted(most - self._waiting_least, side="right"))
                if ahead + self._scored < self._quota[AHEAD]:
                    break
                if ahead + int(np.count_nonzero(least > most)) < self._quota[AHEAD]:
                    break
            lost.append(int(self._waiting[self._lost]))
            self._lost += 1
        return lost

    def _find_settled(self, side: int) -> list[int]:
        """Undecided scored members with enough others surely behind them to stay, or ahead of them to go."""
        least = self._least[: self._scored]
        due = self._open[: self._scored] & (self._next_look[side, : self._scored] >= self._missing)
        if side == BEHIND:
            due &= least >= self._scale.average
        candidates = np.flatnonzero(due)
        keys = -least[candidates] if side == BEHIND else least[candidates]  # the most promising first
        found: list[int] = []
        while len(candidates) and self._may_be_settled(candidates[keys.argmin()], side):
            parts = np.argpartition(keys, CHUNK) if len(keys) > CHUNK else keys.argsort()
            chunk = candidates[parts[:CHUNK]][keys[parts[:CHUNK]].argsort()]
            passing = bisect_left(chunk, True, key=lambda member: not self._may_be_settled(member, side))
            found += chunk[:passing][self._look(chunk[:passing], side)].tolist()
            if passing < len(chunk):
                break
            candidates, keys = candidates[parts[CHUNK:]], keys[parts[CHUNK:]]
        self._open[found] = False
        return found

    def _may_be_settled(self, member: int, side: int) -> bool:
        """A quick test that every settled member passes, and with it all that are more promising.

        A member cannot be surely ahead of one that has more points now, nor surely behind one that has fewer.
        """
        own, least, waiting = self._least[member], self._least[: self._scored], self._waiting_collected[: self._missing]
        if side == BEHIND:
            sure = int(waiting.searchsorted(own - self._waiting_most))
            possible = least <= own
        else:
            sure = self._missing - int(waiting.searchsorted(own + self._swing - self._waiting_least, side="right"))
            possible = least >= own
        needed = self._quota[side] - sure
        return needed < self._scored and int(np.count_nonzero(possible)) - 1 >= needed

    def _look(self, members: Integers, side: int) -> npt.NDArray[np.bool_]:
        """Compare these members with all others: which are settled? Note for the rest when to look again.

        A pair's margin, the lead that outlasts the worst case, never shrinks, and one more score widens it by at most
        ``gain`` (2W points): short by x, it is made up by ceil(x / gain) scores at the earliest. A member without a
        score may change more when it is scored, but each score does that to one member only. A member that needs
        ``quota`` sure others is therefore not settled after d more scores unless

            (others that are sure now) + (margins that d scores can make up) + d >= quota,

        and need not be looked at before the smallest such d. Example: 3 of 10 needed are sure, and the margins of the
        others can be made up by 1, 1, 2, 3, 5, 8, .. scores. After 2 scores at most 3 + 3 + 2 = 8 are sure, after 3 at
        most 3 + 4 + 3 = 10: the next look is due 3 scores from now. The intervals shrink geometrically as the answer
        comes near, so that a member is looked at about log n times.
        """
        quota, count = self._quota[side], len(members)
        margins = self._margins(members, side)
        positive = margins > 0
        sure = np.count_nonzero(positive, axis=1)
        limit = np.clip(quota - sure, 0, self._missing)  # each score brings one at least: no need to see further
        near = (margins >= -self._gain * limit.astype(margins.dtype)[:, None]) ^ positive
        rows, others = np.divmod(np.flatnonzero(near), margins.shape[1])
        short = -margins[rows, others]
        steps = np.maximum(-(-short // self._gain), 1).astype(np.int64)
        level = np.flatnonzero((short == 0) & (others < self._scored))
        steps[level[self._wins_tie(members[rows[level]], others[level], side)]] = 0
        horizon = int(limit.max()) + 1
        steps[others == members[rows]] = horizon  # nobody is ahead of itself
        table = np.bincount(rows * (horizon + 1) + np.minimum(steps, horizon), minlength=count * (horizon + 1))
        reach = table.reshape(count, horizon + 1)[:, :horizon].cumsum(axis=1) + sure[:, None]
        settled = reach[:, 0] >= quota
        reach += self._range[:horizon]
        for member, row in zip(members.tolist(), reach, strict=True):
            self._next_look[side, member] = self._missing - int(row.searchsorted(quota))
        return settled

    def _margins(self, members: Integers, side: int) -> Totals:
        """How far each member's lead over (arrears to) every other outlasts the worst case, shape (members, others).

        Above 0 is sure, below is not; 0 is for the tie-break between scored members, and otherwise not sure. The scored
        others come first, then as many of the waiting as can be sure by the last score.
        """
        scored, least, waiting = self._scored, self._least[: self._scored], self._waiting_collected[: self._missing]
        own = self._least[members][:, None]
        if side == BEHIND:
            bound = own - self._waiting_most
            waiting = waiting[: waiting.searchsorted(bound.max() + self._swing, side="right")]
        else:
            bound = own + self._swing - self._waiting_least
            waiting = waiting[waiting.searchsorted(bound.min() - self._swing) :]
        margins: Totals = np.empty((len(members), scored + len(waiting)), self._scale.dtype)
        pairs, others = margins[:, :scored], margins[:, scored:]
        if side == BEHIND:
            np.subtract(own, least, out=pairs)
            np.subtract(bound, waiting, out=others)
        else:
            np.subtract(least, own, out=pairs)
            np.subtract(waiting, bound, out=others)
        for column, gain in zip(self._columns, self._gains, strict=True):
            scores, score = column[:scored], column[members][:, None]
            against = scores > score if side == BEHIND else scores < score
            pairs -= np.multiply(against, gain * self._missing, dtype=margins.dtype)
        return margins

    def _wins_tie(self, members: Integers, others: Integers, side: int) -> npt.NDArray[np.bool_]:
        """Whether scored members come before (after) others of the same total."""
        means, other_means = self._means[members], self._means[others]
        earlier = self._order[members] < self._order[others]
        before: npt.NDArray[np.bool_] = (means > other_means) | ((means == other_means) & earlier)
        return before if side == BEHIND else ~before
