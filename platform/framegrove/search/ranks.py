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

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from framegrove.errors import UserError
from framegrove.search.bounds import DROPPED, KEPT, UNDECIDED, Bounds
from framegrove.search.points import whole_weights
from framegrove.search.tree import Scores
from framegrove.types import Path

Weigh = Callable[[str], float]
"""The weight of a column of scores, by its name."""


def equally(column: str) -> float:
    """All columns count alike."""
    return 1.0


@dataclass(frozen=True)
class RankedPath:
    """A member of a complete cohort: its own fused rank, and its path's total with that rank added."""

    path: Path
    own: Fraction
    total: Fraction


@dataclass(frozen=True)
class Change:
    """The members that have just become certain to stay and certain to go, each in member order."""

    kept: tuple[Path, ...] = ()
    dropped: tuple[Path, ...] = ()


NO_CHANGE = Change()


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
        self._fates = np.full(count, UNDECIDED, np.int8)
        self._undecided_count = count
        self._kept_count = 0
        self._with_fate: dict[int, tuple[Path, ...]] = {}
        self._names: tuple[str, ...] | None = None
        self._bounds = self._fresh_bounds([1])  # without scores, bounds are in proportion to the weights: any will do
        self.initial = self._settle()

    @property
    def complete(self) -> bool:
        """Whether every member has been scored."""
        return self._bounds.missing == 0

    @property
    def scored_share(self) -> float:
        """The share of the members that has been scored."""
        return self._bounds.scored / len(self.members)

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

        Raises UserError when a column's weight is negative or all weights are 0, and for other columns than those of
        the cohort's first scores; ValueError for a path that is no member or was scored before.
        """
        number = self._number.get(path)
        if number is None or self._bounds.is_scored(number):
            raise ValueError(f"branch {path} is no member of this cohort, or was scored before")
        by_name = dict(scores)
        names = tuple(sorted(by_name))
        if self._names is None:
            self._bounds = self._fresh_bounds(whole_weights(names, [self._weigh(name) for name in names]))
            self._names = names
        if names != self._names:
            raise UserError(
                f"branch {path} was scored by {', '.join(names)} and others of its cohort by {', '.join(self._names)}: "
                "a verifier must return the same names for every clip"
            )
        self._bounds.add(number, [by_name[name] for name in names])
        return self._settle()

    def likely(self) -> tuple[Path, ...]:
        """Undecided members that would be kept if each held the place it has among those scored so far, best first.

        A member without a score counts as if its rank were 1/2. Equals come in the order of their paths.
        """
        # Expectations are compared in units of 1 / (n * scored) of a rank, times the denominator of what is collected.
        bounds, scale = self._bounds, self._bounds.scale
        count, scored = len(self.members), max(bounds.scored, 1)
        half = count * scale.weight * scored * scale.denominator
        undecided = np.flatnonzero(self._fates == UNDECIDED)
        points = np.full(count, -1, scale.exact.dtype)
        points[bounds.arrived] = bounds.points()
        points = points[undecided]
        expected = scale.exact[undecided] * scored
        expected += np.where(points < 0, half, points * (count * scale.denominator))
        hopeful = np.flatnonzero(expected * count > scale.exact_sum * scored + count * half)
        order = np.lexsort((self._path_order[undecided[hopeful]], -expected[hopeful]))
        return self._paths(undecided[hopeful[order[: self.width - self._kept_count]]].tolist())

    def standings(self) -> tuple[RankedPath, ...]:
        """The members of a complete cohort, best first."""
        assert self.complete, "ranks are known once every score is in"
        one = 2 * len(self.members) * self._bounds.scale.weight
        numbers, points = self._bounds.arrived.tolist(), self._bounds.points().tolist()
        standings = []
        for place in self._bounds.best_first().tolist():
            number = numbers[place]
            rank = Fraction(points[place], one)
            standings.append(RankedPath(self.members[number], rank, self._before[number] + rank))
        return tuple(standings)

    def _fresh_bounds(self, weights: Sequence[int]) -> Bounds:
        return Bounds(self._before, self._path_order, weights, self.width, self._fates)

    def _settle(self) -> Change:
        kept, dropped = self._bounds.settle()
        if not kept and not dropped:
            return NO_CHANGE
        self._fates[kept] = KEPT
        self._fates[dropped] = DROPPED
        self._undecided_count -= len(kept) + len(dropped)
        self._kept_count += len(kept)
        self._with_fate.clear()
        return Change(self._paths(kept), self._paths(dropped))

    def _select(self, fate: int) -> tuple[Path, ...]:
        if fate not in self._with_fate:
            self._with_fate[fate] = self._paths(np.flatnonzero(self._fates == fate).tolist())
        return self._with_fate[fate]

    def _paths(self, numbers: Iterable[int]) -> tuple[Path, ...]:
        return tuple(self.members[number] for number in numbers)
