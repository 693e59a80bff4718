"""Tree-of-Frames as a list of rounds: what is sampled, what is judged, how many stay (VT1 alg. 2).

The policy walks these rounds with the scores that are in; the budget walks them with the widest tree possible. So what
is planned for and what is done cannot drift apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from framegrove.search.prices import Prices
from framegrove.search.tree import Layout, PanelWork, PlannedWork
from framegrove.types import Assessment, Path, SampleWork

Branching = Literal["units", "prompts", "never"]
"""Where a branch has two children: at all units, where the prompt's stages switch (VT1), or never."""


@dataclass(frozen=True)
class TreeShape:
    """How wide a tree may grow: ``roots``, children per branch at each later depth, and the most kept by each cut.

    ``widths`` has one entry per round but the last, which ends with one winner.
    """

    roots: int
    children: tuple[int, ...]
    widths: tuple[int, ...]

    @property
    def chooses(self) -> bool:
        """Whether there is ever more than one branch to choose from."""
        return self.roots > 1 or any(count > 1 for count in self.children)


@dataclass(frozen=True)
class Round:
    """Entrants are sampled further, judged by one assessment, and cut to ``width``.

    With ``children`` 0 the entrants themselves are sampled from ``first_stage`` to ``last_stage``, ``together`` of them
    in a work; otherwise each gets that many children, which are one work, for they share all of their past.
    """

    depth: int
    assessment: Assessment
    first_stage: int
    last_stage: int
    width: int
    children: int = 0
    together: int = 1

    def members(self, entrants: Sequence[Path]) -> tuple[Path, ...]:
        """The branches this round judges."""
        if not self.children:
            return tuple(entrants)
        return tuple((*parent, child) for parent in entrants for child in range(self.children))

    def samples(self, entrants: Sequence[Path]) -> tuple[SampleWork, ...]:
        """The sample works for these entrants. Each depends on its entrants alone, so early ones are final."""
        size = self.children or self.together
        members = self.members(entrants)
        groups = (members[start : start + size] for start in range(0, len(members), size))
        return tuple(SampleWork(group, self.first_stage, self.last_stage) for group in groups)

    def works(self, entrants: Sequence[Path]) -> tuple[PlannedWork, ...]:
        """Everything to be done for these entrants."""
        scores = tuple(PanelWork(member, self.assessment) for member in self.members(entrants))
        return (*self.samples(entrants), *scores)

    def size(self, entrants: int) -> int:
        """How many branches are judged if so many enter."""
        return entrants * max(self.children, 1)

    def count(self, entrants: int) -> int:
        """How many works that makes."""
        return -(-self.size(entrants) // (self.children or self.together)) + self.size(entrants)

    def price(self, entrants: int, prices: Prices) -> int:
        """What sampling and judging cost if so many enter."""
        members, together = self.size(entrants), self.children or self.together
        sampling = prices.grouped(self.depth, self.first_stage, self.last_stage, members, together)
        return sampling + members * prices.judge(self.depth, self.assessment)


def rounds_of(layout: Layout, shape: TreeShape, roots_per_work: int) -> tuple[Round, ...]:
    """The rounds of a search: drafts of the first unit and their refinement, if there are any, then one per depth."""
    first, draft, last = layout.given, layout.draft_stage, layout.last_stage
    widths = iter((*shape.widths, 1))
    rounds = []
    if draft is not None:
        rounds.append(Round(first, Assessment.POTENTIAL, 0, draft, next(widths), together=roots_per_work))
        # A refinement is large enough to stand alone, and alone it can start the moment its branch is certain to stay.
        rounds.append(Round(first, layout.assessment(first), draft + 1, last, next(widths)))
    else:
        rounds.append(Round(first, layout.assessment(first), 0, last, next(widths), together=roots_per_work))
    for depth, children in enumerate(shape.children, start=first + 1):
        rounds.append(Round(depth, layout.assessment(depth), 0, last, next(widths), children))
    return tuple(rounds)


def filled(rounds: Sequence[Round], entrants: int) -> Iterator[tuple[Round, int]]:
    """Every round with the most branches that can enter it, where so many enter the first."""
    for step in rounds:
        yield step, entrants
        entrants = min(step.width, step.size(entrants))


def worst_case(rounds: Sequence[Round], roots: int, prices: Prices) -> int:
    """FLOPs of all rounds if as many branches stay as can."""
    return sum(step.price(entrants, prices) for step, entrants in filled(rounds, roots))


def cuts_of(layout: Layout) -> int:
    """How many cuts leave more than the winner: the length of a shape's ``widths``."""
    return layout.units - layout.given - 1 + (layout.draft_stage is not None)
