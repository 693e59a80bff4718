"""What a running search has cost so far, and what it will cost yet."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from framegrove.evaluation.report import Frames, Price, price_of
from framegrove.search.prices import Prices
from framegrove.search.result import CostBreakdown
from framegrove.search.snapshot import Snapshot
from framegrove.search.tree import PanelWork
from framegrove.search.workers import GENERATORS
from framegrove.types import Cost, Path, SampleWork, ScoreWork


@dataclass(frozen=True)
class Outlook:
    """Costs of a running search in samples (report.Price).

    ``known`` is what the works that are certain and not done will cost, ``at_most`` what can come of it if as many
    works become certain as the policy allows, at the mean cost of those that are.
    """

    spent: Price
    known: float
    at_most: float


@dataclass(frozen=True)
class Lookout:
    """A running search for whoever watches it, on the search's own event loop.

    ``look`` takes a snapshot; ``frames`` has the newest unit of a branch, uint8 (T, H, W, 3), or None.
    """

    look: Callable[[], Snapshot]
    single: Cost
    prices: Prices
    frames: Callable[[Path], Awaitable[Frames | None]]

    def outlook(self, snapshot: Snapshot) -> Outlook:
        """What the search has cost, and will."""
        return outlook_of(snapshot, self.single, self.prices)


def outlook_of(snapshot: Snapshot, single: Cost, prices: Prices) -> Outlook:
    """Price a snapshot of a search with these ``prices``; ``single`` is the cost of one sample without a search."""
    nothing = CostBreakdown(Cost(), Cost(), Cost())
    sampling = snapshot.pools[GENERATORS].costs
    judging = sum((pool.costs for name, pool in snapshot.pools.items() if name != GENERATORS), nothing)
    samples = [work for work in snapshot.undone if isinstance(work, SampleWork)]
    panels = {PanelWork(work.path, work.assessment) for work in snapshot.undone if isinstance(work, ScoreWork)}
    to_go = prices.works([*samples, *panels])
    certain = sampling.certain.all_flops + judging.certain.flops + to_go
    further = (snapshot.at_most - snapshot.certain) * certain / max(snapshot.certain, 1)
    one = single.all_flops
    to_go += prices.finishing
    return Outlook(price_of(sampling, judging, single), to_go / one, (to_go + further) / one)
