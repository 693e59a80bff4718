"""Searches on actors that are judged by latents: the same as in this process, and only what is looked at is decoded."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.generator import Generator
from actors.model_files import ModelFiles
from actors.pools import Opened, PyramidPool, VerifierPool
from actors.searches import SearchRunner
from framegrove.cluster.session import Cluster
from framegrove.config.model import ModelSource
from framegrove.config.verifier import VerifierConfig
from framegrove.config.verifier_kinds import LatentConfig
from framegrove.evaluation.artefacts import artefacts
from framegrove.evaluation.outlook import Lookout
from framegrove.evaluation.report import SearchRecord
from framegrove.models.latent_judge import JudgeShape, save_judge
from framegrove.search.protocols import GeneratorClient
from framegrove.types import Assessment, GenerationRequest, Sampled, SampleWork
from tests.tiny import save_tiny
from tests.unit.test_latent_judge import judge_of
from tests.unit.test_left_as_latents import looking, search
from tests.unit.test_local import told

pytestmark = pytest.mark.timeout(600)

PROMPT = "a red 3 moves up"
ALONE = GenerationRequest(
    PROMPT, seed=3, units=3, height=64, width=64, budget=4.0, policy="beam", verifiers={"latent": 1.0}
)
STAGED = dataclasses.replace(ALONE, verifiers={"weeding": 1.0, "bright": 1.0})


class Forgetful(PyramidPool):
    """A generator pool from whose searches frames are taken, if it is told to, as if machines had died."""

    forgets = False

    async def open(self, *given: Any) -> Opened:
        return self._watched(await super().open(*given))

    def _watched(self, opened: Opened) -> Opened:
        leaving = opened.leaving
        assert leaving is not None
        return dataclasses.replace(
            opened,
            clients={name: Losing(each, self) for name, each in opened.clients.items()},
            leaving=lambda left: self._watched(leaving(left)),
        )


class Losing:
    """A generator whose works, at the end of a video, leave the units before it without the frames that they gave."""

    def __init__(self, client: GeneratorClient, pool: Forgetful) -> None:
        self._client, self._pool = client, pool
        self.cancel, self.recover = client.cancel, client.recover

    async def sample(self, work: SampleWork, parents: Mapping[tuple[int, ...], Any]) -> Sampled:
        done = await self._client.sample(work, parents)
        if self._pool.forgets and work.depth == 2:
            for unit in parents.values():
                unit.frames = None
        return done


class House:
    """Generators and judges that all searches of this file are made with."""

    def __init__(self, folder: Path) -> None:
        self.model = ModelSource(name=str(save_tiny(folder / "model")))
        space = ModelFiles.read(self.model).latents()
        save_judge(judge_of(JudgeShape(16, width=16, blocks=1)), space, folder / "judge", {})
        judge = LatentConfig(model=str(folder / "judge"))
        weeds = (Assessment.IMAGE, Assessment.MOTION)
        self.panel = {
            "latent": VerifierConfig(name="latent", kind="latent", latent=judge),
            "weeding": VerifierConfig(name="weeding", kind="latent", latent=judge, judges=weeds),
            "bright": looking(Assessment.FINAL),
        }
        self.loop = asyncio.Runner()
        self.generators = Forgetful(self.model, 2)
        self.runner = SearchRunner(self.generators, [VerifierPool(each) for each in self.panel.values()])


@pytest.fixture(scope="module")
def house(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    house = House(tmp_path_factory.mktemp("house"))
    yield house
    house.loop.run(house.runner.close())
    house.loop.close()


def locally(house: House, request: GenerationRequest, folder: Path) -> tuple[SearchRecord, np.ndarray]:
    """The same search in this process."""
    panel = [house.panel[name] for name in request.verifiers or ()]
    request = dataclasses.replace(request, verifiers=None)
    record, _, frames = search(folder, house.model, *panel, request=request)
    return record, frames


def test_by_latents_alone_only_the_winner_is_decoded(house: House, tmp_path: Path) -> None:
    seen: list[Lookout] = []
    whole = house.loop.run(house.runner.search(ALONE, journal=tmp_path, watch=seen.append, whole=True))
    blank = {path for path, shown in whole.shown.items() if shown.blank}
    winner = whole.outcome.winner
    assert {path for path in whole.shown if not whole.shown[path].blank} == {winner[: n + 1] for n in range(3)}
    assert blank
    assert whole.outcome.sampling.spent.decoding == whole.single.decoding
    here, frames = locally(house, ALONE, tmp_path / "here")
    assert told(here)[:5] == told(whole)[:5]
    assert np.array_equal(whole.frames, frames)
    assert whole.look(next(iter(blank))).frames.min() == 255
    assert b"left as latents" in artefacts(whole)["tree.html"]
    again = house.loop.run(house.runner.search(ALONE, journal=tmp_path))
    assert again.outcome.restored > 0
    assert np.array_equal(again.frames, whole.frames)
    assert again.price == dataclasses.replace(whole.price, wasted=again.price.wasted)
    path = next(path for path in blank if len(path) == 1)
    preview = house.loop.run(seen[0].frames(path))
    latent = house.loop.run(house.runner.latents(whole))[path]
    assert preview is not None
    assert np.array_equal(preview, Generator(house.model).decode(None, 0, latent)[0]), "who looks has it decoded"


def test_survivors_are_looked_at_with_their_history(house: House, tmp_path: Path) -> None:
    record = house.loop.run(house.runner.search(STAGED))
    here, frames = locally(house, STAGED, tmp_path)
    assert told(record)[:5] == told(here)[:5]
    assert record.outcome.sampling.certain.decoding == here.outcome.sampling.certain.decoding
    assert np.array_equal(record.frames, frames)
    assert any(shown.blank for shown in record.shown.values())
    house.generators.forgets = True
    again = house.loop.run(house.runner.search(STAGED))
    house.generators.forgets = False
    assert told(again)[:5] == told(record)[:5], "what has lost its frames is decoded again for whoever looks"
    assert np.array_equal(again.frames, record.frames)
