"""Videos of a remote server: asked for once, whatever goes wrong on the way, given up on both sides, fitted."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response

from actors.adapted import AdaptedGenerator
from framegrove.config.base import ConfigError
from framegrove.config.generator import AdaptedSource
from framegrove.errors import UserError
from framegrove.flow.sampler import CancelledSampling
from framegrove.generators import videos_client
from framegrove.generators.finding import adapter_of
from framegrove.generators.protocol import Task, Wanted
from framegrove.generators.remote import Remote, _as_file
from framegrove.search.protocols import WorkFailed
from framegrove.types import GenerationRequest, GenerationResult, SampleWork, Sampling
from framegrove.types import Path as Branch
from tests.endpoint import endpoint
from tests.fakes import FakeRunner
from tests.video_server import FakeVideos, Server, film, serving

WANTED = Wanted("a red 3 moves left and right", seed=7, height=32, width=32, units=1, frames=9)
SMALL = {"width": 32, "height": 32, "frames": 9, "fps": 8, "patience": 20.0}


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(videos_client, "_PAUSES", (0.01, 0.05))
    monkeypatch.setattr(videos_client, "_POLL", (0.01, 0.01, 0.05))


@pytest.fixture
def fake() -> FakeVideos:
    return FakeVideos()


@pytest.fixture
def server(fake: FakeVideos) -> Iterator[Server]:
    with serving(fake.app()) as running:
        yield running


def remote(url: str, **options: Any) -> Remote:
    found = adapter_of(AdaptedSource(kind="remote", where=url, options={**SMALL, **options}))
    assert isinstance(found, Remote)
    return found


def made(
    generator: Remote, *paths: Branch, wanted: Wanted = WANTED, stop: Callable[[], bool] = lambda: False
) -> list[np.ndarray[Any, Any]]:
    tasks = [Task(wanted, path, ()) for path in paths or ((0,),)]
    steps: list[int] = []
    latents = generator.sample(tasks, range(1), stop, lambda: steps.append(1))
    assert len(steps) == 1
    assert all(latent.x.dtype == torch.uint8 for latent in latents)
    return generator.decode(tasks, latents)


def test_each_branch_has_a_video_of_its_own_seed_and_the_same_one_again() -> None:
    fake = FakeVideos(looks=2)
    with serving(fake.app()) as server:
        generator = remote(server.url, model="wan", fields={"quality": 3})
        two = made(generator, (0,), (1,))
        (again,) = made(remote(server.url + "/v1/", model="wan", fields={"quality": 3}), (1,))
    assert len(fake.asked) == 2, "another actor finds what was made"
    assert np.array_equal(two[1], again)
    assert all(clip.shape == (9, 32, 32, 3) for clip in two)
    first, second = fake.asked
    assert first["seed"] != second["seed"]
    assert first == {
        "model": "wan", "prompt": WANTED.prompt, "size": "32x32", "num_frames": "9", "fps": "8",
        "seed": first["seed"], "quality": "3",
    }  # fmt: skip


def test_what_a_request_sets_is_passed_on() -> None:
    fake = FakeVideos(film=lambda asked: film(3, 16))
    sampling = Sampling(steps=12, guidance=4.5, negative="blurry")
    wanted = Wanted(**{**vars(WANTED), "sampling": sampling, "image": b"picture"})
    with serving(fake.app()) as server:
        made(remote(server.url, length="seconds"), wanted=wanted)
    (asked,) = fake.asked
    assert (asked["seconds"], asked["negative_prompt"]) == ("2", "blurry")
    assert (asked["num_inference_steps"], asked["guidance_scale"]) == ("12", "4.5")
    assert asked["input_reference"] == "a file of 7 bytes"
    assert "num_frames" not in asked


def test_a_busy_server_is_asked_again_and_makes_one_video() -> None:
    busy = [
        Response(status_code=429, headers={"Retry-After": "0"}),
        JSONResponse({"error": {"message": "starting"}}, status_code=503, headers={"Retry-After": "soon"}),
        Response(status_code=502),
    ]
    fake = FakeVideos(faults=busy)
    with serving(fake.app()) as server:
        made(remote(server.url))
    assert fake.seen[:4] == ["POST /v1/videos"] * 4
    assert len(fake.asked) == 1


def test_a_server_that_dies_in_the_middle_goes_on_with_what_it_remembers() -> None:
    fake = FakeVideos(looks=10**6)
    with serving(fake.app()) as server:
        thread = threading.Thread(target=_dies, args=(fake, server))
        thread.start()
        (frames,) = made(remote(server.url))
        thread.join()
    assert len(fake.asked) == 1
    assert frames.shape == (9, 32, 32, 3)


def test_a_server_that_has_forgotten_a_video_is_asked_for_it_again() -> None:
    fake = FakeVideos(looks=10**6)

    def forget() -> None:
        fake.keys.clear()
        fake.videos.clear()

    with serving(fake.app()) as server:
        thread = threading.Thread(target=_dies, args=(fake, server, forget))
        thread.start()
        made(remote(server.url))
        thread.join()
    assert len(fake.asked) == 2
    assert fake.asked[0] == fake.asked[1]


def _dies(fake: FakeVideos, server: Server, meanwhile: Callable[[], None] = lambda: None) -> None:
    while len(fake.seen) < 4:
        time.sleep(0.01)
    server.stop()
    meanwhile()
    time.sleep(0.2)
    fake.looks = 1
    server.start()


def test_a_server_that_stays_away_fails_the_work_not_the_search() -> None:
    with serving(FakeVideos().app()) as server:
        url = server.url
    with pytest.raises(WorkFailed, match=rf"the video server at {url} has not answered for 0.3 seconds \(.*connect"):
        made(remote(url, patience=0.3))


def test_a_failed_video_is_asked_for_once_more_and_then_told_in_a_sentence() -> None:
    fake = FakeVideos(failing={1: "out of memory"})
    with serving(fake.app()) as server:
        made(remote(server.url))
        assert len(fake.asked) == 2
        fake.failing = dict.fromkeys(range(9), "the prompt\nwas refused")
        with pytest.raises(UserError) as failed:
            made(remote(server.url), (1,))
    assert str(failed.value) == f"the video server at {server.url} did not make the video: the prompt was refused"
    assert len(fake.asked) == 4


@pytest.mark.parametrize("can_cancel", [True, False])
def test_what_is_not_wanted_any_more_is_given_up_there_too(can_cancel: bool) -> None:
    fake = FakeVideos(looks=10**6, can_cancel=can_cancel)
    with serving(fake.app()) as server:
        with pytest.raises(CancelledSampling):
            made(remote(server.url), (0,), (1,), stop=lambda: len(fake.seen) > 4)
        assert fake.seen.count("POST /v1/videos") == 2
        assert not fake.videos
        fake.seen.clear()
        with pytest.raises(CancelledSampling):
            made(remote(server.url), stop=lambda: True)
        assert not fake.seen


@pytest.mark.parametrize(
    ("frames", "size", "fit", "sentence"),
    [
        (12, (64, 64), True, None),
        (8, (32, 32), True, None),  # its last frame is missing
        (5, (32, 32), True, "made a video of 5 frames at 8 a second, not 9: set options.frames and options.fps"),
        (9, (32, 32), False, None),
        (8, (32, 32), False, "made a video of 8 frames"),
        (9, (32, 48), False, "made a video of 48x32, not 32x32: ask for that size, or set options.fit"),
    ],
)
def test_videos_are_fitted_or_refused(
    server: Server, fake: FakeVideos, frames: int, size: tuple[int, int], fit: bool, sentence: str | None
) -> None:
    fake.film = lambda asked: film(3, frames, *size)
    if sentence is None:
        assert made(remote(server.url, fit=fit))[0].shape == (9, 32, 32, 3)
    else:
        with pytest.raises(UserError, match=f"the video server at {server.url} {sentence}"):
            made(remote(server.url, fit=fit))


def test_files_that_are_no_videos_are_refused(server: Server, fake: FakeVideos) -> None:
    fake.film = lambda asked: b"no video"
    with pytest.raises(UserError, match="sent a file that cannot be read as a video"):
        made(remote(server.url))
    fake.film = lambda asked: b"0" * 10**6 + b"1"
    with pytest.raises(UserError, match=r"sends more than 1,000,000 bytes: raise options\.most_mb"):
        made(remote(server.url, most_mb=1))


def test_what_the_server_refuses_is_passed_on_in_its_words(server: Server, fake: FakeVideos) -> None:
    for answer, sentence in (
        (JSONResponse({"error": {"message": "no such model"}}, 404), "refuses the request, with status 404: no such"),
        (JSONResponse({"detail": "seed is unknown"}, 422), "refuses the request, with status 422: seed is unknown"),
        (Response("<html>hello</html>"), "does not answer in the shape of the OpenAI Videos API: <html>hello</html>"),
    ):
        fake.faults = [answer]
        with pytest.raises(UserError, match=sentence):
            made(remote(server.url))


@pytest.mark.parametrize("able", [True, False])
def test_packed_works_are_done_side_by_side(server: Server, fake: FakeVideos, able: bool) -> None:
    """Each has its own end: one that is cancelled, or fails, does not keep, or repeat, the others."""
    fake.looks, fake.failing = 10**6 if able else 1, {} if able else dict.fromkeys((2, 3), "refused")
    source = AdaptedSource(kind="remote", where=server.url, options=SMALL)
    generator = AdaptedGenerator(source, pack=2)

    def sample(number: int) -> Any:
        work = SampleWork(((number,),), 0, 0)
        return generator.sample(number, work, WANTED, 0, None)

    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(sample, 1)
        _until(lambda: len(fake.asked) == 1)
        second = threads.submit(sample, 2)
        if able:
            _until(lambda: len(fake.asked) == 2)
            generator.cancel(2)
            assert not second.result(20)[0].whole
            fake.looks = 1
        else:
            with pytest.raises(UserError, match="refused"):
                second.result(20)
        assert first.result(20)[0].whole
    assert len(fake.asked) == (2 if able else 3), "the one that fails is asked for twice"


def _until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


@contextlib.contextmanager
def this_endpoint(folder: Path, runner: FakeRunner) -> Iterator[Server]:
    """An endpoint of this project, behind a server."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with endpoint(folder, runner) as running:
            app.mount("/", running.app)
            yield

    with serving(FastAPI(lifespan=lifespan)) as server:
        yield server


