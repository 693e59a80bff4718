"""Breadth-first search: a population of branches that all grow by one unit at a time.

After each judged unit the next population is shared out among those that were judged. How, is what tells the members
of this family apart (``select``):

- ``top``: the best ``keep`` branches have equally many children: beam search.
- ``threshold``: so have all branches that are right with a probability of ``threshold``, or the best one.
- ``multinomial``, ``systematic``: children are drawn in proportion to exp(path score / ``temperature``): sequential
  Monte Carlo, known for diffusion models as Feynman-Kac steering. Systematic draws spread more evenly.

Presets are policies of their own: ``beam`` (top, the best third is kept), ``smc`` (systematic), and ``halving``, best
of N with early rejection: nothing branches, and the population is halved whenever the length doubles.

    population 6, keep 2, top: six roots are sampled and judged. The best two, say 1 and 4, have three children each,
    (1, 0) to (1, 2) and (4, 0) to (4, 2), which share their pasts; of these six the best two go on.
"""

from __future__ import annotations

import bisect
import itertools
import math
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from framegrove.config.base import Config
from framegrove.search.budget import Allotment, BudgetError, amounts
from framegrove.search.cohorts import Place, ScoreCohort
from framegrove.search.fusion import Scoring
from framegrove.search.policies.registry import PolicyEntry, Task
from framegrove.search.policies.single import unsearched
from framegrove.search.prices import Prices
from framegrove.search.ranks import Change
from framegrove.search.tree import (
    TOGETHER,
    Bet,
    Decision,
    Judgement,
    Layout,
    Members,
    NextDecision,
    PanelWork,
    PlannedWork,
    Policy,
    Scores,
)
from framegrove.types import Path, SampleWork, depth_of

Select = Literal["top", "threshold", "multinomial", "systematic"]


class TreeOptions(Config):
    """Options of breadth-first search."""

    population: int | None = Field(
        default=None, ge=1, description="branches that are sampled at every depth; default: as the budget allows"
    )
    select: Select = Field(default="threshold", description="which branches have children, and how many")
    keep: float = Field(
        default=1 / 3, gt=0, le=1, description="of top: the share of the population, rounded up, that has children"
    )
    threshold: float = Field(
        default=0.5, gt=0, lt=1, description="of threshold: the probability of being right so far, by the panel"
    )
    temperature: float = Field(
        default=1.0, gt=0, description="of multinomial and systematic: what path scores are divided by"
    )
    every: int = Field(default=1, ge=1, description="judge every so many units, and the last; others just go on")
    halving: bool = Field(
        default=False, description="judge when the length has doubled, halve the population, and branch nowhere"
    )


class BeamOptions(TreeOptions):
    """Options of beam search."""

    select: Select = Field(default="top", description="which branches have children, and how many")


class SmcOptions(TreeOptions):
    """Options of sequential Monte Carlo."""

    select: Select = Field(default="systematic", description="how children are drawn")


class HalvingOptions(TreeOptions):
    """Options of best of N with early rejection."""

    select: Select = Field(default="top", description="which branches go on")
    halving: bool = Field(default=True, description="judge when the length has doubled, halve the population")


@dataclass(frozen=True)
class Leg:
    """A stretch of depths, ``first`` to ``last``: ``population`` branches begin it, and are judged at its end.

    At most ``keep`` of them have children in the next leg. A lone branch that reaches the end of the video is not
    judged: there is nothing to choose from.
    """

    first: int
    last: int
    population: int
    keep: int


