"""A search on actors that is judged by a model on frames and by one on latents."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from pathlib import Path

import pytest

from actors.model_files import ModelFiles
from actors.pools import PyramidPool, VerifierPool
from actors.searches import SearchRunner
from framegrove.cluster.session import Cluster
from framegrove.config.model import ModelSource
from framegrove.config.verifier import VerifierConfig
from framegrove.config.verifier_kinds import FramesConfig, LatentConfig
from framegrove.errors import UserError
from framegrove.evaluation.report import SearchRecord
from framegrove.types import Assessment, GenerationRequest
from tests.tiny import save_tiny
from tests.tiny_clip import save_tiny_clip
from tests.unit.test_latent_judge import save_judge_for

pytestmark = pytest.mark.timeout(600)

REQUEST = GenerationRequest("a red 3 moves up", seed=3, units=3, height=64, width=64, budget=4.0, policy="beam")


def test_both_judge_and_foreign_latents_are_refused(cluster: Cluster, tmp_path: Path) -> None:
    source = ModelSource(name=str(save_tiny(tmp_path / "tiny")))
    space = ModelFiles.read(source).latents()
    judge, foreign = (save_judge_for(tmp_path / vae, replace(space, vae=vae)) for vae in (space.vae, "foreign"))
    clip = FramesConfig(model=str(save_tiny_clip(tmp_path / "clip")))
    panel = [
        VerifierConfig(name="clip", kind="frames", frames=clip, judges=(Assessment.IMAGE, Assessment.FINAL)),
        VerifierConfig(name="latent", kind="latent", latent=LatentConfig(model=str(judge))),
    ]
    generators = PyramidPool(source, 1)
    runner = SearchRunner(generators, [VerifierPool(each) for each in panel])

    async def searched() -> tuple[SearchRecord, dict[str, float]]:
        try:
            record = await runner.search(REQUEST)
            for name in ("clip", "latent"):
                pid = await runner.crew[name].actor(0).pid.remote()  # type: ignore[union-attr]
                assert os.getpriority(os.PRIO_PROCESS, pid) == 19, "it gives way to what answers users"
            return record, await runner.judge(record, again=True)
        finally:
            await runner.close()

    record, again = asyncio.run(searched())
    assert set(record.outcome.verifiers) == {"clip", "latent"}
    assert all(costs.spent.flops > 0 for costs in record.outcome.verifiers.values())
    assert again.keys() == {"clip/similarity", "latent/right"}
    assert again == pytest.approx(record.scores)

    other = VerifierConfig(name="latent", kind="latent", latent=LatentConfig(model=str(foreign)))
    refused = SearchRunner(generators, [VerifierPool(other)])
    with pytest.raises(UserError, match="judges latents of the VAE foreign, and the model has the VAE"):
        asyncio.run(refused.search(REQUEST))
