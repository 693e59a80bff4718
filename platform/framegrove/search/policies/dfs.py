"""Depth-first search: one branch is grown as long as it is right; where it goes wrong, its last unit is tried again.

1. Grow a first child of the current branch and have it judged. If it is right with a probability of ``accept``, it is
   the current branch; an accepted whole video wins.
2. If not, grow ``grow`` more children together, which share their past and so cost a fraction of the first, up to
   ``most`` children in all. The best accepted one is the next current branch.
3. If none is accepted, the branch is closed: its own last unit is to blame. Go back to the deepest branch that is
   still open; other accepted children on the way are taken first. The root is never closed: new first units are always
   possible.
4. The price of finishing one video is kept back. Once the budget pays for nothing else, the most promising branch is
   finished without judging, and wins.

*Example*, ``accept`` 0.5, ``most`` 3, ``grow`` 2, three units:

    (0)          0.9  accepted
    (0, 0)       0.2  so (0, 1) and (0, 2) are grown together
    (0, 1)       0.4
    (0, 2)       0.7  accepted
    (0, 2, 0)    0.1, then (0, 2, 1) 0.3 and (0, 2, 2) 0.2: (0, 2) is closed, and so is (0), which has three children
    (1)          0.8  a new first unit, and so on; these are grown one at a time, since they share no past

The budget is a cap that is seldom reached; a search that goes well costs little more than a single sample.

Where units seldom go wrong and a judge often calls right ones wrong, most of what it rejects is right. Then a child is
better a stretch of ``every`` so many units that is judged at its end, and, with ``whole``, as a video that ends there:
frames from all over it say more than those of its newest unit. With ``every`` 4, one of 16 units is judged four times.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from pydantic import Field

from framegrove.config.base import Config
from framegrove.search.budget import Allotment, amounts
from framegrove.search.fusion import Scoring
from framegrove.search.policies.registry import PolicyEntry, Task
from framegrove.search.policies.single import unsearched
from framegrove.search.prices import Prices
from framegrove.search.tree import (
    Bet,
    Decision,
    Judgement,
    Layout,
    NextDecision,
    PanelWork,
    PlannedWork,
    Policy,
    Scores,
)
from framegrove.types import Assessment, Path, SampleWork

_GOOD_ENOUGH = 0.7  # of a whole video: one that is better is not worth what it costs
_UNLIKELY = 0.03  # what is needed with less probability is not worth listing


class DfsOptions(Config):
    """Options of depth-first search."""

    accept: float = Field(
        default=0.85, gt=0, lt=1, description="probability of being right, by the panel, from which a branch goes on"
    )
    grow: int = Field(default=2, ge=1, description="children that are grown together once the first was not accepted")
    most: int = Field(default=3, ge=1, description="children of a branch, after which it is closed")
    every: int = Field(default=1, ge=1, description="units of a child: it is grown so far before it is judged")
    whole: bool = Field(
        default=False, description="judge a child as a whole video that ends there, not its newest unit"
    )
    expect: float = Field(
        default=0.85,
        gt=0,
        lt=1,
        description="how likely a unit that is not judged yet is taken to be right: when idle workers work ahead, and "
        "when the budget is near its end and a short good branch is weighed against a longer doubtful one",
    )


@dataclass(eq=False)
class _Branch:
    """A branch of the tree as far as it was grown."""

    path: Path
    parent: _Branch | None = None
    log_p: float = 0.0  # of its newest unit, or of all of it
    total: float = 0.0  # path score
    children: int = 0  # that were ever grown
    accepted: list[_Branch] = field(default_factory=list)  # children, except those that were closed


class _Guess(NamedTuple):
    """Children that would be grown together, and minus how likely that is; the parent has ``tried`` children then."""

    negative: float
    parent: Path
    group: tuple[Path, ...]
    tried: int


def _goodness(branch: _Branch) -> tuple[float, Path]:
    """Orders branches by their path scores; of equals the earlier is better."""
    return branch.total, tuple(-step for step in branch.path)


def _lineage(branch: _Branch | None) -> Iterator[_Branch]:
    """A branch, its parent, and so on to the root."""
    while branch is not None:
        yield branch
        branch = branch.parent


class DepthFirst:
    """Depth-first search with at most ``allowed`` FLOPs.

    Accepts whole videos from a probability of ``until`` on, None: of 0.7, or of what any other branch needs if less.
    """

    def __init__(
        self,
        layout: Layout,
        allowed: int,
        prices: Prices,
        options: DfsOptions | None = None,
        scoring: Scoring = Scoring(),  # noqa: B008 - it is frozen
        until: float | None = None,
    ) -> None:
        self.layout = layout
        self._options = options or DfsOptions()
        every = self._options.every
        ends = {min(start + every, layout.units) for start in range(layout.given, layout.units, every)}
        self.assessments = {self._assessment(end) for end in ends}
        self._prices = prices
        self._scoring = scoring
        self._until = min(_GOOD_ENOUGH, self._options.accept) if until is None else until
        self._left = allowed
        self._root = _Branch(layout.prefix)
        self._branches: list[_Branch] = []  # that may yet lead to the winner, in the order in which they were grown
        self._current = self._root
        self._awaited: dict[Path, _Branch] = {}  # children of the current branch whose scores are out
        self._next = NextDecision()

    @property
    def least(self) -> int:
        """FLOPs of a video of which every child is accepted at once."""
        path, total = self.layout.prefix, 0
        while len(path) < self.layout.units:
            total += self._price(path, 1)
            path = next(self._ends(path, 0, 1))
        return total

    def start(self) -> Decision:
        """Grow the first unit."""
        self._go_on()
        return self._decision()

    def judged(self, work: PanelWork, scores: Scores) -> Decision:
        """Once all children that were grown together are judged: go on from the best, try again, or go back."""
        child = self._awaited.pop(work.path)
        child.log_p = self._scoring.log_p(work.assessment, scores)
        parent = child.parent
        assert parent is not None
        before = parent.total if parent is not self._root else None
        child.total = self._scoring.along(before, child.log_p, "last" if self._options.whole else "sum")
        if self._is_accepted(child):
            parent.accepted.append(child)
        self._next.judgements.append(Judgement(child.path, work.assessment, child.log_p, child.total))
        if not self._awaited:
            self._go_on()
        return self._decision()

    def speculative(self) -> Iterator[Bet]:
        """What follows if the children that are out are right, or wrong, and what follows from that; likeliest first.

        A unit is taken to be right as often as ``expect`` says.
        """
        if self._next.winner is not None or not self._awaited:
            return
        group = (*self._awaited, *(child.path for child in self._current.accepted))
        now = _Guess(-1.0, self._current.path, group, self._current.children)
        heap = list(self._following(now))
        heapq.heapify(heap)
        while heap and -heap[0].negative > _UNLIKELY:
            guess = heapq.heappop(heap)
            for work in self._works_of(guess.parent, guess.tried - len(guess.group), len(guess.group)):
                yield Bet(work, -guess.negative)
            for following in self._following(guess):
                heapq.heappush(heap, following)

    def _following(self, guess: _Guess) -> Iterator[_Guess]:
        """What is grown next if one of a group of children is right, and if none is."""
        wrong = (1 - self._options.expect) ** len(guess.group)
        if len(guess.group[0]) < self.layout.units:
            for path in guess.group:
                likely = -guess.negative * (1 - wrong) / len(guess.group)
                yield _Guess(-likely, path, tuple(self._ends(path, 0, 1)), 1)
        most = self._options.most if guess.parent != self.layout.prefix else guess.tried + 1
        count = min(self._options.grow if guess.parent != self.layout.prefix else 1, most - guess.tried)
        if count > 0:
            group = tuple(self._ends(guess.parent, guess.tried, count))
            yield _Guess(guess.negative * wrong, guess.parent, group, guess.tried + count)

    def _go_on(self) -> None:
        """Steps 1 to 4 of the module's docstring, up to the next works."""
        while self._next.winner is None and not self._awaited:
            if self._current.accepted:
                self._current = max(self._current.accepted, key=_goodness)
                if len(self._current.path) == self.layout.units:
                    self._win(self._current.path)
            elif self._current.children < self._most(self._current):
                if not self._grow(self._next_count(self._current)):
                    self._finish()
            else:
                self._close(self._current)
        if self._next.winner is None:
            self._forget()

    def _is_accepted(self, branch: _Branch) -> bool:
        whole = len(branch.path) == self.layout.units
        threshold = self._until if whole else self._options.accept
        return branch.log_p >= math.log(threshold)

    def _most(self, branch: _Branch) -> int:
        """How many children a branch may have: any number of first units, since nothing before them can be wrong."""
        return self._options.most if branch is not self._root else 1 << 30

    def _next_count(self, branch: _Branch) -> int:
        """How many children it has next: one at first, and one first unit at a time, for those share no past."""
        tried = branch.children
        return 1 if branch is self._root or not tried else min(self._options.grow, self._most(branch) - tried)

    def _grow(self, count: int) -> bool:
        """Have more children of the current branch sampled and judged, as many as the budget allows; False if none."""
        branch = self._current
        while count and self._price(branch.path, count) + self._rest(branch.path) > self._left:
            count -= 1
        if not count:
            return False
        start = branch.children
        self._next.works += self._works_of(branch.path, start, count)
        self._left -= self._price(branch.path, count)
        branch.children += count
        for path in self._ends(branch.path, start, count):
            self._awaited[path] = _Branch(path, branch)
            self._branches.append(self._awaited[path])
        return True

    def _ends(self, parent: Path, start: int, count: int) -> Iterator[Path]:
        """So many children of a branch, from number ``start`` on."""
        tail = (0,) * (min(self._options.every, self.layout.units - len(parent)) - 1)
        yield from ((*parent, index, *tail) for index in range(start, start + count))

    def _assessment(self, units: int) -> Assessment:
        """By which a branch of so many units is judged; a first unit, which is a picture, as such."""
        return Assessment.FINAL if self._options.whole and units > 1 else self.layout.assessment(units - 1)

    def _price(self, parent: Path, count: int) -> int:
        """FLOPs of so many judged children of a branch."""
        return self._prices.works(self._works_of(parent, 0, count))

    def _rest(self, parent: Path) -> int:
        """FLOPs of finishing one child of a branch, unjudged."""
        return self._prices.unjudged(self.layout, len(next(self._ends(parent, 0, 1))))

    def _works_of(self, parent: Path, start: int, count: int) -> tuple[PlannedWork, ...]:
        """Sample children, the first units of which share their past, to their ends, and judge them there."""
        ends = tuple(self._ends(parent, start, count))
        first = len(parent) + 1
        works: list[PlannedWork] = [SampleWork(tuple(end[:first] for end in ends), 0, self.layout.last_stage)]
        for end in ends:
            works += (
                SampleWork((end[:length],), 0, self.layout.last_stage) for length in range(first + 1, len(end) + 1)
            )
        return (*works, *(PanelWork(end, self._assessment(len(end))) for end in ends))

    def _close(self, branch: _Branch) -> None:
        """Nothing good was grown from a branch: go back to the one before.

        If nothing better turns up, it may yet be the one to be finished.
        """
        assert branch.parent is not None, "the root is never closed"
        self._current = branch.parent
        self._current.accepted.remove(branch)

    def _forget(self) -> None:
        """Drop what cannot win any more, so that a search keeps few branches, however many it grows.

        A branch that leads on no further may still be finished at the end, if it is the best of its length.
        """
        open_ = {branch for node in _lineage(self._current) for branch in (node, *node.accepted)}
        open_.update(self._awaited.values())
        best: dict[int, _Branch] = {}
        for branch in self._branches:
            rival = best.get(len(branch.path))
            if branch not in open_ and (rival is None or _goodness(branch) > _goodness(rival)):
                best[len(branch.path)] = branch
        needed = {node for branch in (*open_, *best.values()) for node in _lineage(branch)}
        for branch in self._branches:
            if branch not in needed and branch.parent in needed:  # what it leads to goes with it
                self._drop(branch)
        self._branches = [branch for branch in self._branches if branch in needed]

    def _drop(self, branch: _Branch) -> None:
        """Nothing will be grown from a branch, nor from the units that lead to it from its parent."""
        assert branch.parent is not None, "the root is never dropped"
        first = branch.path[: len(branch.parent.path) + 1]
        self._next.dropped.append((first, self._assessment(len(branch.path))))

    def _finish(self) -> None:
        """The budget is near its end: the most promising branch that it can finish becomes the winner, unjudged."""
        expected = math.log(self._options.expect)
        price = self._prices.unjudged
        able = [branch for branch in self._branches if price(self.layout, len(branch.path)) <= self._left]
        best = max(
            able,
            key=lambda branch: (
                branch.total + expected * (self.layout.units - len(branch.path)),
                len(branch.path),
                [-step for step in branch.path],
            ),
        )
        path = best.path
        if len(path) < self.layout.units:
            path = (*path, best.children)  # a child that was not tried
            path += (0,) * (self.layout.units - len(path))
        for length in range(len(best.path) + 1, self.layout.units + 1):
            self._next.works.append(SampleWork((path[:length],), 0, self.layout.last_stage))
        self._left -= price(self.layout, len(best.path))
        self._win(path)

    def _win(self, path: Path) -> None:
        """The search is over; whatever does not lead to the winner is dropped."""
        self._next.winner = path
        for branch in self._branches:
            if path[: len(branch.path)] != branch.path:
                self._drop(branch)

    def _decision(self) -> Decision:
        """Everything that was found since the last decision."""
        still = 0 if self._next.winner is not None else self._still_possible()
        return self._next.take(self._next.planned + still)

    def _still_possible(self) -> int:
        """How many works the rest of the budget pays for at most: two for each child, at the least that one costs."""
        depths = range(self.layout.given, self.layout.units)
        grow = self._options.grow
        least = min(self._prices.sample(depth, 0, self.layout.last_stage, grow) for depth in depths) / grow
        return 2 * int(self._left / max(least, 1))


def plan(task: Task, options: DfsOptions) -> tuple[Policy, Allotment]:
    """A search that never spends more than the budget; with too little for a second try, no search."""
    layout = task.layout
    one, allowed = amounts(task.multiple, layout, task.prices)
    search = DepthFirst(layout, allowed, task.prices, options, task.scoring, task.until)
    if allowed < search.least:
        return unsearched(task)
    return search, Allotment(one, allowed, allowed)


ENTRY = PolicyEntry(
    name="dfs",
    summary="depth-first: grows one branch while it is right, tries units again where it is not, and stops when done",
    options=DfsOptions,
    plan=plan,
    stops=True,
)
