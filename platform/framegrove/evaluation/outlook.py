"""What a running search has cost so far, and what it will cost yet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from framegrove.evaluation.report import Price, price_of
from framegrove.search.result import CostBreakdown
from framegrove.search.rounds import CostTable
from framegrove.search.snapshot import Snapshot
from framegrove.search.workers import GENERATORS
from framegrove.types import Cost, SampleWork


@dataclass(frozen=True)
class Outlook:
    """Costs of a running search in samples (report.Price).

    ``known`` is what the works that are certain and not done will cost, ``at_most`` what can come of it if as many
    works become certain as the policy allows, at the mean cost of those that are. Sampling is priced from exact token
    counts, decoding and judging by what they took so far.
    """

    spent: Price
    known: float
    at_most: float


@dataclass(frozen=True)
class Lookout:
    """A running search for whoever watches it: ``look`` takes a snapshot, on the search's own event loop."""

    look: Callable[[], Snapshot]
    single: Cost
    cost: CostTable

    def outlook(self, snapshot: Snapshot) -> Outlook:
        """What the search has cost, and will."""
        return outlook_of(snapshot, self.single, self.cost)


def outlook_of(snapshot: Snapshot, single: Cost, cost: CostTable) -> Outlook:
    """Price a snapshot. ``single`` is the cost of one sample without a search, ``cost`` prices sample works."""
    nothing = CostBreakdown(Cost(), Cost(), Cost())
    sampling = snapshot.pools[GENERATORS].costs
    judges = [pool for name, pool in snapshot.pools.items() if name != GENERATORS]
    judging = sum((pool.costs for pool in judges), nothing)
    samples = [work for work in snapshot.undone if isinstance(work, SampleWork)]
    scores = len(snapshot.undone) - len(samples)
    denoising = sum(cost(work.depth, work.first_stage, work.last_stage, len(work.paths)) for work in samples)
    decoding = denoising * _ratio(sampling.spent.decoding, sampling.spent.flops)
    to_go = denoising + decoding + scores * _ratio(judging.spent.flops, sum(pool.done for pool in judges))
    certain = sampling.certain.flops + sampling.certain.decoding + judging.certain.flops + to_go
    further = (snapshot.at_most - snapshot.certain) * _ratio(certain, snapshot.certain)
    return Outlook(price_of(sampling, judging, single), to_go / single.flops, (to_go + further) / single.flops)


def _ratio(amount: float, count: float) -> float:
    return amount / count if count else 0.0
