"""Which members of a cohort surely stay and go, score by score: the bounds that search/ranks.py explains, in arrays.

All pairs are never computed at once: a score updates the least totals of all members in one vector operation, and a
member is compared with all others only when its answer could have changed since the last time (see ``_look``).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from framegrove.search.points import Scale

Integers = npt.NDArray[np.int64]
Totals = npt.NDArray[Any]  # whole numbers of the type that the scale chooses

UNDECIDED, KEPT, DROPPED = 0, 1, 2
# A scored member's fate depends on how many others are surely behind it (it stays) or ahead of it (it goes).
BEHIND, AHEAD = 0, 1
CHUNK = 16  # members looked at together: enough to spread NumPy's overhead, few enough to stay in the cache


class Bounds:
    """The bounds of a cohort's totals. Members go by their numbers.

    ``before`` is what each member's path has collected, ``path_order`` its path's place among the sorted paths,
    ``fates`` whether it is undecided, kept or dropped: the caller's array, read here when a member is scored.
    ``weights`` are those of the columns of scores.
    """

    def __init__(
        self,
        before: Sequence[Fraction],
        path_order: Integers,
        weights: Sequence[int],
        width: int,
        fates: npt.NDArray[np.int8],
    ) -> None:
        count = len(before)
        self.scale = scale = Scale(before, sum(weights))
        self.scored = 0
        self.missing = count
        self._path_order = path_order
        self._fates = fates
        self._weights = weights
        self._gains = [2 * weight * scale.point for weight in weights]  # what one member below is worth
        self._gain = sum(self._gains)
        # Members without a score, in ascending order of what they have collected, which alone decides their fate. The
        # first self.missing entries are in use; the first self._lost of those go, the last self._safe stay.
        self._collected: Totals = np.array(scale.collected, scale.dtype)
        self._waiting = np.argsort(self._collected, kind="stable")
        self._waiting_collected = self._collected[self._waiting]
        self._lost = int(np.count_nonzero(fates == DROPPED))
        self._safe = int(np.count_nonzero(fates == KEPT))
        self._waiting_least = self._gain // 2
        self._waiting_most = self._gain // 2 * (2 * count - 1)
        # Scored members in order of arrival: the first self.scored entries are in use.
        self._numbers = np.zeros(count, np.int64)
        self._columns = np.zeros((len(weights), count), np.float64)
        self._means = np.zeros(count, np.float64)
        self._order = np.zeros(count, np.int64)
        self._least: Totals = np.zeros(count, scale.dtype)
        self._open = np.zeros(count, np.bool_)
        self._quota = (count - width, width)
        self._next_look = np.full((2, count), count, np.int64)
        self._range = np.arange(count + 1)

    @property
    def arrived(self) -> Integers:
        """The numbers of the scored members, in order of arrival."""
        return self._numbers[: self.scored]

    def is_scored(self, number: int) -> bool:
        """Whether this member's scores have been added."""
        return bool((self.arrived == number).any())

    def points(self) -> Totals:
        """What the scores so far have brought each scored member, in order of arrival."""
        points: Totals = (self._least[: self.scored] - self._collected[self.arrived]) // self.scale.point
        return points

    def best_first(self) -> Integers:
        """The places of the scored members in order of arrival, sorted by least total, mean score and path."""
        scored = self.scored
        return np.lexsort((self._order[:scored], -self._means[:scored], -self._least[:scored]))

    def add(self, number: int, scores: Sequence[float]) -> None:
        """Move a member from the waiting to the scored ones, and give all the points this brings."""
        new, dtype = self.scored, self.scale.dtype
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
        self._open[new] = self._fates[number] == UNDECIDED
        place = int(np.flatnonzero(self._waiting[: self.missing] == number)[0])
        self._lost -= place < self._lost
        self._safe -= place >= self.missing - self._safe
        for array in (self._waiting, self._waiting_collected):
            array[place : self.missing - 1] = array[place + 1 : self.missing]
        self.scored += 1
        self.missing -= 1

    @property
    def _swing(self) -> int:
        """The most that missing scores can still add to a scored member's total."""
        return self._gain * self.missing

    def settle(self) -> tuple[list[int], list[int]]:
        """The numbers of the members that newly stay and newly go, ascending. The caller enters them in ``fates``."""
        below = self._open[: self.scored] & (self._least[: self.scored] < self.scale.average - self._swing)
        going = np.flatnonzero(below)
        self._open[going] = False
        dropped = self._numbers[[*going.tolist(), *self._find_settled(AHEAD)]].tolist() + self._find_lost()
        kept = self._numbers[self._find_settled(BEHIND)].tolist() + self._find_safe()
        return sorted(kept), sorted(dropped)

    def _find_safe(self) -> list[int]:
        """Members without a score that stay: those that have collected most."""
        waiting, least = self._waiting_collected[: self.missing], self._least[: self.scored]
        safe = []
        while self._lost + self._safe < self.missing:
            place = self.missing - 1 - self._safe
            own = waiting[place] + self._waiting_least
            behind = int(waiting.searchsorted(own - self._waiting_most))
            if own < self.scale.average or behind + self.scored < self._quota[BEHIND]:
                break
            if behind + int(np.count_nonzero(least < own - self._swing)) < self._quota[BEHIND]:
                break
            safe.append(int(self._waiting[place]))
            self._safe += 1
        return safe

    def _find_lost(self) -> list[int]:
        """Members without a score that go: those that have collected least."""
        waiting, least = self._waiting_collected[: self.missing], self._least[: self.scored]
        lost = []
        while self._lost + self._safe < self.missing:
            most = waiting[self._lost] + self._waiting_most
            if most >= self.scale.average:
                ahead = self.missing - int(waiting.searchsorted(most - self._waiting_least, side="right"))
                if ahead + self.scored < self._quota[AHEAD]:
                    break
                if ahead + int(np.count_nonzero(least > most)) < self._quota[AHEAD]:
                    break
            lost.append(int(self._waiting[self._lost]))
            self._lost += 1
        return lost

    def _find_settled(self, side: int) -> list[int]:
        """Undecided scored members with enough others surely behind them to stay, or ahead of them to go."""
        least = self._least[: self.scored]
        due = self._open[: self.scored] & (self._next_look[side, : self.scored] >= self.missing)
        if side == BEHIND:
            due &= least >= self.scale.average
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
        own, least, waiting = self._least[member], self._least[: self.scored], self._waiting_collected[: self.missing]
        if side == BEHIND:
            sure = int(waiting.searchsorted(own - self._waiting_most))
            possible = least <= own
        else:
            sure = self.missing - int(waiting.searchsorted(own + self._swing - self._waiting_least, side="right"))
            possible = least >= own
        needed = self._quota[side] - sure
        return needed < self.scored and int(np.count_nonzero(possible)) - 1 >= needed

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
        limit = np.clip(quota - sure, 0, self.missing)  # each score brings one at least: no need to see further
        near = (margins >= -self._gain * limit.astype(margins.dtype)[:, None]) ^ positive
        rows, others = np.divmod(np.flatnonzero(near), margins.shape[1])
        short = -margins[rows, others]
        steps = np.maximum(-(-short // self._gain), 1).astype(np.int64)
        level = np.flatnonzero((short == 0) & (others < self.scored))
        steps[level[self._wins_tie(members[rows[level]], others[level], side)]] = 0
        horizon = int(limit.max()) + 1
        steps[others == members[rows]] = horizon  # nobody is ahead of itself
        table = np.bincount(rows * (horizon + 1) + np.minimum(steps, horizon), minlength=count * (horizon + 1))
        reach = table.reshape(count, horizon + 1)[:, :horizon].cumsum(axis=1) + sure[:, None]
        settled = reach[:, 0] >= quota
        reach += self._range[:horizon]
        for member, row in zip(members.tolist(), reach, strict=True):
            self._next_look[side, member] = self.missing - int(row.searchsorted(quota))
        return settled

    def _margins(self, members: Integers, side: int) -> Totals:
        """How far each member's lead over (arrears to) every other outlasts the worst case, shape (members, others).

        Above 0 is sure, below is not; 0 is for the tie-break between scored members, and otherwise not sure. The scored
        others come first, then as many of the waiting as can be sure by the last score.
        """
        scored, least, waiting = self.scored, self._least[: self.scored], self._waiting_collected[: self.missing]
        own = self._least[members][:, None]
        if side == BEHIND:
            bound = own - self._waiting_most
            waiting = waiting[: waiting.searchsorted(bound.max() + self._swing, side="right")]
        else:
            bound = own + self._swing - self._waiting_least
            waiting = waiting[waiting.searchsorted(bound.min() - self._swing) :]
        margins: Totals = np.empty((len(members), scored + len(waiting)), self.scale.dtype)
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
            pairs -= np.multiply(against, gain * self.missing, dtype=margins.dtype)
        return margins

    def _wins_tie(self, members: Integers, others: Integers, side: int) -> npt.NDArray[np.bool_]:
        """Whether scored members come before (after) others of the same total."""
        means, other_means = self._means[members], self._means[others]
        earlier = self._order[members] < self._order[others]
        before: npt.NDArray[np.bool_] = (means > other_means) | ((means == other_means) & earlier)
        return before if side == BEHIND else ~before
