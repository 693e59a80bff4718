"""Searches over a cache in this process: what is there is not computed again, and time is that of the counted work."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from actors.generator import Context, Generator
from actors.local_generators import Speeds
from actors.local_pools import LocalCrew, LocalPyramidPool, LocalVerifierPool
from actors.local_verifiers import HostedVerifier
from actors.searches import SearchRunner
from framegrove.config.model import ModelSource
from framegrove.config.search import SearchConfig
from framegrove.config.verifier import VerifierConfig
from framegrove.errors import UserError
from framegrove.evaluation.branch_cache import BranchCache
from framegrove.evaluation.report import SearchRecord, busy_seconds, report_json, warnings_of
from framegrove.evaluation.virtual_time import run_virtual
from framegrove.lineage import mutation_of, sibling
from framegrove.search.result import Ending, Fate
from framegrove.search.tree import Latent
from framegrove.types import Assessment, Cost, GenerationRequest, SampleWork, Scored, ScoreWork
from framegrove.verification.callables import CallableVerifier
from tests.tiny import save_tiny

REQUEST = GenerationRequest(
    "a red 3 moves left and right", seed=11, units=3, height=64, width=64, budget=4.0, policy="tof"
)
SPEEDS = Speeds(generator=1e7)


def darkness(frames: np.ndarray, prompt: str) -> dict[str, float]:
    """A verifier of one's own."""
    return {"dark": 1 - float(frames.mean()) / 255}


DARKNESS = VerifierConfig(name="own", kind="callable", function="tests.unit.test_local:darkness")


class Slow(CallableVerifier):
    """A verifier whose verdicts cost something."""

    async def score(self, work: ScoreWork, prompt: str, *units: Any) -> Scored:
        scored = await super().score(work, prompt, *units)
        return dataclasses.replace(scored, cost=Cost(flops=2_000_000, seconds=123.0))


class Absent:
    """Nobody who could be asked: everything is in the cache."""

    def __init__(self, *given: Any) -> None:
        raise AssertionError("a model was loaded although everything was there")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    return ModelSource(name=str(save_tiny(tmp_path_factory.mktemp("model") / "tiny")))


@pytest.fixture(scope="module")
def recorded(model: ModelSource, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SearchRecord]:
    """A cache with one search in it."""
    folder = tmp_path_factory.mktemp("cache")
    record, added = search(folder, model)
    assert added["units"] > 0
    assert added["verdicts"] > 0
    return folder, record


def search(
    folder: Path,
    model: ModelSource,
    request: GenerationRequest = REQUEST,
    *,
    verifier: VerifierConfig = DARKNESS,
    generators: int = 2,
    worker: Any = Generator,
    judge: Any = Slow,
    look: Callable[[SearchRunner, SearchRecord], None] = lambda runner, record: None,
    **settings: Any,
) -> tuple[SearchRecord, dict[str, int]]:
    with BranchCache(folder) as cache:
        verifiers = [LocalVerifierPool(cache, verifier, worker=judge, speeds=SPEEDS)]
        pool = LocalPyramidPool(cache, model, generators, worker=worker, speeds=SPEEDS)
        runner = SearchRunner(pool, verifiers, SearchConfig(**settings), crew=LocalCrew(verifiers))

        async def searched() -> SearchRecord:
            try:
                return await runner.search(request)
            finally:
                await runner.close()

        record = run_virtual(searched())
        look(runner, record)
        return dataclasses.replace(record, shown=dict(record.shown)), dict(cache.added)


def told(record: SearchRecord) -> Any:
    """Everything that does not depend on timing: what is sampled in advance does."""
    outcome = record.outcome
    nodes = [
        (node.path, node.fate, node.dropped_by, node.judgements)
        for node in outcome.nodes
        if node.fate is not Fate.SPECULATIVE
    ]
    there = {name: costs for name, costs in outcome.verifiers.items() if name not in outcome.left_out}
    certain = {name: costs.certain for name, costs in there.items()}
    return outcome.winner, nodes, outcome.certain, outcome.sampling.certain.flops, outcome.sampling.certain.nfe, certain


