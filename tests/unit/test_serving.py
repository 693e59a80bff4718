"""The endpoint over a fake search: what goes over the wire, in good and in bad cases, without Ray."""

from __future__ import annotations

import asyncio
import base64
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from framegrove.config.flow import latent_size
from framegrove.config.serve import ServeConfig
from framegrove.errors import UserError
from framegrove.serving import service
from framegrove.serving.service import ServedModel, VideoService
from framegrove.serving.store import VideoStore
from framegrove.serving.web import build_app
from tests.fakes import FakeRunner
from tests.tiny import digits_recipe

DIGITS = {"stages": 3, "patch": 2, "factor": 8}
PROMPT = "a red 3 moves left and right"


@dataclass
class Endpoint:
    client: httpx.AsyncClient
    runner: FakeRunner
    store: VideoStore
    service: VideoService

    async def post(self, **fields: Any) -> httpx.Response:
        return await self.client.post("/v1/videos", json=fields)

    async def video(self, video_id: str) -> dict[str, Any]:
        answer = await self.client.get(f"/v1/videos/{video_id}")
        assert answer.status_code == 200, answer.text
        body: dict[str, Any] = answer.json()
        return body

    async def until(self, video_id: str, status: str, progress: int = 0) -> dict[str, Any]:
        for _ in range(500):
            video = await self.video(video_id)
            if video["status"] == status and video["progress"] >= progress:
                return video
            await asyncio.sleep(0.01)
        raise AssertionError(f"{video_id} never was {status}, it is {video}")


@asynccontextmanager
async def endpoint(folder: Path, runner: FakeRunner | None = None, **settings: Any) -> AsyncIterator[Endpoint]:
    runner = runner or FakeRunner()
    limits = ServeConfig(folder=folder, most_units=8, **settings)
    store = VideoStore(folder)
    model = ServedModel("digits", digits_recipe(), lambda asked: latent_size(asked.height, asked.width, **DIGITS))
    videos = VideoService(store, runner, model, limits)
    app = build_app(videos)
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://endpoint") as client,
    ):
        yield Endpoint(client, runner, store, videos)


def serving(folder: Path, scene: Callable[[Endpoint], Awaitable[None]], **options: Any) -> None:
    async def play() -> None:
        async with endpoint(folder, **options) as running:
            await scene(running)

    asyncio.run(play())


def test_a_video_from_its_request_to_its_file(tmp_path: Path) -> None:
    async def scene(running: Endpoint) -> None:
        running.runner.gate.clear()
        answer = await running.post(
            prompt=f"  {PROMPT} ", seconds="3", size="64x64", seed=7, search={"policy": "linear", "budget": "2x"}
        )
        assert answer.status_code == 200
        video = answer.json()
        assert video["id"].startswith("video_")
        assert (video["object"], video["status"], video["progress"]) == ("video", "queued", 0)
        assert (video["seconds"], video["size"], video["seed"]) == ("3", "64x64", 7)
        assert video["search"] == {"policy": "linear", "budget": "2x"}

        await running.until(video["id"], "in_progress", progress=80)
        early = await running.client.get(f"/v1/videos/{video['id']}/content")
        assert early.status_code == 409

        running.runner.gate.set()
        done = await running.until(video["id"], "completed")
        assert done["progress"] == 100
        assert done["completed_at"] >= done["created_at"]
        content = await running.client.get(f"/v1/videos/{video['id']}/content")
        assert content.headers["content-type"] == "video/mp4"
        assert content.content == f"{PROMPT} from 7".encode()
        (asked,) = running.runner.asked
        assert (asked.units, asked.height, asked.width, asked.budget) == (4, 64, 64, 2.0)

    serving(tmp_path, scene)


def test_what_is_left_out_is_the_models_own(tmp_path: Path) -> None:
    async def scene(running: Endpoint) -> None:
        first, second = [(await running.post(prompt=PROMPT)).json() for _ in range(2)]
        assert (first["seconds"], first["size"], first["model"]) == ("3.125", "64x64", "digits")
        assert first["search"] == {"policy": "tof", "budget": "4x"}
        assert first["seed"] != second["seed"]
        await running.until(second["id"], "completed")
        assert running.runner.asked[0].units == 4

    serving(tmp_path, scene)


