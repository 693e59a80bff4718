"""Evolutionary search over noise: the best of a unit's children are mutated until one is right (EvoSearch, 2025).

Unit by unit, among the children of the branch that was best so far:

1. Generation 0: ``population`` fresh children are sampled together, since they share their past, and judged.
2. Selection: the best ``elite`` children of all generations stay, the others are dropped. If the best is right with a
   probability of ``accept``, or after ``generations`` generations, it is the branch whose next unit is grown; that of
   the last unit wins.
3. Mutation: the next generation is ``population`` children whose noise is that of an elite child, mixed with fresh
   noise so that it stays Gaussian; they are shared out among the elite, the best first. ``strength`` says how much
   fresh noise comes into what a child starts from, ``jump_strength`` how much into the jumps between the stages of the
   pyramid, which are the states in mid-trajectory that EvoSearch mutates. Go on with 2.

*Example*, ``population`` 3, ``elite`` 2, ``generations`` 3, ``accept`` 0.5, strengths of 0.6:

    (0) 0.9, (1) 0.4, (2) 0.7            accepted at once: the next unit is grown on (0)
    (0, 0) 0.1, (0, 1) 0.3, (0, 2) 0.2   none is right; (0, 1) and (0, 2) are the elite
    (0, 1~0) 0.4, (0, 2~0) 0.1, (0, 1~1) 0.2   generation 1: none again; (0, 1~0) and (0, 1) are the elite
    (0, 1~0~0) 0.2, (0, 1~2) 0.6, (0, 1~0~1) 0.1   generation 2: (0, 1~2) goes on

    1~0 is child 1 after its mutation 0, 1~0~0 the same mutated once more (lineage.py has how a path says so).

Weak mutations inherit what is wrong. In the digits world, of children mutated from a wrong one (units 1 to 3, 24
parents that are right, 72 children each) 6% are right at strengths of 0.3, 24% at 0.6, 28% at 0.9, and 33% of fresh
ones. The defaults are strong for that reason; weaker ones are for scores that improve by degrees.

The price of finishing one video is kept back. Where the budget does not pay for a whole generation, it is smaller, and
where it pays for none, the best child goes on; a child that would have nobody to be compared with is not judged.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

from pydantic import Field, model_validator

from framegrove.config.base import Config
from framegrove.lineage import FRESH, Mutation
from framegrove.search.budget import Allotment, amounts
from framegrove.search.fusion import Scoring
from framegrove.search.policies.registry import PolicyEntry, Task
from framegrove.search.policies.single import unsearched
from framegrove.search.prices import Prices
from framegrove.search.tree import (
    TOGETHER,
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
from framegrove.types import Path, SampleWork

_LEAST, _MOST = 2, 8  # children of a generation, where the budget decides


class EvoOptions(Config):
    """Options of evolutionary search."""

    population: int | None = Field(
        default=None,
        ge=_LEAST,
        le=100,
        description="children of a generation; default: as many, of 2 to 8, as half of the budget pays for where no "
        "unit has a second generation",
    )
    elite: int = Field(default=1, ge=1, description="children that are kept and mutated")
    generations: int = Field(
        default=3, ge=1, le=10, description="generations of a unit at the most, the fresh one included"
    )
    accept: float = Field(
        default=0.5, gt=0, lt=1, description="probability of being right, by the panel, from which a child goes on"
    )
    strength: float = Field(
        default=0.9, ge=0, le=0.99, description="of the mutation of the noise that a child starts from, to 0.01"
    )
    jump_strength: float = Field(
        default=0.9, ge=0, le=0.99, description="of the mutation of the noise at the pyramid's jumps, to 0.01"
    )

    @model_validator(mode="after")
    def _something_changes(self) -> Self:
        if not any(self.hundredths):
            raise ValueError("strength and jump_strength are both 0: a mutated child would be its parent, raise one")
        return self

    @property
    def hundredths(self) -> tuple[int, int]:
        """Both strengths as a path tells them."""
        return round(100 * self.strength), round(100 * self.jump_strength)


@dataclass(frozen=True)
class _Child:
    """A judged child of the current branch, the ``number``th to be sampled of all of them."""

    index: int
    log_p: float
    number: int

    @property
    def order(self) -> tuple[float, int]:
        """Best first; equals in the order in which they were asked for."""
        return -self.log_p, self.number


class Evolution:
    """Evolutionary search, ``population`` children a generation, with at most ``allowed`` FLOPs.

    Accepts whole videos from ``until`` on, None: as any other.
    """

    def __init__(
        self,
        layout: Layout,
        allowed: int,
        population: int,
        prices: Prices,
        options: EvoOptions | None = None,
        scoring: Scoring = Scoring(),  # noqa: B008 - it is frozen
        until: float | None = None,
    ) -> None:
        self.layout = layout
        self.assessments = {layout.assessment(depth) for depth in range(layout.given, layout.units)}
        self.population = population
        self._options = options or EvoOptions()
        self._prices = prices
        self._scoring = scoring
        self._until = until
        self._left = allowed
        self._current = layout.prefix
        self._total: float | None = None  # path score of the current branch, None before the first judged unit
        self._generation = 0
        self._asked: dict[int, int] = {}  # every child of the current branch so far, with its number
        self._awaited: dict[int, float | None] = {}  # the newest generation: the scores that are in
        self._elite: tuple[_Child, ...] = ()
        self._mutations: dict[int, int] = {}  # how often each child was mutated
        self._next = NextDecision()

    def start(self) -> Decision:
        """Sample the first generation of first units."""
        self._begin_unit()
        return self._decision()

    def judged(self, work: PanelWork, scores: Scores) -> Decision:
        """Once a whole generation is judged: select, and mutate or go on to the next unit."""
        log_p = self._scoring.log_p(work.assessment, scores)
        self._awaited[work.path[-1]] = log_p
        total = self._scoring.along(self._total, log_p, "sum")
        self._next.judgements.append(Judgement(work.path, work.assessment, log_p, total))
        if None not in self._awaited.values():
            self._select()
        return self._decision()

    def speculative(self) -> Iterator[Bet]:
        """What follows from each child that may turn out best: its own next unit, or its mutations.

        The chances are those without any knowledge: every child that is not judged yet is as likely to be best as any
        other, and as likely to be accepted as not. Mutations of several elite children are not guessed at: which
        stand in one work depends on all their scores.
        """
        if self._next.winner is not None:
            return
        waiting = [index for index, log_p in self._awaited.items() if log_p is None]
        best = min(self._known(), key=lambda child: child.order, default=None)
        accepted = best is not None and self._is_accepted(best.log_p)
        candidates = [*([best.index] if best else []), *waiting]
        goes_on = 1.0 if accepted or self._generation == self._options.generations - 1 else 1 - 0.5 ** len(waiting)
        bets = [bet for index in candidates for bet in self._next_units(index, goes_on / len(candidates))]
        if goes_on < 1 and self._options.elite == 1:
            bets += [bet for index in candidates for bet in self._mutants(index, (1 - goes_on) / len(candidates))]
        yield from sorted(bets, key=lambda bet: -bet.likely)

    def _next_units(self, index: int, likely: float) -> Iterator[Bet]:
        branch = (*self._current, index)
        count = self._affordable(len(branch), self.population) if len(branch) < self.layout.units else 0
        if count >= _LEAST:
            yield from (Bet(work, likely) for work in self._works_of(branch, range(count)))

    def _mutants(self, index: int, likely: float) -> Iterator[Bet]:
        count = self._affordable(len(self._current), self.population)
        children = self._mutated((index,), count)
        yield from (Bet(work, likely) for work in self._works_of(self._current, children))

    # ---- the steps of the module's docstring

    def _begin_unit(self) -> None:
        """Step 1, or the end of the search where nothing more can be chosen."""
        self._generation, self._elite = 0, ()
        self._asked, self._awaited, self._mutations = {}, {}, {}
        if len(self._current) == self.layout.units:
            self._next.winner = self._current
            return
        count = self._affordable(len(self._current), self.population)
        if count < _LEAST:
            self._finish()
        else:
            self._ask(range(count))

    def _select(self) -> None:
        """Step 2."""
        ranked = sorted(self._known(), key=lambda child: child.order)
        best = ranked[0]
        count = self._affordable(len(self._current), self.population)
        enough = self._generation == self._options.generations - 1 or not count
        if self._is_accepted(best.log_p) or enough:
            self._drop(ranked[1:])
            self._total = self._scoring.along(self._total, best.log_p, "sum")
            self._current = (*self._current, best.index)
            self._begin_unit()
            return
        self._elite = tuple(ranked[: self._options.elite])
        self._drop(ranked[self._options.elite :])
        self._generation += 1
        children = self._mutated([child.index for child in self._elite], count)
        for child in children:
            parent = child // FRESH - 1
            self._mutations[parent] = self._mutations.get(parent, 0) + 1
        self._ask(children)

    def _mutated(self, parents: Sequence[int], count: int) -> list[int]:
        """Step 3: the indices of the next ``count`` mutated children, shared out among the parents in turn."""
        initial, jump = self._options.hundredths
        return [
            Mutation(parent, self._mutations.get(parent, 0) + each // len(parents), initial, jump).index
            for each in range(count)
            for parent in [parents[each % len(parents)]]
        ]

    def _ask(self, children: Sequence[int]) -> None:
        """Have a generation sampled and judged."""
        self._next.works += self._works_of(self._current, children)
        self._left -= self._price(len(self._current), len(children))
        for index in children:
            self._asked[index] = len(self._asked)
        self._awaited = dict.fromkeys(children)

    def _finish(self) -> None:
        """The budget is at its end: the rest of the video is sampled without judging, and wins."""
        while len(self._current) < self.layout.units:
            self._current = (*self._current, 0)
            self._next.works.append(SampleWork((self._current,), 0, self.layout.last_stage))
        self._next.winner = self._current

    # ----

    def _known(self) -> list[_Child]:
        """The elite, and what is judged of the newest generation."""
        new = ((index, log_p) for index, log_p in self._awaited.items() if log_p is not None)
        return [*self._elite, *(_Child(index, log_p, self._asked[index]) for index, log_p in new)]

    def _is_accepted(self, log_p: float) -> bool:
        whole = len(self._current) == self.layout.units - 1
        threshold = self._until if whole and self._until is not None else self._options.accept
        return log_p >= math.log(threshold)

    def _drop(self, children: Sequence[_Child]) -> None:
        assessment = self.layout.assessment(len(self._current))
        self._next.dropped += (((*self._current, child.index), assessment) for child in children)

    def _affordable(self, depth: int, most: int) -> int:
        """How many judged children at a depth can be paid for, and one of them finished after that."""
        finishing = self._prices.unjudged(self.layout, depth + 1)
        return next((n for n in range(most, 0, -1) if self._price(depth, n) + finishing <= self._left), 0)

    def _price(self, depth: int, count: int) -> int:
        return price_of_generation(self._prices, self.layout, depth, count)

    def _works_of(self, branch: Path, children: Sequence[int]) -> tuple[PlannedWork, ...]:
        """The works of a generation, ``TOGETHER`` children in step."""
        paths = [(*branch, index) for index in children]
        groups = [tuple(paths[first : first + TOGETHER]) for first in range(0, len(paths), TOGETHER)]
        assessment = self.layout.assessment(len(branch))
        return (
            *(SampleWork(group, 0, self.layout.last_stage) for group in groups),
            *(PanelWork(path, assessment) for path in paths),
        )

    def _decision(self) -> Decision:
        """Everything that was found since the last decision."""
        still = 0 if self._next.winner is not None else self._still_possible()
        return self._next.take(self._next.planned + still)

    def _still_possible(self) -> int:
        """How many works there can still be: by the generations that are left, and by what the rest pays for."""
        generation = self.population + -(-self.population // TOGETHER)
        units = self.layout.units - len(self._current) - 1
        generations = self._options.generations * (units + 1) - self._generation - 1
        depths = range(self.layout.given, self.layout.units)
        sizes = range(1, min(self.population, TOGETHER) + 1)
        least = min(self._prices.sample(depth, 0, self.layout.last_stage, n) / n for depth in depths for n in sizes)
        # A child has two works at the most, that of its sampling, if it is alone in it, and that of its judgement.
        return min(generations * generation, 2 * int(self._left / max(least, 1)))


def price_of_generation(prices: Prices, layout: Layout, depth: int, count: int) -> int:
    """FLOPs of sampling and judging ``count`` children of one branch."""
    sampling = prices.grouped(depth, 0, layout.last_stage, count, TOGETHER)
    return sampling + count * prices.judge(depth, layout.assessment(depth))


def population_for(layout: Layout, allowed: int, prices: Prices) -> int:
    """How many children of every unit half of a budget pays for, 2 to 8: the other half is for mutations."""

    def price(population: int) -> int:
        depths = range(layout.given, layout.units)
        return sum(price_of_generation(prices, layout, depth, population) for depth in depths)

    return max((n for n in range(_LEAST, _MOST + 1) if 2 * price(n) <= allowed), default=_LEAST)


def plan(task: Task, options: EvoOptions) -> tuple[Policy, Allotment]:
    """A search that never spends more than the budget; where it does not pay for a second first unit, no search."""
    layout = task.layout
    one, allowed = amounts(task.multiple, layout, task.prices)
    least = price_of_generation(task.prices, layout, layout.given, _LEAST)
    if allowed < least + task.prices.unjudged(layout, layout.given + 1):
        return unsearched(task)
    population = options.population or population_for(layout, allowed, task.prices)
    search = Evolution(layout, allowed, population, task.prices, options, task.scoring, task.until)
    return search, Allotment(one, allowed, allowed)


ENTRY = PolicyEntry(
    name="evo",
    summary="evolutionary: unit by unit, the noise of the best children is mutated until one is right",
    options=EvoOptions,
    plan=plan,
    stops=True,
)
