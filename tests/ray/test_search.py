"""Searches on real actors, vLLM included: the same video whatever dies, and nothing that is finished is done again."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from actors.generator import Generator
from actors.ingress import served
from actors.model_files import ModelFiles
from actors.pools import Ask, Opened, PyramidPool, VerifierPool, context_of
from actors.searches import SearchRunner, search_runner
from framegrove.cluster.errors import NoRoom
from framegrove.cluster.session import Cluster
from framegrove.cluster.supervise import ActorGroup
from framegrove.config.base import Config
from framegrove.config.model import ModelSource
from framegrove.config.search import SearchConfig
from framegrove.config.serve import ServeConfig
from framegrove.config.verifier import VerifierConfig, load_panel
from framegrove.errors import UserError
from framegrove.evaluation.report import SearchRecord, report_json
from framegrove.media.writing import decode_mp4, encode_mp4
from framegrove.search import policies
from framegrove.search.policies import Allotment, PolicyEntry, Task
from framegrove.search.protocols import GeneratorClient
from framegrove.search.result import Fate
from framegrove.search.tree import Decision, Layout, PanelWork, Scores
from framegrove.search.workers import GENERATORS
from framegrove.serving.service import VideoService
from framegrove.serving.store import VideoStore
from framegrove.serving.web import build_app
from framegrove.types import Assessment, GenerationRequest, Progress, Sampled, SampleWork, ScoreWork
from framegrove.types import Path as Path_
from jobs.benches import endurance
from jobs.console import policy_help
from jobs.writing import WRITTEN, write
from tests.tiny import save_tiny, save_tiny_verifier

pytestmark = pytest.mark.timeout(900)

REQUEST = GenerationRequest(
    "a red 3 moves left and right", seed=11, units=3, height=64, width=64, budget=4.0, policy="tof"
)


class WatchedPool(PyramidPool):
    """A generator pool whose clients a test can wrap."""

    wrap: Callable[[GeneratorClient], GeneratorClient] | None = None

    async def open(self, request: GenerationRequest, group: ActorGroup, ask: Ask, config: SearchConfig) -> Opened:
        opened = await super().open(request, group, ask, config)
        if self.wrap is None:
            return opened
        return dataclasses.replace(opened, clients={name: self.wrap(each) for name, each in opened.clients.items()})


class House:
    """One runner for all tests of this file, and the event loop it lives on."""

    def __init__(self, model: Path, verifier: Path) -> None:
        self.loop = asyncio.Runner()
        self.generators = WatchedPool(ModelSource(name=str(model)), 2)
        self.runner = SearchRunner(
            self.generators, [VerifierPool(each) for each in load_panel(str(verifier)).verifiers]
        )

    def search(self, request: GenerationRequest = REQUEST, **more: Any) -> SearchRecord:
        return self.loop.run(self.runner.search(request, **more))

    def pid(self, pool: str) -> int:
        return int(ray.get(self.runner.crew[pool].actors[0].pid.remote()))


@pytest.fixture(scope="module")
def house(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("house")
    house = House(save_tiny(folder / "model", steps=10), save_tiny_verifier(folder / "verifier"))
    house.loop.run(house.runner.start())
    yield house
    house.loop.run(house.runner.close())
    house.loop.close()


@pytest.fixture(scope="module")
def undisturbed(house: House) -> SearchRecord:
    return house.search()


def video(record: SearchRecord) -> bytes:
    return encode_mp4(record.frames, record.fps)


def once(share: float, act: Callable[[], None]) -> Callable[[Progress], None]:
    """A progress callback that acts once, as soon as this share of the work is done."""
    acted = False

    def watch(progress: Progress) -> None:
        nonlocal acted
        if progress.done >= share and not acted:
            acted = True
            act()

    return watch


def test_a_search_leaves_a_whole_tree(undisturbed: SearchRecord, tmp_path: Path) -> None:
    outcome = undisturbed.outcome
    assert undisturbed.frames.shape == (17, 64, 64, 3)
    assert set(undisturbed.scores) == {"alignment", "motion", "clarity"}
    assert len(outcome.nodes) > 4
    assert outcome.overlap > 0
    budget = REQUEST.budget * undisturbed.single.all_flops
    needed = outcome.sampling.certain.all_flops + outcome.scoring.certain.flops
    assert undisturbed.single.all_flops < needed <= budget
    assert outcome.scoring.spent.flops > 0
    write(undisturbed, tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(WRITTEN)
    assert json.loads((tmp_path / "report.json").read_text()) == report_json(undisturbed)
    assert len(decode_mp4(tmp_path / "video.mp4")[0]) == 17


def test_packed_searches_find_what_each_finds_alone(house: House) -> None:
    """Throughput: one generator samples for three searches at a time, which rounds otherwise and is the same else."""
    signals = VerifierConfig(name="signals", kind="signals", judges=tuple(Assessment))
    requests = [dataclasses.replace(REQUEST, seed=seed) for seed in (11, 12, 13)]

    async def searched(pack: int) -> list[SearchRecord]:
        pool = PyramidPool(house.generators._source, 1, pack=pack)
        runner = SearchRunner(pool, [VerifierPool(signals)], SearchConfig(speculate="off"))
        try:
            return await asyncio.gather(*map(runner.search, requests))
        finally:
            await runner.close()

    found = {pack: house.loop.run(searched(pack)) for pack in (1, 3)}
    for alone, packed in zip(found[1], found[3], strict=True):
        assert packed.outcome.winner == alone.outcome.winner
        assert packed.outcome.certain == alone.outcome.certain
        costs = [record.outcome.sampling.certain for record in (packed, alone)]
        assert costs[0].all_flops == costs[1].all_flops
        assert np.abs(packed.frames.astype(int) - alone.frames).max() <= 2
    works = [[span for span in record.outcome.spans if isinstance(span.work, SampleWork)] for record in found[3]]
    pairs = itertools.chain(*(itertools.combinations(spans, 2) for spans in works))
    assert any(one.start < other.end and other.start < one.end for one, other in pairs), "works were packed"


def test_dropped_branches_of_large_videos_keep_small_frames(
    house: House, undisturbed: SearchRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "actors.pools.context_of", lambda *of: dataclasses.replace(context_of(*of), small=32)
    )  # 64 px are many
    record = house.search()
    assert video(record) == video(undisturbed)
    dropped = {node.path for node in record.outcome.nodes if node.fate is Fate.DROPPED}
    small = {path for path, shown in record.shown.items() if shown.small}
    assert dropped
    assert dropped <= small
    assert {record.shown[path].frames.shape[1:3] for path in small} == {(32, 32)}
    assert all(record.outcome.handles[path].latent is None for path in small)


def test_progress_never_falls(house: House, undisturbed: SearchRecord) -> None:
    shares: list[float] = []
    record = house.search(on_progress=lambda progress: shares.append(progress.done))
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert video(record) == video(undisturbed)


def test_killing_a_generator_changes_nothing(house: House, undisturbed: SearchRecord) -> None:
    pid = house.pid(GENERATORS)
    record = house.search(on_progress=once(0.2, lambda: os.kill(pid, signal.SIGKILL)))
    assert video(record) == video(undisturbed)
    assert record.outcome.winner == undisturbed.outcome.winner
    assert "failed" in [span.ending for span in record.outcome.spans]
    assert house.pid(GENERATORS) != pid


def test_searches_at_the_same_time_share_the_actors_and_change_nothing(house: House, undisturbed: SearchRecord) -> None:
    other = dataclasses.replace(REQUEST, seed=12, policy="linear", budget=2.0)
    alone, pid = house.search(other), house.pid(GENERATORS)

    async def together() -> list[SearchRecord]:
        kill = once(0.2, lambda: os.kill(pid, signal.SIGKILL))
        return await asyncio.gather(
            house.runner.search(REQUEST, kill), house.runner.search(other), house.runner.search(other)
        )

    records = house.loop.run(together())
    assert [video(record) for record in records] == [video(undisturbed), video(alone), video(alone)]
    assert any(span.ending == "failed" for record in records for span in record.outcome.spans)
    assert house.pid(GENERATORS) != pid


@pytest.mark.long
def test_every_video_is_right_while_actors_are_killed(house: House) -> None:
    """As ``jobs.bench --only endurance``, in small."""
    model, requests = house.generators._source, endurance.requested(16)
    expected = endurance.undisturbed(requests, model)
    found = house.loop.run(endurance.under_fire(requests, expected, every=1.5, model=model))
    assert found.kills >= 1
    assert (found.finished, found.right, found.same_cost) == (16, 16, 16)


class Grave:
    """Values that are put here are lost with the actor."""

    def put(self, value: Any) -> list[Any]:
        return [ray.put(value)]


class Losing:
    """A client whose units are lost for three works: the first two, and the winner's last one."""

    def __init__(self, client: GeneratorClient, lost: list[Any], last: Path_) -> None:
        self._client, self._lost, self._last = client, lost, last

    async def sample(self, work: SampleWork, parents: Any) -> Sampled:
        sampled = await self._client.sample(work, parents)
        if work.paths in self._lost or (self._last not in work.paths and len(self._lost) > 1):
            return sampled
        self._lost.append(work.paths)
        grave = ray.remote(Grave).options(num_cpus=0).remote()
        units = []
        for unit in sampled.handles:
            latent, frames = await grave.put.remote(unit.latent), await grave.put.remote(unit.frames)
            units.append(dataclasses.replace(unit, latent=latent[0], frames=frames[0]))
        ray.kill(grave)
        return dataclasses.replace(sampled, handles=tuple(units))

    def cancel(self, work: SampleWork) -> None:
        self._client.cancel(work)

    async def recover(self) -> None:
        await self._client.recover()