def test_a_replay_is_the_search_and_needs_no_model(recorded: tuple[Path, SearchRecord], model: ModelSource) -> None:
    folder, first = recorded
    again, added = search(folder, model, worker=Absent, judge=Absent)
    assert added == {}
    assert told(again) == told(first)
    assert again.outcome.nodes == first.outcome.nodes  # virtual time too
    assert again.outcome.spans == first.outcome.spans
    assert again.outcome.sampling == first.outcome.sampling
    assert np.array_equal(again.frames, first.frames)


def test_a_branch_is_what_a_generator_makes_of_it(recorded: tuple[Path, SearchRecord], model: ModelSource) -> None:
    _, record = recorded
    generator, context = Generator(model), Context(REQUEST.prompt, "", REQUEST.seed, 64, 64, REQUEST.units)
    latents, state, frames = [], None, []
    for depth in range(REQUEST.units):
        work = SampleWork((record.outcome.winner[: depth + 1],), 0, 2)
        _, latent, shown, state, _ = generator.sample(0, work, context, depth, state, *latents)
        latents.append(latent)
        frames.append(shown)
    difference = np.abs(record.frames.astype(int) - np.concatenate(frames))
    assert difference.max() <= 1  # siblings were denoised in step, which rounds otherwise
    assert record.outcome.sampling.certain.nfe >= record.single.nfe


def test_only_what_is_missing_is_computed(recorded: tuple[Path, SearchRecord], model: ModelSource) -> None:
    folder, first = recorded
    wider = dataclasses.replace(REQUEST, budget=6.0)
    record, added = search(folder, model, wider)
    known = {node.path for node in first.outcome.nodes}
    new = [node for node in record.outcome.nodes if node.path not in known]
    assert 0 < len(new) <= added["units"] < sum(len(s.work.paths) for s in sampling(record))
    _, more = search(folder, model, wider, worker=Absent, judge=Absent)
    assert more == {}


def test_another_verifier_asks_for_no_sampling(recorded: tuple[Path, SearchRecord], model: ModelSource) -> None:
    folder, first = recorded
    other = VerifierConfig(name="signals", kind="signals", judges=tuple(Assessment))
    request = dataclasses.replace(REQUEST, policy="linear", budget=2.0)
    search(folder, model, request)
    _, added = search(folder, model, request, verifier=other, judge=None, worker=Absent)
    assert set(added) == {"verdicts"}
    renamed = DARKNESS.model_copy(update={"name": "other", "weight": 3.0})
    record, added = search(folder, model, verifier=renamed, worker=Absent, judge=Absent)
    assert added == {}, "what a verdict is called and how it counts does not change it"
    assert record.outcome.winner == first.outcome.winner


def test_prices_are_kept_by_the_lengths_of_units(tmp_path: Path) -> None:
    asked = []

    class Priced(Slow):
        async def price(self, prompt: str, lengths: Any, height: int, width: int) -> dict[Assessment, tuple[int, ...]]:
            asked.append(tuple(lengths))
            return {Assessment.FINAL: tuple(lengths)}

    async def unasked(method: Any) -> Any:
        raise AssertionError("there is no actor")

    with BranchCache(tmp_path) as cache:
        pool = LocalVerifierPool(cache, DARKNESS, worker=Priced)
        for lengths in ((1, 8, 8), (5, 12, 12), (1, 8, 8)):
            found = asyncio.run(pool.prices(REQUEST, "a kite", lengths, unasked))
            assert found == {Assessment.FINAL: lengths}
        pool.close()
    assert asked == [(1, 8, 8), (5, 12, 12)]


