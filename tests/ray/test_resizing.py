"""Pools of real actors that grow while works wait and shrink while they idle."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path

import numpy as np
import pytest

from actors.pools import PyramidPool, VerifierPool
from actors.searches import SearchRunner
from framegrove.cluster.resizing import Patience
from framegrove.cluster.session import Cluster
from framegrove.config.model import ModelSource
from framegrove.config.pool import PoolSize
from framegrove.config.search import SearchConfig
from framegrove.config.verifier import VerifierConfig
from framegrove.evaluation.report import SearchRecord
from framegrove.search.workers import GENERATORS
from framegrove.types import Assessment, GenerationRequest
from tests.tiny import save_tiny

pytestmark = [pytest.mark.timeout(600), pytest.mark.usefixtures("cluster")]

REQUEST = GenerationRequest(
    "a red 3 moves left and right", seed=11, units=3, height=64, width=64, budget=4.0, policy="beam"
)
QUICK = Patience(grow=0.5, rest=2.0, look=0.2, again=1.0)
SEEDS = (11, 12, 13)


def runner(model: Path, generators: int | PoolSize, verifiers: int | str) -> SearchRunner:
    config = VerifierConfig.model_validate(
        {"name": "signals", "kind": "signals", "judges": list(Assessment), "actors": verifiers}
    )
    pool = PyramidPool(ModelSource(name=str(model)), generators)
    return SearchRunner(pool, [VerifierPool(config)], SearchConfig(speculate="off", scores_in_flight=1), patience=QUICK)


async def searched(house: SearchRunner) -> list[SearchRecord]:
    return await asyncio.gather(*(house.search(dataclasses.replace(REQUEST, seed=seed)) for seed in SEEDS))


def test_a_pool_grows_with_the_queue_and_changes_nothing_but_the_time(tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "model", steps=10)
    sizes: list[int] = []

    async def ranging() -> tuple[list[SearchRecord], list[SearchRecord]]:
        house = runner(model, PoolSize(1, 3), "1:2")

        async def watch() -> None:
            while True:
                sizes.append(len(house.crew[GENERATORS].actors))
                await asyncio.sleep(0.1)

        try:
            await house.start()
            watching = asyncio.create_task(watch())
            first = await searched(house)
            async with asyncio.timeout(60):
                while len(house.crew[GENERATORS].up) > 1 or len(house.crew["signals"].up) > 1:  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
            small = len(sizes)
            again = await searched(house)  # by those who stayed, and by new ones
            assert max(sizes[small:]) > 1
            watching.cancel()
            return first, again
        finally:
            await house.close()

    async def fixed() -> list[SearchRecord]:
        house = runner(model, 1, 1)
        try:
            return await searched(house)
        finally:
            await house.close()

    first, again = asyncio.run(ranging())
    assert sizes[0] == 1
    assert max(sizes) == 3
    for one, two, calm in zip(first, again, asyncio.run(fixed()), strict=True):
        for record in (one, two):
            assert record.outcome.winner == calm.outcome.winner
            assert record.outcome.certain == calm.outcome.certain
            assert record.outcome.sampling.certain.all_flops == calm.outcome.sampling.certain.all_flops
            assert record.outcome.sampling.wasted.all_flops == 0
            assert np.array_equal(record.frames, calm.frames)


def test_without_room_it_stays_as_it_is(cluster: Cluster, tmp_path: Path) -> None:
    """More than the cluster holds is no mistake: as many come as there is room for."""
    model = save_tiny(tmp_path / "model", steps=10)

    async def crowded() -> int:
        house = runner(model, PoolSize(1, 50), 1)
        most = 0
        try:
            await house.start()
            searches = asyncio.create_task(searched(house))
            while not searches.done():
                most = max(most, len(house.crew[GENERATORS].actors))
                await asyncio.sleep(0.1)
            await searches
            return most
        finally:
            await house.close()

    assert cluster.own
    assert 1 < asyncio.run(crowded()) <= 7, "of 8 logical CPUs one is the verifier's"