@pytest.mark.parametrize("policy", ["tof", "single"])
def test_losing_units_changes_nothing(house: House, policy: str) -> None:
    """As if the machine that held them had died, the last one when all else is done."""
    request = dataclasses.replace(REQUEST, policy=policy, budget=4.0 if policy == "tof" else 1.0)
    undisturbed = house.search(request)
    lost: list[Any] = []
    house.generators.wrap = lambda client: Losing(client, lost, undisturbed.outcome.winner)
    try:
        record = house.search(request)
    finally:
        house.generators.wrap = None
    assert len(lost) == 3
    assert video(record) == video(undisturbed)
    assert record.outcome.certain == undisturbed.outcome.certain
    assert record.outcome.sampling.certain.flops == undisturbed.outcome.sampling.certain.flops
    if policy == "single":  # in a tree, what was lost may have been cut, and is not computed again then
        assert record.outcome.sampling.wasted.flops > 0


class Marked(Generator):
    """Another worker class: its frames are white."""

    def sample(self, *given: Any) -> tuple[Any, ...]:
        made, *parts = super().sample(*given)
        return (made, *(np.full_like(part, 255) if isinstance(part, np.ndarray) else part for part in parts))


def test_the_worker_class_is_injected(cluster: Cluster, house: House, tmp_path: Path) -> None:
    pool = PyramidPool(ModelSource(name=str(save_tiny(tmp_path / "model"))), 1, worker=Marked)
    runner = SearchRunner(pool, [])

    async def searched() -> SearchRecord:
        try:
            return await runner.search(dataclasses.replace(REQUEST, policy="single", budget=1.0))
        finally:
            await runner.close()

    assert (asyncio.run(searched()).frames == 255).all()