def test_a_video_that_was_given_up_can_be_wanted_again(tmp_path: Path) -> None:
    runner, wanted = FilmRunner(), Wanted(**{**vars(WANTED), "height": 64, "width": 64})
    with this_endpoint(tmp_path, runner) as server:
        generator = remote(server.url, width=64, height=64, model="digits", attempts=1)
        for _ in range(2):
            runner.gate.clear()
            with pytest.raises(CancelledSampling):
                made(generator, wanted=wanted, stop=lambda: runner.running > 0)
        runner.gate.set()
        made(generator, wanted=wanted)


def test_pictures_have_a_type_that_servers_know() -> None:
    for picture, kind in ((b"\xff\xd8\xff", "jpeg"), (b"\x89PNG", "png"), (b"RIFF1234WEBPVP8 ", "webp")):
        assert _as_file(picture) == (f"picture.{kind}", picture, f"image/{kind}")


def test_options_are_checked_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    for options, sentence in (
        ({"frmaes": 3}, "unknown key 'frmaes', did you mean 'frames'"),
        ({"key": "NO_SUCH_KEY"}, "the environment variable NO_SUCH_KEY is not set"),
        ({"length": "minutes"}, "options: length must be 'num_frames' or 'seconds'"),
        ({"fields": {"seed": 3}}, "fields must not hold seed: a request says that itself"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            remote("http://localhost:1", **options)
    with pytest.raises(ConfigError, match="must be the server's URL"):
        remote("localhost:8000")
    monkeypatch.setenv("NO_SUCH_KEY", "secret")
    generator = remote("http://localhost:1", key="NO_SUCH_KEY", flops=5)
    assert "secret" not in str(generator.identity())
    assert generator.price(WANTED)[0].step_flops == (5,)
    assert AdaptedSource(kind="remote", where="http://localhost:8000/v1").called == "localhost:8000"


class FilmRunner(FakeRunner):
    """Makes videos that can be played."""

    async def run(self, request: GenerationRequest, on_progress: Any, on_live: Any) -> GenerationResult:
        result = await super().run(request, on_progress, on_live)
        return GenerationResult(film(request.seed, request.frames or 9, 64, 64), result.report, result.files)


def test_an_endpoint_of_this_project_is_such_a_server(tmp_path: Path) -> None:
    runner, wanted = FilmRunner(), Wanted(**{**vars(WANTED), "height": 64, "width": 64})
    with this_endpoint(tmp_path, runner) as server:
        generator = remote(server.url, width=64, height=64, model="digits")
        (frames,) = made(generator, wanted=wanted)
        made(generator, wanted=wanted)
        assert len(runner.asked) == 1
        runner.gate.clear()
        with pytest.raises(CancelledSampling):
            made(generator, (1,), wanted=wanted, stop=lambda: runner.running > 0)
        deadline = time.monotonic() + 20
        while runner.running and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not runner.running, "given up on the server"
    (asked, _) = runner.asked
    assert frames.shape == (9, 64, 64, 3)
    assert (asked.prompt, asked.frames, asked.seed) == (
        WANTED.prompt,
        9,
        generator.fields(Task(wanted, (0,), ()))["seed"],
    )