def test_time_is_that_of_the_counted_work(recorded: tuple[Path, SearchRecord], model: ModelSource) -> None:
    folder, two = recorded
    spans = sampling(two)
    for span in spans:
        assert span.end - span.start == pytest.approx(SPEEDS.sampling(span.cost))
        assert span.cost.seconds == pytest.approx(span.end - span.start)
    judged = [span for span in two.outcome.spans if isinstance(span.work, ScoreWork)]
    assert busy_seconds(judged) == pytest.approx(len(judged) * SPEEDS.judging(Cost(flops=2_000_000)))
    one, _ = search(folder, model, generators=1)
    assert one.outcome.seconds > two.outcome.seconds
    assert told(one) == told(two)
    assert one.outcome.overlap > 0


def test_a_request_may_say_how_long_it_is_searched_for(recorded: tuple[Path, SearchRecord], model: ModelSource) -> None:
    folder, whole = recorded
    hurried, _ = search(folder, model, dataclasses.replace(REQUEST, within=whole.outcome.seconds / 2))
    assert hurried.outcome.hurried
    assert not whole.outcome.hurried
    assert hurried.outcome.seconds < whole.outcome.seconds
    assert len(hurried.outcome.winner) == REQUEST.units


def test_what_is_cancelled_costs_its_steps_and_computes_nothing(model: ModelSource, tmp_path: Path) -> None:
    record, added = search(tmp_path, model, generators=6)
    cancelled = [span for span in sampling(record) if span.ending is Ending.CANCELLED]
    assert cancelled
    for span in cancelled:
        assert span.end - span.start == pytest.approx(SPEEDS.sampling(span.cost))
        assert span.cost.decoding == 0
        assert span.cost.nfe % len(span.work.paths) == 0
    done = [span for span in sampling(record) if span.ending is Ending.DONE]
    assert added["units"] == sum(len(span.work.paths) for span in done)


def test_the_winner_is_judged_without_a_search(model: ModelSource, tmp_path: Path) -> None:
    def look(runner: SearchRunner, record: SearchRecord) -> None:
        assert record.scores == {}
        assert run_virtual(runner.judge(record)) == {"dark": darkness(record.frames, "")["dark"]}

    search(tmp_path, model, dataclasses.replace(REQUEST, policy="single", budget=1.0), look=look)


def test_a_given_image_is_kept_too(model: ModelSource, tmp_path: Path) -> None:
    import io

    from PIL import Image

    encoded = io.BytesIO()
    Image.fromarray(np.full((64, 64, 3), 200, np.uint8)).save(encoded, "PNG")
    request = dataclasses.replace(REQUEST, image=encoded.getvalue(), budget=2.0)
    first, _ = search(tmp_path, model, request)
    again, added = search(tmp_path, model, request, worker=Absent, judge=Absent)
    assert added == {}
    assert np.array_equal(again.frames, first.frames)
    assert told(again) == told(first)


def test_what_a_verifier_raises_comes_through(model: ModelSource, tmp_path: Path) -> None:
    absent = VerifierConfig(name="own", kind="callable", function="nowhere:at_all")
    with pytest.raises(UserError, match="own"):
        search(tmp_path, model, verifier=absent, judge=None)


def test_searches_at_the_same_time_share_the_workers_and_find_what_each_finds_alone(
    recorded: tuple[Path, SearchRecord], model: ModelSource
) -> None:
    folder, alone = recorded
    other = dataclasses.replace(REQUEST, policy="linear", budget=3.0)
    other_alone, _ = search(folder, model, other)
    with BranchCache(folder) as cache:
        verifiers = [LocalVerifierPool(cache, DARKNESS, worker=Slow, speeds=SPEEDS)]
        pool = LocalPyramidPool(cache, model, 2, speeds=SPEEDS)
        runner = SearchRunner(pool, verifiers, crew=LocalCrew(verifiers))

        async def both() -> list[SearchRecord]:
            return await asyncio.gather(runner.search(REQUEST), runner.search(other))

        together = run_virtual(both())
    assert [told(record) for record in together] == [told(alone), told(other_alone)]
    spans = [span for record in together for span in record.outcome.spans]
    for worker in ("generator 1", "generator 2"):
        times = sorted((span.start, span.end) for span in spans if span.worker == worker)
        assert all(end <= start + 1e-9 for (_, end), (start, _) in itertools.pairwise(times))
    judged = [span for span in spans if isinstance(span.work, ScoreWork)]
    assert busy_seconds(judged) == pytest.approx(len(judged) * SPEEDS.judging(Cost(flops=2_000_000)))
    makespan = max(record.outcome.seconds for record in together)
    assert makespan < 0.95 * (alone.outcome.seconds + other_alone.outcome.seconds)