class Tree:
    """Breadth-first search over ``legs``. ``seed`` is that of its lots.

    A branch that is certain to have children, and how many, has them before the rest of its cohort is scored; likely
    ones are speculated on.
    """

    grows_once = True

    def __init__(
        self,
        layout: Layout,
        legs: Sequence[Leg],
        options: TreeOptions | None = None,
        scoring: Scoring = Scoring(),  # noqa: B008 - it is frozen
        seed: int = 0,
    ) -> None:
        self.layout = layout
        self.legs = tuple(legs)
        self.assessments = {layout.assessment(leg.last) for leg in self.legs if self._is_judged(leg)}
        self._options = options or TreeOptions()
        self._scoring = scoring
        self._seed = seed
        self._cohorts: list[ScoreCohort] = []  # one for each leg whose branches are known; the last is the frontier
        self._totals: dict[Path, float] = {}  # path scores of the branches that begin a leg's branches
        self._early: dict[int, list[tuple[Path, Scores]]] = defaultdict(list)  # scores of legs beyond the frontier
        self._leg_of = {leg.last: index for index, leg in enumerate(self.legs)}
        self._next = NextDecision()
        self._opened = 0  # works of all legs up to the frontier

    def start(self) -> Decision:
        """Grow the first population."""
        children = {self.layout.prefix: self.legs[0].population}
        self._grow(0, children)
        self._open(0, children)
        return self._decision()

    def judged(self, work: PanelWork, scores: Scores) -> Decision:
        """Grow the children of those that are now certain to have some."""
        index = self._leg_of[depth_of(work.path)]
        if index < len(self._cohorts):
            self._add(index, work.path, scores)
        else:
            self._early[index].append((work.path, scores))
        return self._decision()

    def speculative(self) -> Iterator[Bet]:
        """What branches grow next that will probably have children; likelier, the more of their cohort is scored."""
        beyond = len(self._cohorts)
        if self._cohorts and beyond < len(self.legs):
            cohort = self._cohorts[-1]
            for path in cohort.likely():
                for work in self._stretch(self.legs[beyond], path, self._share(beyond)):
                    yield Bet(work, 0.5 + 0.5 * cohort.scored_share)

    @property
    def _equal(self) -> bool:
        """Whether all branches that are kept have equally many children, whatever the others are like."""
        return self._options.select == "top"

    def _share(self, index: int) -> int:
        """How many branches of a leg each kept branch of the one before begins, where all begin equally many."""
        before = self.legs[index - 1]
        return max(1, self.legs[index].population // min(before.keep, before.population))

    def _is_judged(self, leg: Leg) -> bool:
        return leg.population > 1 or leg.last < self.layout.units - 1

    def _grow(self, index: int, children: Mapping[Path, int]) -> None:
        for parent, count in children.items():
            self._next.works += self._stretch(self.legs[index], parent, count)

    def _stretch(self, leg: Leg, parent: Path, count: int) -> Iterator[PlannedWork]:
        """All works of ``count`` branches of a leg that begin at ``parent``."""
        ends = [(*parent, child) for child in range(count)]
        for start in range(0, count, TOGETHER):
            yield SampleWork(tuple(ends[start : start + TOGETHER]), 0, self.layout.last_stage)
        for _ in range(leg.first, leg.last):
            ends = [(*end, 0) for end in ends]
            for end in ends:
                yield SampleWork((end,), 0, self.layout.last_stage)
        if self._is_judged(leg):
            for end in ends:
                yield PanelWork(end, self.layout.assessment(leg.last))

    def _open(self, index: int, children: Mapping[Path, int]) -> None:
        """All branches of a leg are known: it becomes the frontier."""
        leg = self.legs[index]
        self._opened += self._count(leg, _groups(children.values()), sum(children.values()))
        tail = (0,) * (leg.last - leg.first)
        parents = {(*parent, child, *tail): parent for parent, count in children.items() for child in range(count)}
        before = {path: self._totals[parent] for path, parent in parents.items() if parent in self._totals}
        width = leg.keep if self._equal or index == len(self.legs) - 1 else len(parents)
        cohort = ScoreCohort(tuple(parents), self.layout.assessment(leg.last), self._scoring, before, width)
        self._cohorts.append(cohort)
        if not self._is_judged(leg):
            self._next.winner = cohort.members[0]
            return
        self._next.cohorts.append(Members(cohort.members, self.layout.assessment(leg.last)))
        if self._equal:
            self._extend(index, cohort.initial)
        for path, scores in self._early.pop(index, ()):
            self._add(index, path, scores)
        self._advance(index)

    def _add(self, index: int, path: Path, scores: Scores) -> None:
        cohort = self._cohorts[index]
        change = cohort.add(path, scores)
        if self._equal:
            self._extend(index, change)
        if cohort.complete:
            self._close(index, cohort.standings())
        if self._equal:
            self._advance(index)

    def _extend(self, index: int, change: Change) -> None:
        """Of those that are certain to be kept, or to go: grow their children, or drop them."""
        assessment = self.layout.assessment(self.legs[index].last)
        self._next.dropped += ((path, assessment) for path in change.dropped)
        if index + 1 < len(self.legs):
            self._grow(index + 1, dict.fromkeys(change.kept, self._share(index + 1)))

    def _advance(self, index: int) -> None:
        """Open the next leg once it is certain who begins it, and what they have collected."""
        cohort = self._cohorts[index]
        collected = cohort.complete or self._scoring.path == "last"
        if index == len(self._cohorts) - 1 < len(self.legs) - 1 and cohort.decided and collected:
            self._open(index + 1, dict.fromkeys(cohort.kept, self._share(index + 1)))

    def _close(self, index: int, standings: Sequence[Place]) -> None:
        """A whole cohort is scored: the best of the last one wins, others share out the next population."""
        assessment = self.layout.assessment(self.legs[index].last)
        self._next.judgements += (Judgement(place.path, assessment, place.own, place.total) for place in standings)
        self._totals |= {place.path: place.total for place in standings}
        if index == len(self.legs) - 1:
            self._next.winner = standings[0].path
            self._next.dropped += ((place.path, assessment) for place in standings[1:] if not self._equal)
        elif not self._equal:
            children = self._shared_out(index, standings)
            self._next.dropped += ((place.path, assessment) for place in standings if place.path not in children)
            self._grow(index + 1, children)
            self._open(index + 1, children)

    def _shared_out(self, index: int, standings: Sequence[Place]) -> dict[Path, int]:
        """How many children each branch has that has any, in the order of the paths."""
        count, options = self.legs[index + 1].population, self._options
        if options.select == "threshold":
            good = [place for place in standings if place.own >= math.log(options.threshold)][:count] or standings[:1]
            each, more = divmod(count, len(good))
            counts = [each + (number < more) for number in range(len(good))]
            return dict(sorted(zip((place.path for place in good), counts, strict=True)))
        # What a path has collected before is paid for: it is why the branch is in the population at all.
        places = sorted(standings, key=lambda place: place.path)
        best = max(place.own for place in places)
        weights = [math.exp((place.own - best) / options.temperature) for place in places]
        lots = random.Random(f"{self._seed} {index}")
        drawn = (
            _systematic(weights, count, lots)
            if options.select == "systematic"
            else Counter(lots.choices(range(len(places)), weights, k=count))
        )
        return {place.path: drawn[number] for number, place in enumerate(places) if drawn[number]}

    def _decision(self) -> Decision:
        """Everything that was found since the last decision."""
        return self._next.take(self._most_works())

    def _most_works(self) -> int:
        """The works of the legs that are open, and the most that the others can come to."""
        return self._opened + sum(self._most_in(index) for index in range(len(self._cohorts), len(self.legs)))

    def _most_in(self, index: int) -> int:
        leg = self.legs[index]
        groups = leg.population  # every branch alone in its work
        if self._equal and index:
            share = self._share(index)
            groups = leg.population // share * _groups([share])
        return self._count(leg, groups, leg.population)

    def _count(self, leg: Leg, groups: int, branches: int) -> int:
        """The works of so many branches of a leg, whose first units are sampled in so many groups."""
        return groups + branches * (leg.last - leg.first + self._is_judged(leg))


def _groups(litters: Iterable[int]) -> int:
    """In how many works children are sampled whose parents have so many each."""
    return sum(-(-children // TOGETHER) for children in litters)


def _systematic(weights: Sequence[float], count: int, lots: random.Random) -> Mapping[int, int]:
    """How often each index is drawn by ``count`` points that lie equally far apart on the line of all weights."""
    step = sum(weights) / count
    point = lots.random() * step
    bounds = list(itertools.accumulate(weights))
    drawn = (bisect.bisect(bounds, point + number * step) for number in range(count))
    return Counter(min(index, len(weights) - 1) for index in drawn)


def legs_of(layout: Layout, population: int, options: TreeOptions) -> tuple[Leg, ...]:
    """The legs of a search with this population."""
    ends = _ends(layout, options)
    legs: list[Leg] = []
    first, count = layout.given, population
    for last in ends:
        final = last == layout.units - 1
        keep = (
            -(-count // 2) if options.halving else math.ceil(count * options.keep) if options.select == "top" else count
        )
        legs.append(Leg(first, last, count, 1 if final else keep))
        if options.halving:
            count = keep
        elif options.select == "top":
            count = keep * (population // keep)  # equally many children each
        first = last + 1
    return tuple(legs)


def _ends(layout: Layout, options: TreeOptions) -> list[int]:
    """The depths at which branches are judged: every so many units, or whenever the depth doubles, and the last."""
    last = layout.units - 1
    if not options.halving:
        return [*range(layout.given + options.every - 1, last, options.every), last]
    grown = itertools.takewhile(lambda depth: depth < last, (layout.given + 2**n - 1 for n in itertools.count()))
    return [*grown, last]


def worst_case(layout: Layout, legs: Sequence[Leg], prices: Prices) -> int:
    """The most that a search can cost: its children are spread over as many parents as can be."""
    total, parents = 0, 1
    for leg in legs:
        each, more = divmod(leg.population, min(parents, leg.population))
        groups = Counter({each + 1: more, each: min(parents, leg.population) - more})
        total += sum(
            number * prices.grouped(leg.first, 0, layout.last_stage, count, TOGETHER)
            for count, number in groups.items()
            if number
        )
        total += leg.population * sum(
            prices.sample(depth, 0, layout.last_stage, 1) for depth in range(leg.first + 1, leg.last + 1)
        )
        if leg.population > 1 or leg.last < layout.units - 1:
            total += leg.population * prices.judge(leg.last, layout.assessment(leg.last))
        parents = leg.keep
    return total


def plan(task: Task, options: TreeOptions) -> tuple[Policy, Allotment]:
    """The largest population that the budget pays for."""
    layout = task.layout
    one, allowed = amounts(task.multiple, layout, task.prices)

    def price(population: int) -> int:
        return worst_case(layout, legs_of(layout, population, options), task.prices)

    population = options.population or 1
    if options.population is None:
        while price(population + 1) <= allowed:
            population += 1
        if population == 1:
            return unsearched(task)  # there is nothing to choose from
    if price(population) > allowed:
        raise BudgetError(
            f"a population of {population} costs up to {price(population) / one:.4g}x and the budget is "
            f"{task.multiple:g}x: raise it or lower population"
        )
    tree = Tree(layout, legs_of(layout, population, options), options, task.scoring, task.seed)
    return tree, Allotment(one, allowed, price(population))


ENTRY = PolicyEntry(
    name="tree",
    summary="breadth-first: a population that is cut or resampled unit by unit",
    options=TreeOptions,
    plan=plan,
    compares=lambda options: options.select != "threshold",
)
BEAM = PolicyEntry(
    name="beam",
    summary="breadth-first: of a population, the best third has children",
    options=BeamOptions,
    plan=plan,
    compares=lambda options: True,
)
SMC = PolicyEntry(
    name="smc",
    summary="breadth-first: resampled in proportion to its scores (Feynman-Kac steering)",
    options=SmcOptions,
    plan=plan,
    compares=lambda options: True,
)
HALVING = PolicyEntry(
    name="halving",
    summary="best of N with early rejection: the worse half of the videos goes whenever their length has doubled",
    options=HalvingOptions,
    plan=plan,
    compares=lambda options: True,
)
