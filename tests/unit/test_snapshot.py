"""A running search as its watchers see it: snapshots of whole searches with fake workers, taken all along."""

from __future__ import annotations

import asyncio
import math
from collections import Counter

import pytest

from framegrove.config.search import SearchConfig
from framegrove.evaluation.outlook import Outlook, outlook_of
from framegrove.search.result import Node, SearchResult
from framegrove.search.snapshot import BranchNow, Snapshot, Standing
from framegrove.search.workers import GENERATORS
from framegrove.types import Cost, SampleWork
from tests.fakes import FREE, World, fake_cost, run_virtual
from tests.unit.test_conductor import TOF, Stage

SINGLE = Cost(flops=sum(fake_cost(depth, 0, 2, 1) for depth in range(4)))


def watched(world: World, config: SearchConfig = TOF, generators: int = 2) -> tuple[list[Snapshot], SearchResult]:
    """A search, and what it looked like every half second."""

    async def main() -> tuple[list[Snapshot], SearchResult]:
        conductor = Stage(world, config, generators).conductor
        search = asyncio.create_task(conductor.run())
        seen = []
        while not search.done():
            await asyncio.sleep(0.5)
            seen.append(conductor.snapshot())
        return seen, await search

    return run_virtual(main())


def test_looking_changes_nothing() -> None:
    _, looked_at = watched(World(seed=1))
    alone = run_virtual(Stage(World(seed=1)).conductor.run())
    assert looked_at.winner == alone.winner
    assert looked_at.certain == alone.certain
    assert looked_at.units == alone.units
    assert looked_at.sampling.certain == alone.sampling.certain


def test_branches_go_through_their_standings() -> None:
    seen, outcome = watched(World(seed=1))
    met = Counter(branch.standing for snapshot in seen for branch in snapshot.branches)
    assert set(met) == set(Standing)
    first, last = seen[0], seen[-1]
    assert {branch.standing for branch in first.branches} <= {Standing.WAITING, Standing.RUNNING}
    assert last.winner == outcome.winner
    won = [branch.path for branch in last.branches if branch.standing is Standing.WON]
    assert won == [outcome.winner[:n] for n in range(1, len(outcome.winner) + 1)]
    assert {branch.path for branch in last.branches} == {node.path for node in outcome.nodes}


def test_a_winner_that_is_named_first_has_won_once_it_is_sampled() -> None:
    seen, outcome = watched(World(), SearchConfig(policy="single", budget="1x"))
    assert outcome.winner == seen[0].winner == (0, 0, 0, 0)
    standings = {branch.path: branch.standing for branch in seen[0].branches}
    assert standings == {(0,): Standing.RUNNING, **{(0,) * n: Standing.WAITING for n in (2, 3, 4)}}
    assert {branch.standing for branch in seen[-1].branches} == {Standing.WON}


def test_a_cut_is_for_good_and_running_branches_have_attempts() -> None:
    seen, _ = watched(World(seed=2))
    cut: set[tuple[int, ...]] = set()
    for snapshot in seen:
        now = {branch.path for branch in snapshot.branches if branch.standing is Standing.CUT}
        assert cut <= now
        cut = now
        for branch in snapshot.branches:
            if branch.standing is Standing.RUNNING:
                assert branch.attempts
        workers = {worker for pool in snapshot.pools.values() for worker in pool.workers}
        assert {attempt.worker for attempt in snapshot.running} <= workers
    assert cut


def test_a_branch_is_as_likely_right_as_all_its_scores_together_say() -> None:
    seen, outcome = watched(World(seed=1))
    judged = [branch for branch in (*seen[-1].branches, *outcome.nodes) if branch.scores]
    assert {type(branch) for branch in judged} == {BranchNow, Node}
    for branch in judged:
        expected = [math.prod(score for _, score in scores) for _, scores in branch.scores]
        assert branch.chances == pytest.approx(expected)


def test_speculation_is_told_from_what_is_needed() -> None:
    seen, outcome = watched(World(seed=1), generators=4)
    assert any(branch.speculative for snapshot in seen for branch in snapshot.branches)
    assert any(attempt.speculative for snapshot in seen for attempt in snapshot.running)
    early = [span for span in outcome.spans if span.speculative]
    assert early
    assert all(span.speculative for span in outcome.spans if span.work not in outcome.certain)


def test_the_outlook_ends_at_what_was_spent() -> None:
    seen, outcome = watched(World(seed=3))
    outlooks: list[Outlook] = [outlook_of(snapshot, SINGLE, FREE) for snapshot in seen]
    for outlook in outlooks:
        assert 0 <= outlook.known <= outlook.at_most
    spent = [outlook.spent.total for outlook in outlooks]
    assert spent == sorted(spent)
    assert outlooks[0].spent.total == 0
    assert outlooks[-1].known == outlooks[-1].at_most == 0
    paid = outcome.sampling.spent.flops + outcome.scoring.spent.flops
    assert outlooks[-1].spent.total == pytest.approx(paid / SINGLE.flops)


def test_what_is_known_to_go_is_priced_exactly() -> None:
    seen, _ = watched(World(seed=3))
    first = seen[0]
    roots = [work for work in first.undone if isinstance(work, SampleWork)]
    flops = sum(fake_cost(work.depth, work.first_stage, work.last_stage, len(work.paths)) for work in roots)
    assert outlook_of(first, SINGLE, FREE).known == pytest.approx(flops / SINGLE.flops)
    assert first.pools[GENERATORS].done == 0