def darkness(frames: np.ndarray, prompt: str) -> dict[str, float]:
    """A verifier of one's own."""
    return {"dark": 1 - float(frames.mean()) / 255}


def test_a_panel_of_three_kinds(house: House, undisturbed: SearchRecord) -> None:
    """Each verifier has actors of its own, and the record tells them apart."""
    (vllm,) = house.runner._verifiers.values()
    signals = VerifierConfig(name="signals", kind="signals", actors=2)
    own = VerifierConfig(name="own", kind="callable", function="tests.ray.test_search:darkness")
    runner = SearchRunner(house.generators, [vllm, VerifierPool(signals), VerifierPool(own)])
    runner.crew._groups |= house.runner.crew._groups  # those that are up already

    async def with_some_of_them() -> tuple[SearchRecord, SearchRecord]:
        two = await runner.search(dataclasses.replace(REQUEST, verifiers={"verifier": 1.0, "own": 0.5}))
        return two, await runner.search(dataclasses.replace(REQUEST, verifiers={"verifier": 1.0}))

    async def all_of_it() -> tuple[SearchRecord, tuple[SearchRecord, SearchRecord]]:
        try:
            return await runner.search(REQUEST), await with_some_of_them()
        finally:
            for name in ("signals", "own"):
                await runner.crew._close([name])

    record, (two, one) = house.loop.run(all_of_it())
    assert set(two.outcome.verifiers) == {"verifier", "own"}
    assert {name.partition("/")[0] for name in two.scores} == {"verifier", "own"}
    assert one.outcome.winner == undisturbed.outcome.winner
    assert one.scores == undisturbed.scores, "as if the others were not there"
    assert np.array_equal(one.frames, undisturbed.frames)
    with pytest.raises(UserError, match="there is no verifier 'ear': choose among verifier, signals, own"):
        house.loop.run(runner.search(dataclasses.replace(REQUEST, verifiers={"ear": 1.0})))
    final = {"verifier/alignment", "verifier/motion", "verifier/clarity", "signals/flicker", "own/dark"}
    assert final <= set(record.scores)
    workers = {span.worker for span in record.outcome.spans if isinstance(span.work, ScoreWork)}
    assert {"verifier", "signals 1", "signals 2", "own"} <= workers
    assert set(record.outcome.verifiers) == {"verifier", "signals", "own"}
    assert record.outcome.verifiers["verifier"].spent.flops > record.outcome.verifiers["own"].spent.flops == 0
    assert 0 < record.outcome.mass["verifier"] <= 1
    assert set(report_json(record)["cost"]["verifiers"]) == {"verifier", "signals", "own"}


