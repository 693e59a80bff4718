"""What working ahead is worth: time saved against FLOPs wasted, for depth-first search on more and more generators.

Depth-first search grows one branch at a time, so that without speculation more generators save nothing. Simulated
workers on virtual time, which take as long as their FLOPs and stop between denoising steps when they are cancelled;
units are right four times in five. The searches are the same for every number of generators and every preset.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from framegrove.config.search import SearchConfig, Speculate
from framegrove.evaluation.benches import Finding
from framegrove.evaluation.report import lost
from framegrove.evaluation.virtual_time import run_virtual
from framegrove.search.conductor import Conductor
from framegrove.search.policies import make_policy
from framegrove.search.prices import Prices
from framegrove.search.protocols import PanelMember, WorkCancelled
from framegrove.search.result import SearchResult
from framegrove.types import Assessment, Cost, Path, Sampled, SampleWork, Scored, ScoreWork

UNITS, STAGES, STEPS = 16, 3, 10
GENERATORS = (1, 2, 4, 8, 16)
SEARCHES = 20
_RIGHT = 0.8
_JUDGING = 150  # FLOPs of a judgement: a third of those of a unit


def speculation(device: torch.device, repeats: int) -> list[Finding]:
    """Mean makespan and waste of some searches by number of generators; ``device`` and ``repeats`` are not heeded."""
    alone = _mean(1, "off")
    findings = []
    for generators in GENERATORS:
        for preset in ("thrift", "latency"):
            run = _mean(generators, preset)
            findings.append(
                Finding(
                    f"dfs, {generators} generators, {preset}: makespan beside one generator without speculation; "
                    f"{run.wasted:.2f} of the needed FLOPs wasted on top",
                    run.seconds,
                    "s",
                    plain=alone.seconds,
                )
            )
    return findings


@dataclass(frozen=True)
class Run:
    """Means over searches: virtual seconds, and FLOPs that were wasted for each that was needed."""

    seconds: float
    wasted: float


def _mean(generators: int, preset: Speculate) -> Run:
    outcomes = [run_virtual(_search(seed, generators, preset)) for seed in range(SEARCHES)]
    needed = sum(each.sampling.certain.flops + each.scoring.certain.flops for each in outcomes)
    wasted = sum((lost(each.sampling) + lost(each.scoring)).flops for each in outcomes)
    return Run(sum(each.seconds for each in outcomes) / len(outcomes), wasted / needed)


async def _search(seed: int, generators: int, preset: Speculate) -> SearchResult:
    config = SearchConfig(policy="dfs", budget="8x", speculate=preset)
    prices = Prices(_flops, {assessment: [_JUDGING] * UNITS for assessment in Assessment})
    policy, _ = make_policy(config, UNITS, STAGES, prices, seed=seed)
    workers = {f"g{number}": _Generator() for number in range(generators)}
    panel = {"verifier": PanelMember({f"v{n}": _Verifier(seed) for n in range(max(1, generators // 2))})}
    return await Conductor(policy, workers, panel, config).run()


def _flops(depth: int, first_stage: int, last_stage: int, siblings: int) -> int:
    return STEPS * sum(_step(depth, stage, siblings) for stage in range(first_stage, last_stage + 1))


def _step(depth: int, stage: int, siblings: int) -> int:
    """FLOPs of a denoising step: siblings share what they build on."""
    return (1 + 3 * 4**stage) * siblings // 4 + 10 + min(depth, 4)


class _Generator:
    def __init__(self) -> None:
        self._cancelled = False

    async def sample(self, work: SampleWork, parents: Mapping[Path, Any]) -> Sampled:
        self._cancelled, spent = False, 0
        for stage in range(work.first_stage, work.last_stage + 1):
            for _ in range(STEPS):
                if self._cancelled:
                    raise WorkCancelled(Cost(0, spent))
                flops = _step(work.depth, stage, len(work.paths))
                await asyncio.sleep(flops)
                spent += flops
        return Sampled(work, Cost(0, spent), work.paths)

    def cancel(self, work: SampleWork) -> None:
        self._cancelled = True

    async def recover(self) -> None:
        """Never needed: simulated workers do not die."""


class _Verifier:
    def __init__(self, seed: int) -> None:
        self._seed = seed

    async def score(self, work: ScoreWork, units: Mapping[Path, Any]) -> Scored:
        await asyncio.sleep(_JUDGING)
        digest = hashlib.blake2b(f"{self._seed} {work.path}".encode()).digest()
        right = int.from_bytes(digest[:4]) / 2**32 < _RIGHT
        return Scored(work, (("right", 0.95 if right else 0.05),), Cost(0, _JUDGING))

    async def recover(self) -> None:
        """Never needed: simulated workers do not die."""
