"""A search over a cache in this process is the search on real actors, vLLM included."""

from __future__ import annotations

import asyncio
import dataclasses
import os
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from actors.local_pools import local_runner
from actors.searches import SearchRunner, search_runner
from framegrove.cluster.session import Cluster
from framegrove.config.model import ModelSource
from framegrove.config.verifier import PanelConfig, VerifierConfig, load_panel
from framegrove.evaluation.branch_cache import BranchCache
from framegrove.evaluation.report import SearchRecord
from framegrove.evaluation.virtual_time import run_virtual
from framegrove.search.result import Fate
from framegrove.types import Assessment, Cost, GenerationRequest, ScoreWork
from framegrove.types import Path as Path_
from tests.tiny import save_tiny, save_tiny_verifier

pytestmark = pytest.mark.timeout(900)

REQUEST = GenerationRequest(
    "a red 3 moves left and right", seed=11, units=4, height=64, width=64, budget=3.0, policy="tof"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    return ModelSource(name=str(save_tiny(tmp_path_factory.mktemp("model") / "tiny")))


@pytest.fixture(scope="module")
def panel(tmp_path_factory: pytest.TempPathFactory) -> PanelConfig:
    """A vLLM verifier with random opinions, and signals, which take no part in everything."""
    (asked,) = load_panel(str(save_tiny_verifier(tmp_path_factory.mktemp("verifier")))).verifiers
    return PanelConfig(verifiers=(asked, VerifierConfig(name="signals", kind="signals")))


@pytest.fixture(scope="module")
def real(cluster: Cluster, model: ModelSource, panel: PanelConfig) -> SearchRecord:
    return asyncio.run(searched(search_runner(model, panel)))


async def searched(runner: SearchRunner) -> SearchRecord:
    try:
        record = await runner.search(REQUEST)
    finally:
        await runner.close()
    return dataclasses.replace(record, shown=dict(record.shown))


def test_a_search_over_a_cache_is_the_search_on_actors(
    real: SearchRecord, model: ModelSource, panel: PanelConfig, tmp_path: Path
) -> None:
    """The same tree, cuts, winner, scores and counted costs, from this process and in virtual time."""

    def replayed() -> tuple[SearchRecord, dict[str, int]]:
        with BranchCache(tmp_path) as cache, mock.patch.dict(os.environ):  # vLLM is told its settings there
            record = run_virtual(searched(local_runner(cache, model, panel)))
            return record, dict(cache.added)

    first, added = replayed()
    assert added["units"] >= len(certain(first))
    again, added = replayed()
    assert added == {}
    for record in (first, again):
        assert record.outcome.winner == real.outcome.winner
        assert record.outcome.certain == real.outcome.certain
        assert certain(record) == certain(real)
        for ours, theirs in zip(scores(record), scores(real), strict=True):
            assert ours[:3] == theirs[:3]
            assert abs(ours[3] - theirs[3]) <= 1 / 64 / 4, "one step of the grid of log-odds, where it is steepest"
        for ours, theirs in zip(costs(record), costs(real), strict=True):
            assert dataclasses.replace(ours, seconds=0.0) == dataclasses.replace(theirs, seconds=0.0)
        assert record.single == real.single
        difference = np.abs(record.frames.astype(int) - real.frames)
        assert difference.max() <= 1  # which siblings were in step decides how sums round


def certain(record: SearchRecord) -> list[Any]:
    """The tree, what was sampled in advance aside: that depends on timing."""
    return [(n.path, n.fate, n.dropped_by) for n in record.outcome.nodes if n.fate is not Fate.SPECULATIVE]


def costs(record: SearchRecord) -> list[Cost]:
    """What had to be sampled, decoded and judged."""
    return [record.outcome.sampling.certain, *(each.certain for each in record.outcome.verifiers.values())]


def scores(record: SearchRecord) -> list[tuple[Path_, Assessment, str, float]]:
    """Every score that the search had to ask for."""
    asked = {(work.path, work.assessment) for work in record.outcome.certain if isinstance(work, ScoreWork)}
    return [
        (node.path, assessment, column, score)
        for node in record.outcome.nodes
        for assessment, panel in node.scores
        if (node.path, assessment) in asked
        for column, score in panel
    ]
