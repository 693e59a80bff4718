"""The bench of endurance: searches on real actors of which one is killed every few seconds.

Nothing may be lost, nothing done twice, and every video must be the one that an undisturbed search finds, bit for bit.
The panel is ``signals``, whose actors are back within seconds, as generators are: what is tested is that searches
survive, and not how long a language model takes to load.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from framegrove.config.model import ModelSource
from framegrove.config.search import SearchConfig
from framegrove.config.verifier import PanelConfig, VerifierConfig
from framegrove.search.workers import GENERATORS
from framegrove.types import Assessment, GenerationRequest

if TYPE_CHECKING:
    import torch

    from actors.searches import SearchRunner
    from framegrove.evaluation.benches import Finding
    from framegrove.evaluation.report import SearchRecord

Expected = tuple[np.ndarray, int]  # a video's frames, and the FLOPs that had to be spent on sampling for it

SEARCHES = 100
EVERY = 5.0  # seconds between two kills
SEED = 180_000
_AT_A_TIME = 4
_PANEL = PanelConfig(verifiers=(VerifierConfig(name="signals", kind="signals", judges=tuple(Assessment)),))
_POOLS = (GENERATORS, "signals")
_UP = 0.5  # seconds in which an actor that is up says its process
_CONFIG = SearchConfig(attempts=20)  # a work may well be hit by several kills, and is to blame for none


@dataclass(frozen=True)
class Endured:
    """What became of some searches: how many videos are ``right``, and how many cost as if undisturbed."""

    finished: int
    right: int
    same_cost: int
    kills: int
    seconds: float


def endurance(device: torch.device, repeats: int) -> list[Finding]:
    """How many videos of 100 searches are right while an actor is killed every 5 s; the arguments are not heeded."""
    from framegrove.cluster.session import connect
    from framegrove.evaluation.benches import Finding

    requests = requested(SEARCHES)
    expected = undisturbed(requests)
    with connect():
        found = asyncio.run(under_fire(requests, expected, every=EVERY))
    what = (
        f"videos as if undisturbed, {found.kills} actors killed in {found.seconds:.0f} s; {found.same_cost} searches "
        "counted every work once"
    )
    met = found.right == found.finished == found.same_cost == SEARCHES
    return [Finding(what, found.right, "videos", SEARCHES, aim=f"all {SEARCHES}", met=met)]


def requested(count: int) -> list[GenerationRequest]:
    """Short videos of one digit each."""
    from framegrove.digits import world

    return [
        GenerationRequest(
            world.caption(objects), seed=SEED + index, units=2, height=64, width=64, policy="tof", budget=2.0
        )
        for index, objects in enumerate(world.prompts(count, SEED, digits=1))
    ]


def undisturbed(requests: Sequence[GenerationRequest], model: ModelSource | None = None) -> list[Expected]:
    """What searches find that nobody disturbs, in this process, and what that takes."""
    from actors.local_pools import local_runner
    from framegrove.evaluation.branch_cache import BranchCache
    from framegrove.evaluation.virtual_time import run_virtual

    with tempfile.TemporaryDirectory() as folder, BranchCache(Path(folder)) as cache:
        runner = local_runner(cache, model, _PANEL, _CONFIG)

        async def one_after_the_other() -> list[Expected]:
            records = [await runner.search(request) for request in requests]
            return [(record.frames, record.outcome.sampling.certain.flops) for record in records]

        return run_virtual(one_after_the_other())


async def under_fire(
    requests: Sequence[GenerationRequest],
    expected: Sequence[Expected],
    *,
    every: float,
    model: ModelSource | None = None,
) -> Endured:
    """Search for all of these on actors, killing one of them ``every`` so many seconds."""
    from actors.searches import search_runner

    runner, gate = search_runner(model, _PANEL, _CONFIG), asyncio.Semaphore(_AT_A_TIME)
    loop, kills = asyncio.get_running_loop(), [0]

    async def searched(request: GenerationRequest) -> SearchRecord:
        async with gate:
            return await runner.search(request)

    try:
        await runner.start()
        began = loop.time()
        killer = asyncio.create_task(_kill(runner, every, kills))
        try:
            records = await asyncio.gather(*map(searched, requests))
        finally:
            killer.cancel()
        seconds = loop.time() - began
    finally:
        await runner.close()
    return Endured(
        finished=len(records),
        right=sum(np.array_equal(one.frames, frames) for one, (frames, _) in zip(records, expected, strict=True)),
        same_cost=sum(
            one.outcome.sampling.certain.flops == flops for one, (_, flops) in zip(records, expected, strict=True)
        ),
        kills=kills[0],
        seconds=seconds,
    )


async def _kill(runner: SearchRunner, every: float, kills: list[int]) -> None:
    """Kill the process of a random actor, again and again; one that is just coming up is spared."""
    chance = random.Random(SEED)
    while True:
        await asyncio.sleep(every)
        actor = chance.choice([actor for pool in _POOLS for actor in runner.crew[pool].actors])
        with contextlib.suppress(Exception):  # not up
            os.kill(await asyncio.wait_for(actor.pid.remote(), _UP), signal.SIGKILL)
            kills[0] += 1
