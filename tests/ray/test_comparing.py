"""Verifiers that compare, as judges of real searches: on actors and in this process, and the shipped one."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.local_pools import LocalCrew, LocalPyramidPool, LocalVerifierPool, local_runner
from actors.pools import PyramidPool, VerifierPool
from actors.searches import SearchRunner
from framegrove.cluster.session import Cluster
from framegrove.config.model import ModelSource
from framegrove.config.verifier import PanelConfig, VerifierConfig
from framegrove.errors import UserError
from framegrove.evaluation.branch_cache import BranchCache
from framegrove.evaluation.report import SearchRecord
from framegrove.evaluation.virtual_time import run_virtual
from framegrove.types import GenerationRequest, ScoreWork
from tests.fakes import FakeChatServer
from tests.tiny import save_tiny
from tests.unit.test_endpoint_verifier import brightness_of, config_of, served
from tests.unit.test_local import told

pytestmark = pytest.mark.timeout(600)

REQUEST = GenerationRequest("a red 3 moves up", seed=3, units=2, height=64, width=64, budget=4.0, policy="beam")


def brighter(asked: Any) -> Any:
    """Says A where the first clip is the brighter one, the surer the more, with a liking for the first place."""
    pictures = sum(part["type"] == "image_url" for part in asked.messages[0]["content"])
    levels = [brightness_of(asked, at) for at in range(pictures)]
    lead = np.mean(levels[: pictures // 2]) - np.mean(levels[pictures // 2 :])
    chance = 1 / (1 + math.exp(-(lead + 0.5)))
    could = {"A": math.log(chance), "B": math.log(1 - chance)}
    return [(max(could, key=lambda word: could[word]), could)]


async def searched(runner: SearchRunner, request: GenerationRequest = REQUEST) -> SearchRecord:
    try:
        return await runner.search(request)
    finally:
        await runner.close()


def compared(record: SearchRecord) -> dict[tuple[int, ...], tuple[ScoreWork, float]]:
    """What was asked of each branch, and its score."""
    return {node.path: (each.work, each.scores[0][1]) for node in record.outcome.nodes for each in node.scored}


def test_a_search_that_compares_is_the_same_on_actors_and_here(cluster: Cluster, tmp_path: Path) -> None:
    model, fake = ModelSource(name=str(save_tiny(tmp_path / "model"))), FakeChatServer(brighter)
    with served(fake) as url, BranchCache(tmp_path / "cache") as cache:
        config: VerifierConfig = config_of(url, {"kind": "pairwise"}, None, price=1000)
        verifiers = [LocalVerifierPool(cache, config)]
        here = run_virtual(searched(SearchRunner(LocalPyramidPool(cache, model), verifiers, crew=LocalCrew(verifiers))))
        questions = len(fake.requests) - 1  # the first is about a grey picture
        frames = here.frames
        there = asyncio.run(searched(SearchRunner(PyramidPool(model, 2), [VerifierPool(config)])))
        refused = GenerationRequest(**{**vars(REQUEST), "policy": "dfs"})
        with pytest.raises(UserError, match=r"judge compares the branches of a cohort .* choose one of linear"):
            asyncio.run(SearchRunner(PyramidPool(model, 2), [VerifierPool(config)]).search(refused))
    assert told(there)[:5] == told(here)[:5]  # then come seconds
    assert np.array_equal(there.frames, frames)
    found = compared(here)
    roots = {path: said for path, said in found.items() if len(path) == 1}
    assert {path: work.against for path, (work, _) in roots.items() if path[0] < 3} == {
        (0,): ((1,),),
        (1,): ((0,),),
        (2,): ((0,), (1,)),
    }
    levels = {path: float(there.shown[path].frames.mean()) for path in roots}
    assert max(roots, key=lambda path: roots[path][1]) == max(levels, key=levels.__getitem__)
    assert questions == sum(2 * len(work.against) for work, _ in found.values())
    assert here.outcome.scoring.certain.flops == 1000 * questions
    assert here.price.sampling + here.price.decoding + here.price.judging <= REQUEST.budget


def test_the_shipped_verifier_may_be_asked_which_is_better(tmp_path: Path) -> None:
    """It was not trained for that; what it says is heard in both orders all the same."""
    score = {"kind": "pairwise", "first": ["yes"], "second": ["no"], "anchors": 1}
    panel = PanelConfig(verifiers=(VerifierConfig.model_validate({"name": "judge", "score": score}),))
    request = GenerationRequest("a red 3 moves up and down", seed=1, units=1, height=64, width=64, policy="linear")
    with BranchCache(tmp_path) as cache:
        record = run_virtual(searched(local_runner(cache, None, panel), request))
    found = compared(record)
    assert len(found) >= 2
    assert found.pop((0,)) == (ScoreWork((0,), found[1,][0].assessment, "judge"), 0.5), "the anchor itself"
    assert all(work.against == ((0,),) and 0 < said < 1 for work, said in found.values())
    assert record.outcome.scoring.certain.flops > 0
    best = max(found, key=lambda path: found[path][1])
    assert record.outcome.winner == (best if found[best][1] > 0.5 else (0,))