@pytest.mark.parametrize(
    ("fields", "status", "sentence"),
    [
        ({}, 400, "the field prompt is missing"),
        ({"prompt": "  "}, 400, "the prompt is empty"),
        ({"prompt": "x" * 20_000}, 400, "20,000 characters"),
        ({"prompt": 3}, 400, "prompt: input should be a valid string"),
        ({"prompt": PROMPT, "length": 3}, 400, "unknown field length, allowed are prompt, model"),
        ({"prompt": PROMPT, "search": {"width": 2}}, 400, "unknown field search.width, allowed are policy, budget"),
        ({"prompt": PROMPT, "size": "64"}, 400, "not of the form WIDTHxHEIGHT"),
        ({"prompt": PROMPT, "size": "70x64"}, 400, "multiples of 64"),
        ({"prompt": PROMPT, "seconds": "forever"}, 400, "not a number of seconds"),
        ({"prompt": PROMPT, "seconds": "nan"}, 400, "more than 0 seconds"),
        ({"prompt": PROMPT, "seconds": 60}, 400, "ask for at most 7.125"),
        ({"prompt": PROMPT, "seed": -1}, 400, "seed: input should be greater than or equal to 0"),
        (
            {"prompt": PROMPT, "search": {"policy": "dfs"}},
            400,
            "search.policy: input should be 'tof', 'linear' or 'none'",
        ),
        ({"prompt": PROMPT, "search": {"budget": "lots"}}, 400, "a budget is a number"),
        ({"prompt": PROMPT, "search": {"budget": "1000x"}}, 400, "more than the 64x allowed"),
        ({"prompt": PROMPT, "model": "sora-2"}, 404, "it is called digits"),
        ({"prompt": PROMPT, "input_reference": {"image_url": "http://elsewhere/a.png"}}, 400, "not fetched"),
        ({"prompt": PROMPT, "input_reference": {"image_url": "data:image/png;base64,%%"}}, 400, "not valid base64"),
    ],
)
def test_a_bad_request_is_told_in_one_sentence(
    tmp_path: Path, fields: dict[str, Any], status: int, sentence: str
) -> None:
    async def scene(running: Endpoint) -> None:
        answer = await running.post(**fields)
        message = answer.json()["error"]["message"]
        assert (answer.status_code, sentence in message) == (status, True), answer.text
        assert "\n" not in message
        assert not running.runner.asked

    serving(tmp_path, scene)


@pytest.mark.parametrize("body", ["", "{", "[1]", "[" * 100_000, "\x00"])
def test_a_body_that_is_no_object_is_refused(tmp_path: Path, body: str) -> None:
    async def scene(running: Endpoint) -> None:
        answer = await running.client.post("/v1/videos", content=body)
        assert answer.status_code == 400
        assert answer.json()["error"]["type"] == "invalid_request_error"

    serving(tmp_path, scene)


def test_an_endless_body_is_cut_off(tmp_path: Path) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield b" " * 2**20

    async def scene(running: Endpoint) -> None:
        answer = await running.client.post("/v1/videos", content=endless())
        assert answer.status_code == 413

    serving(tmp_path, scene)


def test_unknown_videos_and_routes_answer_404(tmp_path: Path) -> None:
    async def scene(running: Endpoint) -> None:
        for path in ("/v1/videos/video_0", "/v1/videos/video_0/content", "/v1/images"):
            answer = await running.client.get(path)
            assert answer.status_code == 404
            assert answer.json()["error"]["message"]

    serving(tmp_path, scene)


def test_a_form_with_an_image_is_as_good_as_json(tmp_path: Path) -> None:
    async def scene(running: Endpoint) -> None:
        form = {"prompt": PROMPT, "seconds": "2", "seed": "5", "search[budget]": "2x"}
        picture = {"input_reference": ("frame.png", b"a picture", "image/png")}
        video = (await running.client.post("/v1/videos", data=form, files=picture)).json()
        await running.until(video["id"], "completed")
        (asked,) = running.runner.asked
        assert (asked.image, asked.seed, asked.budget, asked.units) == (b"a picture", 5, 2.0, 3)

    serving(tmp_path, scene)


def test_an_image_comes_as_a_data_url_too(tmp_path: Path) -> None:
    async def scene(running: Endpoint) -> None:
        url = f"data:image/png;base64,{base64.b64encode(b'a picture').decode()}"
        video = (await running.post(prompt=PROMPT, input_reference={"image_url": url})).json()
        await running.until(video["id"], "completed")
        assert running.runner.asked[0].image == b"a picture"

    serving(tmp_path, scene)


def test_a_failure_is_told_and_the_next_video_is_made(tmp_path: Path) -> None:
    async def scene(running: Endpoint) -> None:
        running.runner.failure = UserError("the model cannot do this: ask for less")
        refused = (await running.post(prompt=PROMPT)).json()
        failed = await running.until(refused["id"], "failed")
        assert failed["error"] == {"code": "invalid_request", "message": "the model cannot do this: ask for less"}
        assert (await running.client.get(f"/v1/videos/{refused['id']}/content")).status_code == 409

        running.runner.failure = RuntimeError("a device\nis gone")
        broken = (await running.post(prompt=PROMPT)).json()
        failed = await running.until(broken["id"], "failed")
        assert failed["error"]["message"] == "the video could not be made: a device is gone"

        running.runner.failure = None
        fine = (await running.post(prompt=PROMPT)).json()
        await running.until(fine["id"], "completed")
        assert running.runner.closed == 1  # after what was nobody's mistake: the next video got new actors

    serving(tmp_path, scene)


