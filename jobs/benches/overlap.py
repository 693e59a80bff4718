"""The bench of overlap: a search on real Ray actors that only sleep, beside generating everything and then judging it.

Sleeping actors need no processor, so that what is measured is how well sampling and judging go on at the same time.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import math
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from framegrove.config.search import SearchConfig
from framegrove.search.conductor import Conductor
from framegrove.search.policies import make_policy
from framegrove.search.prices import Prices
from framegrove.search.protocols import PanelMember, WorkCancelled
from framegrove.search.result import SearchResult
from framegrove.types import Cost, Path, Sampled, SampleWork, Scored, ScoreWork

if TYPE_CHECKING:
    import torch

    from framegrove.evaluation.benches import Finding

UNITS = 8
WORKERS = 2  # generators, and as many verifiers
SEARCHES = 3
SECONDS = 0.5  # to sample a branch's unit, or to judge it
STEPS = 30  # of denoising in a unit, between which a generator can stop: three stages of ten
BUDGET = "12x"
CONFIG = SearchConfig(policy="beam", budget=BUDGET, speculate="thrift")


def overlap(device: torch.device, repeats: int) -> list[Finding]:
    """A beam search's makespan beside its critical path and beside taking turns; the arguments are not heeded.

    The critical path is the least that the works of the search can take: the samples shared evenly by the generators,
    and after the last of them the judgements of what it brought, by as many verifiers as there are. What is bet on, and
    so how long it takes, depends on timing: it is the median of some searches.
    """
    import ray

    from framegrove.cluster.session import connect
    from framegrove.evaluation.benches import Finding

    with connect():
        actors: list[Any] = [ray.remote(num_cpus=0)(Sleeper).remote() for _ in range(2 * WORKERS)]
        asyncio.run(_slept(actors, 0.0))  # until they are up
        outcomes = sorted((asyncio.run(_searched(actors)) for _ in range(SEARCHES)), key=lambda each: each.seconds)
        in_turns = asyncio.run(_in_turns(actors, outcomes[0]))
    ours, span = outcomes[SEARCHES // 2].seconds, (outcomes[0].seconds, outcomes[-1].seconds)
    least = _critical_path(outcomes[0])
    return [
        Finding(
            "a beam search on sleeping actors, beside its critical path",
            *(ours, "s", least),
            aim="at most 1.15",
            met=ours <= 1.15 * least,
            ours_range=span,
        ),
        Finding(
            "the same, beside generating a round and then judging it",
            *(ours, "s", in_turns),
            aim="at most 1/1.6",
            met=in_turns >= 1.6 * ours,
            ours_range=span,
        ),
    ]


def _critical_path(outcome: SearchResult) -> float:
    works = [work for work in outcome.certain if isinstance(work, SampleWork)]
    last = min(len(work.paths) for work in works if work.depth == UNITS - 1)
    return SECONDS * (sum(len(work.paths) for work in works) / WORKERS + math.ceil(last / WORKERS))


class Sleeper:
    """An actor that takes its time. As a generator does, it stops at the next of its steps when it is asked to."""

    def __init__(self) -> None:
        self._stopped: set[int] = set()

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)

    async def take_steps(self, number: int, seconds: float) -> bool:
        """Wait for so many seconds in ``STEPS`` steps. False if ``stop`` was called before the last."""
        began = time.monotonic()
        for step in range(1, STEPS + 1):
            if number in self._stopped:
                return False
            await asyncio.sleep(began + step * seconds / STEPS - time.monotonic())  # naps of their own would add up
        return True

    async def stop(self, number: int) -> None:
        """Let the work of this number end with its present step."""
        self._stopped.add(number)


_numbers = itertools.count()  # of works, of all searches: an actor remembers which ones were stopped


class _Client:
    def __init__(self, actor: Any) -> None:
        self._actor = actor
        self._running: dict[SampleWork, int] = {}

    async def sample(self, work: SampleWork, parents: Mapping[Path, Any]) -> Sampled:
        number = self._running[work] = next(_numbers)
        try:
            if not await self._actor.take_steps.remote(number, SECONDS * len(work.paths)):
                raise WorkCancelled
        finally:
            del self._running[work]
        return Sampled(work, Cost(1, len(work.paths)), work.paths)

    async def score(self, work: ScoreWork, units: Mapping[Path, Any]) -> Scored:
        await self._actor.sleep.remote(SECONDS)
        digest = hashlib.blake2b(str(work.path).encode()).digest()
        return Scored(work, (("right", digest[0] / 255),), Cost(0, 1))

    def cancel(self, work: SampleWork) -> None:
        if work in self._running:
            self._actor.stop.remote(self._running[work])

    async def recover(self) -> None:
        """Never needed: nobody kills them."""


async def _searched(actors: Sequence[Any]) -> SearchResult:
    policy, _ = make_policy(CONFIG, UNITS, 1, Prices(lambda depth, first, last, siblings: siblings))
    clients = [_Client(actor) for actor in actors]
    generators = {f"generator {n}": client for n, client in enumerate(clients[:WORKERS])}
    verifiers = {f"verifier {n}": client for n, client in enumerate(clients[WORKERS:])}
    return await Conductor(policy, generators, {"verifier": PanelMember(verifiers, at_a_time=1)}, CONFIG).run()


async def _in_turns(actors: Sequence[Any], outcome: SearchResult) -> float:
    """Seconds of the same works, depth by depth: first all samples of a depth, then all of its judgements."""
    samples: dict[int, list[float]] = defaultdict(list)
    scores: dict[int, list[float]] = defaultdict(list)
    for work in outcome.certain:
        if isinstance(work, SampleWork):
            samples[work.depth].append(SECONDS * len(work.paths))
        else:
            scores[len(work.path) - 1].append(SECONDS)
    began = time.monotonic()
    for depth in sorted(samples):
        await _shared(actors[:WORKERS], samples[depth])
        await _shared(actors[WORKERS:], scores[depth])
    return time.monotonic() - began


async def _shared(actors: Sequence[Any], works: list[float]) -> None:
    """Have some actors do some works, each the next one as soon as it is free, long ones first."""
    waiting = sorted(works)

    async def busy(actor: Any) -> None:
        while waiting:
            await actor.sleep.remote(waiting.pop())

    await asyncio.gather(*map(busy, actors))


async def _slept(actors: Sequence[Any], seconds: float) -> None:
    await asyncio.gather(*(actor.sleep.remote(seconds) for actor in actors))
