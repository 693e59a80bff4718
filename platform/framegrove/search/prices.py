"""What the works of a search cost, before it begins: what budgets are planned with.

A price is a number of FLOPs, counted exactly from the shapes of what is computed. Sampling includes the decoding of
what it makes, previews included, where somebody who looks at frames judges it; of what is judged by its latents alone
only the winner is decoded, at the end. Judging is that of a whole panel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache

from framegrove.search.tree import Layout, PlannedWork
from framegrove.types import Assessment, SampleWork, depth_of

CostTable = Callable[[int, int, int, int], int]
"""FLOPs of one sample work: (depth, first_stage, last_stage, siblings) -> FLOPs of all its branches together."""


@dataclass(frozen=True)
class Prices:
    """``sample`` prices sample works, decoding included; ``judging`` has each assessment's price by depth.

    An assessment that is not there costs nothing, as that of verifiers that compute next to nothing. ``nfe`` counts the
    transformer evaluations of sample works, previews included. ``finishing`` is what the winner costs after all works:
    the decoding of what they have left as latents.
    """

    sample: CostTable
    judging: Mapping[Assessment, Sequence[int]] = field(default_factory=dict)
    nfe: CostTable = lambda depth, first_stage, last_stage, siblings: 0
    finishing: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "sample", cache(self.sample))  # planners ask for the same prices again and again

    def capped(self, allowed: int, most_nfe: int) -> Prices:
        """Prices by which works that cost ``allowed`` FLOPs together have no more than ``most_nfe`` evaluations.

        Of FLOPs and evaluations, each as a share of what is allowed, the dearer counts.
        """

        def sample(depth: int, first_stage: int, last_stage: int, siblings: int) -> int:
            work = depth, first_stage, last_stage, siblings
            return max(self.sample(*work), -(-self.nfe(*work) * allowed // most_nfe))

        return replace(self, sample=sample)

    def grouped(self, depth: int, first_stage: int, last_stage: int, branches: int, together: int) -> int:
        """FLOPs of sampling so many branches, ``together`` of them in a work; the last work has what is left."""
        full, rest = divmod(branches, together)
        sizes = [(full, together), (1, rest)]
        return sum(works * self.sample(depth, first_stage, last_stage, size) for works, size in sizes if works and size)

    def judge(self, depth: int, assessment: Assessment) -> int:
        """FLOPs of the whole panel's judgement of one branch of this depth."""
        return self.judging[assessment][depth] if assessment in self.judging else 0

    def work(self, work: PlannedWork) -> int:
        """FLOPs of any planned work."""
        if isinstance(work, SampleWork):
            return self.sample(work.depth, work.first_stage, work.last_stage, len(work.paths))
        return self.judge(depth_of(work.path), work.assessment)

    def works(self, works: Sequence[PlannedWork]) -> int:
        """FLOPs of some works together."""
        return sum(map(self.work, works))

    def unit(self, layout: Layout, depth: int, siblings: int = 1) -> int:
        """FLOPs of sampling and judging ``siblings`` children of one branch at full resolution."""
        judged = self.judge(depth, layout.assessment(depth))
        return self.sample(depth, 0, layout.last_stage, siblings) + siblings * judged

    def unjudged(self, layout: Layout, first_depth: int) -> int:
        """FLOPs of finishing one branch from ``first_depth`` to the last unit without asking anybody."""
        return sum(self.sample(depth, 0, layout.last_stage, 1) for depth in range(first_depth, layout.units))

    def one_sample(self, layout: Layout) -> int:
        """FLOPs of one unsearched sample with its decoding: 1x."""
        return self.unjudged(layout, layout.given) + self.finishing