class Impatient:
    """A policy of one's own: the last of a few first units is continued, whatever the scores."""

    def __init__(self, layout: Layout, roots: int) -> None:
        self.layout = layout
        self.assessments = (Assessment.IMAGE,)
        self._roots = [(root,) for root in range(roots)]

    def start(self) -> Decision:
        path = self._roots[-1]
        later = [(*path, *(0,) * more) for more in range(1, self.layout.units)]
        samples = [SampleWork((each,), 0, self.layout.last_stage) for each in (*self._roots, *later)]
        works = (*samples, *(PanelWork(root, Assessment.IMAGE) for root in self._roots))
        return Decision(len(works), works, winner=later[-1])

    def judged(self, work: PanelWork, scores: Scores) -> Decision:
        return Decision(len(self._roots) + self.layout.units - 1 + len(self._roots))

    def speculative(self) -> tuple[()]:
        return ()


class ImpatientOptions(Config):
    roots: int = 2


def plan_impatiently(task: Task, options: ImpatientOptions) -> tuple[Impatient, Allotment]:
    layout = Layout(task.units, task.stages, given=task.given)
    return Impatient(layout, options.roots), Allotment(1, 1, 1)


IMPATIENT = PolicyEntry("impatient", "continues the last of a few first units", ImpatientOptions, plan_impatiently)


