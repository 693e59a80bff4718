"""How busy many searches keep a pool that they share, with simulated workers in virtual time, and what that costs."""

from __future__ import annotations

import asyncio
import itertools
import time
from dataclasses import dataclass, field

import torch

from framegrove.config.search import SearchConfig
from framegrove.evaluation.bench_conductor import (
    STAGES,
    UNITS,
    SimulatedGenerator,
    SimulatedVerifier,
    budget_for,
    simulated_flops,
)
from framegrove.evaluation.benches import Finding
from framegrove.evaluation.virtual_time import run_virtual
from framegrove.search.conductor import Conductor
from framegrove.search.policies import make_policy
from framegrove.search.prices import Prices
from framegrove.search.protocols import PanelMember
from framegrove.search.result import SearchResult
from framegrove.search.sharing import SharedWorkers
from framegrove.search.workers import GENERATORS

BRANCHES = 10_000
SEARCHES = 64
POOLS = (1, 4, 16, 64, 256)  # generators


@dataclass(frozen=True)
class Load:
    """How busy generators were, as shares of their time: while work lasts, and until the last search had ended.

    Work lasts until for the last time as many works were known to be needed, running ones included, as there are
    generators: after that not all can be busy. Until then they idle only where works wait for scores or for each other.
    ``seconds`` is the conductors' CPU time.
    """

    lasting: float
    whole: float
    seconds: float
    branches: int


def sharing(device: torch.device, repeats: int) -> list[Finding]:
    """How busy 1 to 256 simulated generators are with 64 searches of 10,000 branches in all, beside one of those alone.

    In virtual time, so that once is enough: ``repeats`` is not heeded, nor is the ``device``.
    """
    findings = []
    for generators in POOLS:
        load = loaded(SEARCHES, generators, BRANCHES // SEARCHES)
        lone = loaded(1, generators, BRANCHES // SEARCHES)
        name = f"{generators} generators, {SEARCHES} searches of tof, {load.branches:,} branches"
        each = 1000 * load.seconds / load.branches
        findings += [
            Finding(f"{name}: busy while work lasts", 100 * load.lasting, "%", aim="90%", met=load.lasting >= 0.9),
            Finding(f"{name}: busy in all; plain: one search alone", 100 * load.whole, "%", 100 * lone.whole),
            Finding(f"{name}: conductors", each, "ms a branch", aim="2 ms", met=each <= 2),
        ]
    return findings


def loaded(searches: int, generators: int, branches: int) -> Load:
    """Run so many searches of about so many ``branches`` each on simulated workers that they share."""
    config = SearchConfig(policy="tof", budget=budget_for("tof", branches), scores_in_flight=64)
    gauge = _Gauge(generators)
    began = time.process_time()
    results = run_virtual(_searched(config, searches, generators, gauge))
    seconds = time.process_time() - began
    lasting, whole = gauge.busy()
    return Load(lasting, whole, seconds, sum(len(result.nodes) for result in results))


async def _searched(config: SearchConfig, searches: int, generators: int, gauge: _Gauge) -> list[SearchResult]:
    clients = {f"g{number}": SimulatedGenerator(number) for number in range(generators)}
    judges = {f"v{number}": SimulatedVerifier(number) for number in range(max(1, generators // 4))}
    panel = {"verifier": PanelMember(judges, at_a_time=config.scores_in_flight)}
    shared = SharedWorkers()
    conductors = [
        Conductor(
            make_policy(config, UNITS, STAGES, Prices(simulated_flops))[0],
            clients,
            panel,
            config,
            observer=gauge,
            shared=shared,
        )
        for _ in range(searches)
    ]
    return await asyncio.gather(*(conductor.run() for conductor in conductors))


@dataclass
class _Gauge:
    """Notes how many works run and wait (search.conductor.Observer)."""

    generators: int
    noted: list[tuple[float, int, int]] = field(default_factory=list)

    def ended(self, pool: str, ending: str, seconds: float, reason: str) -> None:
        """What is noted is the load."""

    def load(self, pool: str, running: int, waiting: int) -> None:
        """Running and waiting works from now on."""
        if pool == GENERATORS:
            self.noted.append((asyncio.get_running_loop().time(), running, waiting))

    def busy(self) -> tuple[float, float]:
        """Share of the generators' time that they were busy: while work lasts, and in all."""
        spans = [(end - start, running) for (start, running, _), (end, *_) in itertools.pairwise(self.noted)]
        enough = [n for n, (_, running, waiting) in enumerate(self.noted) if running + waiting >= self.generators]
        return self._share(spans[: enough[-1] + 1] if enough else []), self._share(spans)

    def _share(self, spans: list[tuple[float, int]]) -> float:
        time_there = self.generators * sum(seconds for seconds, _ in spans)
        return sum(seconds * running for seconds, running in spans) / time_there if time_there else 0.0