def test_searches_on_workers_of_their_own_are_sampled_together(
    recorded: tuple[Path, SearchRecord], model: ModelSource, tmp_path: Path
) -> None:
    """What each of them finds, and when, is as alone; two searches of one prompt sample nothing twice."""
    _, alone = recorded
    packs: list[int] = []

    class Counting(Generator):
        def sample_together(self, jobs: Any) -> Any:
            packs.append(len(jobs))
            return super().sample_together(jobs)

    others = [dataclasses.replace(REQUEST, seed=seed) for seed in (12, 13)]
    with BranchCache(tmp_path) as cache:
        verifiers = [LocalVerifierPool(cache, DARKNESS, worker=Slow, speeds=SPEEDS)]
        pool = LocalPyramidPool(cache, model, 2, pack=6, worker=Counting, speeds=SPEEDS)

        async def all_of_them() -> list[SearchRecord]:
            config = SearchConfig(speculate="off")
            runners = [SearchRunner(pool, verifiers, config, crew=LocalCrew(verifiers)) for _ in range(4)]
            requests = (REQUEST, *others, REQUEST)
            return await asyncio.gather(*(one.search(each) for one, each in zip(runners, requests, strict=True)))

        together = run_virtual(all_of_them())
        units = cache.added["units"]
    off, _ = search(recorded[0], model, speculate="off")
    assert told(together[0])[:3] == told(off)[:3] == told(together[3])[:3]
    assert told(off)[0] == told(alone)[0]
    assert [record.outcome.spans for record in together[:1]] == [together[3].outcome.spans]
    assert [span.end for span in together[0].outcome.spans] == pytest.approx([s.end for s in off.outcome.spans])
    assert units == sum(len(span.work.paths) for record in together[:3] for span in sampling(record))
    assert max(packs) == 6
    assert sum(packs) > 2 * len(packs)


def sampling(record: SearchRecord) -> list[Any]:
    return [span for span in record.outcome.spans if isinstance(span.work, SampleWork)]


@pytest.mark.parametrize("fails", ["frames", "keep"])
def test_nobody_is_left_waiting_where_frames_cannot_be_read_or_a_verdict_not_kept(fails: str) -> None:
    class Ground:
        number = 0

        def verdict(self, *asked: object) -> None:
            return None

        def keep_verdict(self, *said: object) -> None:
            raise OSError("no room")

    class Unit:
        ground, branch = Ground(), Latent((0,), 2)

        @property
        def frames(self) -> str:
            if fails == "frames":
                raise OSError("no room")
            return "frames"

    class Judge:
        def __init__(self, config: object) -> None:
            pass

        async def ready(self) -> None:
            pass

        async def score(self, work: ScoreWork, prompt: str, *frames: str) -> Scored:
            return Scored(work, (("a", 0.5),), Cost())

        def close(self) -> None:
            pass

    async def main() -> None:
        hosted = HostedVerifier(DARKNESS, Judge, 0)
        work = ScoreWork((0,), Assessment.IMAGE, "darkness")
        with pytest.raises(OSError, match="no room"):
            await asyncio.wait_for(hosted.score(work, "a red 3", [Unit()]), 10)  # type: ignore[list-item]
        hosted.close()

    asyncio.run(main())


