"""What a search costs besides its workers' time: the conductor with simulated workers, in virtual time."""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from framegrove.config.search import SearchConfig
from framegrove.evaluation.benches import Finding
from framegrove.evaluation.virtual_time import run_virtual
from framegrove.search.conductor import Conductor
from framegrove.search.policies import make_policy
from framegrove.search.prices import Prices
from framegrove.search.protocols import PanelMember
from framegrove.search.result import SearchResult
from framegrove.search.tree import Policy
from framegrove.types import Cost, Path, Sampled, SampleWork, Scored, ScoreWork

BRANCHES = 10_000
UNITS = 8
STAGES = 3
GENERATORS = 256
ASPECTS = ("alignment", "motion", "clarity")


def conductor(device: torch.device, repeats: int) -> list[Finding]:
    """The conductor's own CPU time in searches of 10,000 branches by 256 generators, for each branch; and how many of
    these are kept whole at a time, with their latents, at most.

    A search takes half a minute of it, so that one is enough: ``repeats`` is not heeded, nor is the ``device``.
    """
    findings = []
    for name in ("linear", "tof"):
        seconds, branches, kept = conducted(name, BRANCHES)
        each = 1000 * seconds / branches
        findings.append(
            Finding(f"conductor, {name}, {branches:,} branches", each, "ms a branch", aim="2 ms", met=each <= 2)
        )
    what = f"conductor, {name}, branches kept whole at a time, beside all that were sampled"
    return [*findings, Finding(what, kept, "branches", branches)]


class _Kept:
    """Branches that were sampled and not released. A simulated generator's handles are their paths."""

    def __init__(self) -> None:
        self._now: set[Path] = set()
        self.most = 0

    def sampled(self, paths: Iterable[Path]) -> None:
        self._now.update(paths)
        self.most = max(self.most, len(self._now))

    def released(self, handle: Path) -> None:
        self._now.discard(handle)


def conducted(name: str, branches: int) -> tuple[float, int, int]:
    """A search of about so many branches: CPU seconds, its planning aside; branches; the most kept whole at a time."""
    config = SearchConfig(policy=name, budget=budget_for(name, branches), scores_in_flight=64)
    policy, _ = make_policy(config, UNITS, STAGES, Prices(simulated_flops))
    kept = _Kept()
    began = time.process_time()
    result = run_virtual(_search(policy, config, kept))
    return time.process_time() - began, len(result.nodes), kept.most


async def _search(policy: Policy, config: SearchConfig, kept: _Kept) -> SearchResult:
    generators = {f"g{number}": SimulatedGenerator(number, kept.sampled) for number in range(GENERATORS)}
    panel = {
        "verifier": PanelMember({f"v{n}": SimulatedVerifier(n) for n in range(8)}, at_a_time=config.scores_in_flight)
    }
    return await Conductor(policy, generators, panel, config, release=kept.released).run()


def budget_for(policy: str, branches: int) -> str:
    """With which a search of simulated works has about so many branches."""
    if policy == "linear":
        return f"{branches // UNITS}x"
    low, high = 1, branches  # a tree's branches grow with its budget, and are told by planning it
    while low < high:
        middle = (low + high + 1) // 2
        tree, _ = make_policy(SearchConfig(policy=policy, budget=f"{middle}x"), UNITS, STAGES, Prices(simulated_flops))
        paths = {path for work in tree.start().works if isinstance(work, SampleWork) for path in work.paths}
        low, high = (middle, high) if len(paths) <= branches // 2 else (low, middle - 1)
    return f"{low}x"


def simulated_flops(depth: int, first_stage: int, last_stage: int, siblings: int) -> int:
    """FLOPs of a simulated work (search.prices.CostTable)."""
    return sum(4**stage for stage in range(first_stage, last_stage + 1)) * (10 * siblings + 3 * depth)


class _Worker:
    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    async def _take(self, seconds: float) -> None:
        await asyncio.sleep(seconds * self._random.uniform(0.5, 1.5))

    async def recover(self) -> None:
        """Never needed: simulated workers do not die."""


class SimulatedGenerator(_Worker):
    """Takes as long as a work's tokens suggest, give or take a half (search.protocols.GeneratorClient)."""

    def __init__(self, seed: int, sampled: Callable[[Iterable[Path]], None] = lambda paths: None) -> None:
        super().__init__(seed)
        self._sampled = sampled

    async def sample(self, work: SampleWork, parents: Mapping[Path, Any]) -> Sampled:
        await self._take(sum(4**stage for stage in range(work.first_stage, work.last_stage + 1)))
        self._sampled(work.paths)
        return Sampled(work, Cost(1, 1, 1.0), work.paths)

    def cancel(self, work: SampleWork) -> None:
        """Too late, always."""


class SimulatedVerifier(_Worker):
    """Takes about five seconds and scores at random, by branch (search.protocols.VerifierClient)."""

    async def score(self, work: ScoreWork, units: Mapping[Path, Any]) -> Scored:
        await self._take(5.0)
        digest = hashlib.blake2b(f"{work.path} {work.assessment}".encode()).digest()
        return Scored(work, tuple((aspect, digest[n] / 255) for n, aspect in enumerate(ASPECTS)), Cost(1, 1, 1.0))