def test_too_many_waiting_videos_are_turned_away(tmp_path: Path) -> None:
    async def scene(running: Endpoint) -> None:
        running.runner.gate.clear()
        first = (await running.post(prompt=PROMPT)).json()
        await running.until(first["id"], "in_progress")
        assert (await running.post(prompt=PROMPT)).status_code == 200
        full = await running.post(prompt=PROMPT)
        assert (full.status_code, full.headers["retry-after"]) == (429, "10")
        running.runner.gate.set()

    serving(tmp_path, scene, waiting=1)


def test_a_new_process_finishes_what_the_last_one_left(tmp_path: Path) -> None:
    async def play() -> None:
        async with endpoint(tmp_path) as before:
            before.runner.gate.clear()
            interrupted, queued = [(await before.post(prompt=PROMPT, seed=seed)).json() for seed in (1, 2)]
            await before.until(interrupted["id"], "in_progress")
        assert before.runner.closed == 1
        async with endpoint(tmp_path) as after:
            for video in (interrupted, queued):
                done = await after.until(video["id"], "completed")
                assert done["seed"] == video["seed"]
            assert [asked.seed for asked in after.runner.asked] == [1, 2]

    asyncio.run(play())


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "PAUSES", (0.01, 0.02))


async def noted(caplog: pytest.LogCaptureFixture, text: str, times: int = 1) -> None:
    for _ in range(500):
        if caplog.text.count(text) >= times:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"{text!r} was never logged: {caplog.text}")


@pytest.mark.usefixtures("short_pauses")
def test_what_waits_outlasts_a_cluster_without_room(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scene(running: Endpoint) -> None:
        videos = [(await running.post(prompt=PROMPT, seed=seed)).json() for seed in (1, 2)]
        await noted(caplog, "trying again in 0.02 s", times=3)
        assert "trying again in 0.01 s" in caplog.text
        assert "other work still holds the cluster" in caplog.text
        assert [(await running.video(video["id"]))["status"] for video in videos] == ["queued", "queued"]
        running.runner.no_start = None
        for video in videos:
            await running.until(video["id"], "completed")
        assert [asked.seed for asked in running.runner.asked] == [1, 2]

    serving(tmp_path, scene, runner=FakeRunner(no_start=UserError("other work still holds the cluster")))


def test_an_endpoint_that_waits_for_its_cluster_ends_when_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def play() -> None:
        async with endpoint(tmp_path, FakeRunner(no_start=ValueError("no cluster answers"))) as before:
            video = (await before.post(prompt=PROMPT)).json()
            await noted(caplog, "trying again in 1 s")
        assert before.runner.closed == 1
        async with endpoint(tmp_path) as after:
            await after.until(video["id"], "completed")

    asyncio.run(play())


@pytest.mark.usefixtures("short_pauses")
def test_a_failing_disk_costs_time_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The record is out of reach when a video is made: it is kept later, not made again, and the next one is made."""
    database = sqlite3.connect(tmp_path / "videos.sqlite", isolation_level=None)

    async def scene(running: Endpoint) -> None:
        running.runner.gate.clear()
        videos = [(await running.post(prompt=PROMPT, seed=seed)).json() for seed in (1, 2)]
        await running.until(videos[0]["id"], "in_progress", progress=80)
        database.execute("ALTER TABLE videos RENAME TO elsewhere")
        running.runner.gate.set()
        await noted(caplog, "no such table")
        database.execute("ALTER TABLE elsewhere RENAME TO videos")
        for video in videos:
            await running.until(video["id"], "completed")
        assert [asked.seed for asked in running.runner.asked] == [1, 2]
        running.service.check_health()

    serving(tmp_path, scene)
    database.close()


def test_a_desk_that_cannot_go_on_is_not_well_and_lets_go_of_everything(tmp_path: Path) -> None:
    async def scene(running: Endpoint) -> None:
        running.runner.failure, running.runner.no_close = RuntimeError("a device is gone"), OSError("an actor stays")
        await running.until((await running.post(prompt=PROMPT)).json()["id"], "failed")
        await asyncio.sleep(0.01)
        with pytest.raises(RuntimeError, match="no videos are made any more"):
            running.service.check_health()

    with pytest.raises(OSError, match="an actor stays"):
        serving(tmp_path, scene)
    VideoStore(tmp_path).close()