def moody(frames: np.ndarray, prompt: str) -> float:
    """A verifier that sometimes answers what is no score."""
    return 7.0 if len(frames) > 10 else 0.5


@pytest.mark.parametrize("leave_out", [True, False])
def test_a_verifier_that_answers_rubbish_is_named_and_left_out_if_that_is_wanted(
    recorded: tuple[Path, SearchRecord], model: ModelSource, leave_out: bool
) -> None:
    folder, alone = recorded
    rubbish = VerifierConfig(name="moody", kind="callable", function="tests.unit.test_local:moody")
    with BranchCache(folder) as cache:
        verifiers = [
            LocalVerifierPool(cache, each, worker=judge, speeds=SPEEDS)
            for each, judge in ((DARKNESS, Slow), (rubbish, CallableVerifier))
        ]
        pool = LocalPyramidPool(cache, model, 2, speeds=SPEEDS)
        runner = SearchRunner(pool, verifiers, SearchConfig(leave_out=leave_out), crew=LocalCrew(verifiers))
        if not leave_out:
            with pytest.raises(UserError, match=r"verifier moody .* returned 7.0"):
                run_virtual(runner.search(REQUEST))
            return
        record = run_virtual(runner.search(REQUEST))
        assert told(record) == told(alone)  # as if it had never been there
        assert list(record.outcome.left_out) == ["moody"]
        assert "moody" in report_json(record)["cost"]["verifiers"]  # what it has cost is no secret
        (warning,) = (each for each in warnings_of(record) if "left out" in each)
        assert "the verifier moody was left out, and the others have judged alone: verifier moody" in warning


def test_an_evolved_search_is_the_same_again_and_its_mutants_are_branches_of_their_own(
    model: ModelSource, tmp_path: Path
) -> None:
    evolve = {"population": 2, "generations": 3, "accept": 0.99, "strength": 0.3, "jump_strength": 0.3}
    request = dataclasses.replace(REQUEST, policy="evo", units=2, budget=8.0)
    off: dict[str, Any] = {"speculate": "off", "options": {"evo": evolve}}
    units: dict[tuple[int, ...], torch.Tensor] = {}

    def look(runner: SearchRunner, record: SearchRecord) -> None:
        ground = next(iter(record.outcome.handles.values())).ground
        units.update({node.path: ground.latent(Latent(node.path, 2)) for node in record.outcome.nodes})

    first, added = search(tmp_path, model, request, look=look, **off)
    assert len(units) == added["units"] == 12  # two units, three generations of two
    pairs = [(path, sibling(path, found)) for path in units if (found := mutation_of(path[-1])) is not None]
    assert [len(path) for path, _ in pairs].count(2) == 4

    def distance(one: tuple[int, ...], other: tuple[int, ...]) -> float:
        return float((units[one] - units[other]).norm())

    parent = first.outcome.winner[:1]
    fresh = {1: distance((0,), (1,)), 2: distance((*parent, 0), (*parent, 1))}
    for path, mutated_from in pairs:
        assert 0 < distance(path, mutated_from) < fresh[len(path)]
    path = next(path for path, _ in pairs if len(path) == 1)
    alone = Generator(model).sample(0, SampleWork((path,), 0, 2), Context(request.prompt, "", 11, 64, 64, 2), 0, None)
    torch.testing.assert_close(
        alone[1].x, units[path], atol=1e-3, rtol=1e-3
    )  # denoised in step, which rounds otherwise

    again, more = search(tmp_path, model, request, worker=Absent, judge=Absent, **off)
    assert more == {}
    assert told(again) == told(first)
    elsewhere, _ = search(tmp_path / "elsewhere", model, request, generators=3, options={"evo": evolve})
    assert told(elsewhere) == told(first)
    assert np.array_equal(elsewhere.frames, first.frames)