def test_a_policy_of_ones_own_needs_no_other_file(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Registered here, it is known to the command line, the endpoint's schema and the search."""
    monkeypatch.setattr(policies, "_POLICIES", dict(policies._POLICIES))
    policies.register(IMPATIENT)
    house.runner._search = SearchConfig(options={"impatient": {"roots": 3}})
    request = dataclasses.replace(REQUEST, policy="impatient")
    try:
        record = house.loop.run(house.runner.search(request))
    finally:
        house.runner._search = SearchConfig()
    assert record.outcome.winner == (2, 0, 0)
    assert "impatient: continues" in policy_help()
    config = ServeConfig(folder=tmp_path)
    with contextlib.closing(VideoStore(tmp_path)) as store:
        house_model = served(ModelFiles.read(ModelSource()), config.verifier)
        service = VideoService(store, [(house_model, house.runner)], config)
        assert "impatient" in json.dumps(build_app(service, config).openapi())


def test_what_cannot_stand_together_is_told_at_once(cluster: Cluster) -> None:
    """There is room for the generators alone, and for the verifier alone."""
    everything = int(ray.cluster_resources()["CPU"])
    runner = search_runner(generators=everything)
    says = rf"starting generators \({everything} actors\) and verifier .* needs {everything + 1} CPU, .* cannot hold"
    with pytest.raises(NoRoom, match=says):
        asyncio.run(runner.start())
    assert not runner.crew._groups


def test_a_cancelled_search_leaves_the_actors_usable(house: House, undisturbed: SearchRecord) -> None:
    async def cancelled() -> None:
        task = asyncio.create_task(house.runner.search(REQUEST, once(0.3, lambda: task.cancel())))
        with pytest.raises(asyncio.CancelledError):
            await task

    house.loop.run(cancelled())
    assert video(house.search()) == video(undisturbed)


def test_a_search_goes_on_where_it_was(house: House, undisturbed: SearchRecord, tmp_path: Path) -> None:
    async def interrupted() -> None:
        task = asyncio.create_task(house.runner.search(REQUEST, once(0.5, lambda: task.cancel()), tmp_path))
        with pytest.raises(asyncio.CancelledError):
            await task

    house.loop.run(interrupted())
    record = house.search(journal=tmp_path)
    assert record.outcome.restored > 3
    assert video(record) == video(undisturbed)
    with pytest.raises(UserError, match="journal of another search, its seed"):
        house.search(dataclasses.replace(REQUEST, seed=12), journal=tmp_path)


def test_without_a_search(house: House) -> None:
    record = house.search(dataclasses.replace(REQUEST, policy="none", budget=1.0))
    assert record.outcome.sampling.certain.flops == record.single.flops
    assert record.outcome.sampling.certain.nfe == record.single.nfe == 90
    assert record.scores == {}
    assert set(house.loop.run(house.runner.judge(record))) == {"alignment", "motion", "clarity"}


def test_a_video_that_starts_with_an_image(house: House, undisturbed: SearchRecord) -> None:
    import io

    from PIL import Image

    encoded = io.BytesIO()
    Image.fromarray(np.full((64, 64, 3), 200, np.uint8)).save(encoded, "PNG")
    record = house.search(dataclasses.replace(REQUEST, image=encoded.getvalue(), budget=2.0))
    assert record.frames.shape == (17, 64, 64, 3)
    assert record.outcome.winner[0] == 0
    assert np.array_equal(record.frames[0], record.shown[(0,)].frames[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"height": 60}, "width and height must be multiples of 64"),
        ({"prompt": " "}, "the prompt is empty"),
        ({"prompt": "a red 3 " * 100}, "shorten it"),
        ({"units": 99}, "this model makes 1 to 32"),
        ({"image": b"none"}, "the image is not a picture"),
        ({"budget": 0.5}, "smallest is 1x"),
    ],
)
def test_what_cannot_be_made_is_one_sentence(house: House, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        house.search(dataclasses.replace(REQUEST, **change))
    assert "\n" not in str(caught.value)


def test_killing_the_verifier_changes_nothing(house: House, undisturbed: SearchRecord) -> None:
    pid = house.pid("verifier")
    record = house.search(on_progress=once(0.4, lambda: os.kill(pid, signal.SIGKILL)))
    assert video(record) == video(undisturbed)
    assert house.pid("verifier") != pid
