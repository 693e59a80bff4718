"""The endpoint over a fake search: what goes over the wire, in good and in bad cases, without Ray."""

from __future__ import annotations

import asyncio
import base64
import logging
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from framegrove import logs
from framegrove.errors import UserError
from framegrove.serving import making, service
from framegrove.serving.api import MOST_IMAGE_BYTES
from framegrove.serving.store import VideoStore
from framegrove.serving.web import MOST_BODY_BYTES
from tests.endpoint import POLICIES, PROMPT, Endpoint, NoRoomNow, endpoint, picture, serving
from tests.fakes import FakeRunner
from tests.tiny import digits_recipe


def test_the_model_says_what_it_knows(tmp_path: Path) -> None:
    async def scene(running: Endpoint) -> None:
        (model,) = (await running.client.get("/v1/models")).json()["data"]
        assert model["object"] == "model"
        assert model["knows"] == digits_recipe().knows

    serving(tmp_path, scene)


def test_a_video_from_its_request_to_its_file(tmp_path: Path) -> None:
    async def scene(running: Endpoint) -> None:
        running.runner.gate.clear()
        answer = await running.post(
            prompt=f"  {PROMPT} ",
            seconds="3",
            size="64x64",
            seed=7,
            search={"policy": "linear", "budget": "2x", "seconds": 90},
        )
        assert answer.status_code == 200
        video = answer.json()
        assert video["id"].startswith("video_")
        assert (video["object"], video["status"], video["progress"]) == ("video", "queued", 0)
        assert (video["seconds"], video["size"], video["seed"]) == ("3", "64x64", 7)
        search = {
            "policy": "linear",
            "budget": "2x",
            "until": None,
            "seconds": 90.0,
            "speculation": None,
            "options": {},
            "verifiers": None,
        }
        assert video["search"] == search

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
        assert (asked.units, asked.height, asked.width, asked.budget, asked.within) == (4, 64, 64, 2.0, 90.0)

    serving(tmp_path, scene)


def test_what_is_left_out_is_the_models_own(tmp_path: Path) -> None:
    async def scene(running: Endpoint) -> None:
        first, second = [(await running.post(prompt=PROMPT)).json() for _ in range(2)]
        assert (first["seconds"], first["size"], first["model"]) == ("3.125", "64x64", "digits")
        assert first["seed"] < 2**53, "JavaScript reads it exactly"
        assert (first["search"]["policy"], first["search"]["budget"]) == ("dfs", "4x")
        assert first["seed"] != second["seed"]
        await running.until(second["id"], "completed")
        assert running.runner.asked[0].units == 4

    serving(tmp_path, scene)


@pytest.mark.parametrize(
    ("fields", "status", "sentence"),
    [
        ({}, 400, "the field prompt is missing"),
        ({"promt": PROMPT}, 400, "unknown field 'promt', did you mean 'prompt'?"),
        ({"promt": PROMPT, "seed": "x"}, 400, "unknown field 'promt', did you mean 'prompt'? (and 1 more)"),
        ({"search": {"polcy": "dfs"}}, 400, "unknown field 'search.polcy', did you mean 'policy'? (and 1 more)"),
        ({"prompt": "  "}, 400, "the prompt is empty"),
        ({"prompt": "x" * 20_000}, 400, "20,000 characters"),
        ({"prompt": 3}, 400, "prompt must be text, not 3"),
        ({"prompt": PROMPT, "length": 3}, 400, "unknown field 'length', allowed are prompt, negative_prompt, model"),
        ({"prompt": PROMPT, "\ud800": 3}, 400, "half a character"),
        ({"prompt": PROMPT, "search": {"width": 2}}, 400, "unknown field 'search.width', allowed are policy, budget"),
        ({"prompt": PROMPT, "size": "64"}, 400, "not of the form WIDTHxHEIGHT"),
        ({"prompt": PROMPT, "size": "70x64"}, 400, "multiples of 64"),
        ({"prompt": PROMPT, "seconds": "forever"}, 400, "not a number of seconds"),
        ({"prompt": PROMPT, "seconds": "nan"}, 400, "more than 0 and less than 1,000,000 seconds, not nan"),
        ({"prompt": PROMPT, "seconds": 60}, 400, "at most 57, which last 7.125 seconds"),
        ({"prompt": PROMPT, "seed": -2}, 400, "seed must be at least -1, not -2"),
        (
            {"prompt": PROMPT, "search": {"policy": "tof"}},
            400,
            "search.policy 'tof' is unknown: choose one of dfs, linear, single",
        ),
        ({"prompt": PROMPT, "search": {"budget": "lots"}}, 400, "a budget is a number"),
        ({"prompt": PROMPT, "search": {"budget": "1000x"}}, 400, "more than the 64x allowed"),
        ({"prompt": PROMPT, "model": "sora-2"}, 404, "no model 'sora-2' here, only digits"),
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
        answer = await running.client.post("/v1/videos", content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 400
        assert answer.json()["error"]["type"] == "invalid_request_error"

    serving(tmp_path, scene)


FORM_HEAD = b"""--edge\r
Content-Disposition: form-data; name="prompt"\r
\r
a red 3\r
--edge\r
Content-Disposition: form-data; name="input_reference"; filename="frame.png"\r
\r
"""


@pytest.mark.parametrize(
    ("kind", "head"), [("application/json", b""), ("multipart/form-data; boundary=edge", FORM_HEAD)]
)
def test_a_body_of_unknown_length_is_cut_off_at_the_limit(tmp_path: Path, kind: str, head: bytes) -> None:
    """Sent in chunks and without a Content-Length, it is refused before it has been read, let alone kept."""
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        yield head
        while True:
            sent += 2**16
            yield b" " * 2**16

    async def scene(running: Endpoint) -> None:
        answer = await running.client.post("/v1/videos", content=endless(), headers={"content-type": kind})
        assert answer.request.headers["transfer-encoding"] == "chunked"
        assert (answer.status_code, "larger than 16 MiB" in answer.text) == (413, True)
        assert sent <= MOST_BODY_BYTES + 2**16

    serving(tmp_path, scene)


def test_a_body_that_is_announced_as_too_long_is_not_read(tmp_path: Path) -> None:
    async def unread() -> AsyncIterator[bytes]:
        raise AssertionError("the body is read")
        yield b""

    async def scene(running: Endpoint) -> None:
        headers = {"content-length": str(MOST_BODY_BYTES + 1)}
        answer = await running.client.post("/v1/videos", content=unread(), headers=headers)
        assert answer.status_code == 413

    serving(tmp_path, scene)


def test_too_large_an_image_in_a_form_is_refused(tmp_path: Path) -> None:
    async def scene(running: Endpoint) -> None:
        picture = {"input_reference": ("frame.png", b" " * (MOST_IMAGE_BYTES + 1), "image/png")}
        answer = await running.client.post("/v1/videos", data={"prompt": PROMPT}, files=picture)
        assert (answer.status_code, "the image is larger than 8 MiB" in answer.text) == (413, True)

    serving(tmp_path, scene)


def test_a_broken_form_is_told_apart_from_an_unknown_route(tmp_path: Path) -> None:
    async def scene(running: Endpoint) -> None:
        headers = {"content-type": "multipart/form-data"}
        answer = await running.client.post("/v1/videos", content=b"prompt", headers=headers)
        assert answer.status_code == 400
        assert answer.json()["error"]["message"] == (
            "the form's boundary must have 1 to 70 characters: give it in Content-Type"
        )

    serving(tmp_path, scene)


def test_the_document_names_the_policies(tmp_path: Path) -> None:
    async def scene(running: Endpoint) -> None:
        document = (await running.client.get("/openapi.json")).json()
        body = document["paths"]["/v1/videos"]["post"]["requestBody"]["content"]["application/json"]["schema"]
        schemas = document["components"]["schemas"]
        request = schemas[body["$ref"].rpartition("/")[2]]
        assert request["required"] == ["prompt"]
        policy = schemas[request["properties"]["search"]["$ref"].rpartition("/")[2]]["properties"]["policy"]
        assert policy["enum"] == list(POLICIES)
        assert "dfs: goes back" in policy["description"]

    serving(tmp_path, scene)


def test_none_is_another_name_for_single(tmp_path: Path) -> None:
    async def scene(running: Endpoint) -> None:
        video = (await running.post(prompt=PROMPT, search={"policy": "none"})).json()
        assert video["search"]["policy"] == "single"
        await running.until(video["id"], "completed")
        assert running.runner.asked[0].policy == "single"
        assert running.runner.judging == [True, False]  # the warm-up, then the video

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
        image = {"input_reference": ("frame.png", picture(), "image/png")}
        video = (await running.client.post("/v1/videos", data=form, files=image)).json()
        await running.until(video["id"], "completed")
        (asked,) = running.runner.asked
        assert asked.image is not None
        assert asked.image.startswith(b"\x89PNG")
        assert (asked.seed, asked.budget, asked.units) == (5, 2.0, 3)

    serving(tmp_path, scene)


def test_an_image_comes_as_a_data_url_too(tmp_path: Path) -> None:
    async def scene(running: Endpoint) -> None:
        url = f"data:image/png;base64,{base64.b64encode(picture()).decode()}"
        video = (await running.post(prompt=PROMPT, input_reference={"image_url": url})).json()
        await running.until(video["id"], "completed")
        assert running.runner.asked[0].image is not None

    serving(tmp_path, scene)


def test_a_failure_is_told_and_the_next_video_is_made(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scene(running: Endpoint) -> None:
        running.runner.failure = UserError("the model cannot do this: ask for less")
        refused = (await running.post(prompt=PROMPT)).json()
        failed = await running.until(refused["id"], "failed")
        assert failed["error"] == {"code": "invalid_request", "message": "the model cannot do this: ask for less"}
        assert (await running.client.get(f"/v1/videos/{refused['id']}/content")).status_code == 409

        running.runner.failure = ValueError("a defect\nin 2 lines")
        broken = (await running.post(prompt=PROMPT)).json()
        failed = await running.until(broken["id"], "failed")
        assert failed["error"] == {
            "code": "server_error",
            "message": "the video could not be made because of an internal error: the endpoint's log has the details "
            f"of {broken['id']}",
        }
        assert "Traceback" in caplog.text
        assert "ValueError: a defect" in caplog.text

        running.runner.failure = None
        fine = (await running.post(prompt=PROMPT)).json()
        await running.until(fine["id"], "completed")
        assert running.runner.closed == 1  # after the defect: the next video got new actors

    serving(tmp_path, scene)


def test_a_cluster_that_cannot_be_brought_up_by_a_defect_fails_the_videos(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A bug must not leave the queue standing; nor is it the caller's mistake, whatever its class."""

    async def scene(running: Endpoint) -> None:
        running.runner.no_start = TypeError("a defect")
        defect = await running.until((await running.post(prompt=PROMPT)).json()["id"], "failed")
        running.runner.no_start = UserError("there is no verifier at /somewhere: give another one")
        missing = await running.until((await running.post(prompt=PROMPT)).json()["id"], "failed")
        for failed in (defect, missing):
            assert failed["error"]["code"] == "server_error"
            assert failed["id"] in failed["error"]["message"]
        assert "TypeError: a defect" in caplog.text
        assert "UserError: there is no verifier at /somewhere" in caplog.text
        running.service.check_health()

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

    serving(tmp_path, scene, waiting=1, searches=1)


def test_posts_at_the_same_time_do_not_pass_the_limit(tmp_path: Path) -> None:
    async def scene(running: Endpoint) -> None:
        running.runner.gate.clear()
        first = (await running.post(prompt=PROMPT)).json()
        await running.until(first["id"], "in_progress")
        answers = await asyncio.gather(*(running.post(prompt=PROMPT) for _ in range(40)))
        assert sorted(answer.status_code for answer in answers) == [200] * 3 + [429] * 37
        assert len(running.store.queued()) == 3
        running.runner.gate.set()

    serving(tmp_path, scene, waiting=3, searches=1)


def test_the_queue_is_observed(tmp_path: Path) -> None:
    async def scene(running: Endpoint) -> None:
        async def counted(waiting: int) -> None:  # a moment after the status has changed
            for _ in range(500):
                if running.queue[-1] == waiting:
                    return
                await asyncio.sleep(0.01)
            raise AssertionError(running.queue)

        running.runner.gate.clear()
        videos = [(await running.post(prompt=PROMPT)).json()]
        await running.until(videos[0]["id"], "in_progress", progress=80)
        await counted(0)
        videos += [(await running.post(prompt=PROMPT)).json() for _ in range(2)]
        assert running.queue[-2:] == [1, 2]
        running.runner.gate.set()
        for video in videos:
            await running.until(video["id"], "completed")
        await counted(0)

    serving(tmp_path, scene, searches=1)


def test_some_videos_are_made_at_a_time_in_order_of_arrival(tmp_path: Path) -> None:
    async def scene(running: Endpoint) -> None:
        gates = running.runner.gates = {seed: asyncio.Event() for seed in range(5)}
        videos = [(await running.post(prompt=PROMPT, seed=seed)).json()["id"] for seed in gates]
        for first in videos[:2]:
            await running.until(first, "in_progress", progress=80)
        assert [(await running.video(each))["status"] for each in videos[2:]] == ["queued"] * 3
        gates[1].set()  # whoever is done first makes room for the next one
        await running.until(videos[1], "completed")
        await running.until(videos[2], "in_progress", progress=80)
        assert (await running.video(videos[0]))["status"] == "in_progress"
        assert [(await running.video(each))["status"] for each in videos[3:]] == ["queued"] * 2
        for gate in gates.values():
            gate.set()
        for seed, each in enumerate(videos):
            await running.until(each, "completed")
            assert b"".join(running.store.open_file(each).chunks) == f"{PROMPT} from {seed}".encode()
        assert [asked.seed for asked in running.runner.asked] == list(gates)

    serving(tmp_path, scene, generators=2)


def test_a_defect_takes_no_actors_from_the_other_videos(tmp_path: Path) -> None:
    async def scene(running: Endpoint) -> None:
        gates = running.runner.gates = {seed: asyncio.Event() for seed in range(3)}
        running.runner.failures[0] = ValueError("a defect")
        broken, other, later = [(await running.post(prompt=PROMPT, seed=seed)).json()["id"] for seed in gates]
        await running.until(other, "in_progress", progress=80)
        gates[0].set()
        await running.until(broken, "failed")
        await asyncio.sleep(0.02)
        assert running.runner.closed == 0, "another video is being made"
        assert (await running.video(later))["status"] == "queued", "it gets new actors"
        gates[1].set()
        await running.until(other, "completed")
        await running.until(later, "in_progress")
        assert running.runner.closed == 1
        gates[2].set()
        await running.until(later, "completed")

    serving(tmp_path, scene, searches=2)


def test_log_records_carry_the_videos_id_and_no_prompt(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ids: dict[str, str | None] = {}

    def note(record: logging.LogRecord) -> bool:
        ids[record.getMessage().partition(" ")[0]] = logs.context().get("request")
        return True

    async def scene(running: Endpoint) -> None:
        video = (await running.post(prompt=PROMPT)).json()
        await running.until(video["id"], "completed")
        running.runner.failure = UserError(f"{PROMPT!r} cannot be shown")
        refused = (await running.post(prompt=PROMPT)).json()
        await running.until(refused["id"], "failed")
        assert ids == {"accepted:": refused["id"], "completed": video["id"], "failed": refused["id"]}

    caplog.set_level(logging.INFO)
    caplog.set_level(logging.INFO, logger="framegrove")  # another test may have set up logging
    told = (service.log, making.log)
    for log in told:
        log.addFilter(note)
    try:
        serving(tmp_path, scene)
    finally:
        for log in told:
            log.removeFilter(note)
    assert PROMPT not in caplog.text


def test_a_new_process_finishes_what_the_last_one_left(tmp_path: Path) -> None:
    async def play() -> None:
        async with endpoint(tmp_path) as before:
            before.runner.gate.clear()
            *interrupted, queued = [(await before.post(prompt=PROMPT, seed=seed)).json() for seed in (1, 2, 3)]
            for video in interrupted:
                await before.until(video["id"], "in_progress")
        assert before.runner.closed == 1
        async with endpoint(tmp_path) as after:
            for video in (*interrupted, queued):
                done = await after.until(video["id"], "completed")
                assert done["seed"] == video["seed"]
            assert [asked.seed for asked in after.runner.asked] == [1, 2, 3]

    asyncio.run(play())


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(making, "PAUSES", (0.01, 0.02))


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
        assert "Traceback" not in caplog.text
        assert [(await running.video(video["id"]))["status"] for video in videos] == ["queued", "queued"]
        running.runner.no_start = None
        for video in videos:
            await running.until(video["id"], "completed")
        assert [asked.seed for asked in running.runner.asked] == [1, 2]

    serving(tmp_path, scene, runner=FakeRunner(no_start=NoRoomNow("other work still holds the cluster")))


@pytest.mark.usefixtures("short_pauses")
def test_a_run_that_loses_its_actors_is_repeated_a_few_times(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scene(running: Endpoint) -> None:
        running.runner.failure = NoRoomNow("an actor was lost")
        lost = await running.until((await running.post(prompt=PROMPT)).json()["id"], "failed")
        assert lost["error"]["code"] == "server_error"
        assert len(running.runner.asked) == making.ATTEMPTS
        assert "attempt 2 failed (an actor was lost); trying again in 0.02 s" in caplog.text

        running.runner.gate.clear()
        video = (await running.post(prompt=PROMPT)).json()
        await running.until(video["id"], "in_progress", progress=80)
        running.runner.gate.set()
        await noted(caplog, "attempt 1 failed", times=2)
        running.runner.failure = None
        await running.until(video["id"], "completed")

    serving(tmp_path, scene)


def test_an_endpoint_that_waits_for_its_cluster_ends_when_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def play() -> None:
        async with endpoint(tmp_path, FakeRunner(no_start=NoRoomNow("no cluster answers"))) as before:
            video = (await before.post(prompt=PROMPT)).json()
            await noted(caplog, "trying again in 1 s")
        assert before.runner.closed == 1
        async with endpoint(tmp_path) as after:
            await after.until(video["id"], "completed")

    asyncio.run(play())


@pytest.mark.usefixtures("short_pauses")
def test_a_failing_disk_costs_time_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The store is out of reach when a video is finished: it is kept later, not made again."""
    database = sqlite3.connect(tmp_path / "videos.sqlite", isolation_level=None)

    async def scene(running: Endpoint) -> None:
        running.runner.gate.clear()
        videos = [(await running.post(prompt=PROMPT, seed=seed)).json() for seed in (1, 2)]
        await running.until(videos[0]["id"], "in_progress", progress=80)
        database.execute("ALTER TABLE videos RENAME TO elsewhere")
        running.runner.gate.set()
        await noted(caplog, "no such table")
        refused = await running.post(prompt=PROMPT)
        assert (refused.status_code, refused.json()["error"]["type"]) == (503, "server_error")
        assert "cannot keep or read videos now" in refused.json()["error"]["message"]
        database.execute("ALTER TABLE elsewhere RENAME TO videos")
        for video in videos:
            await running.until(video["id"], "completed")
        assert [asked.seed for asked in running.runner.asked] == [1, 2]
        running.service.check_health()

    serving(tmp_path, scene)
    database.close()


def test_a_service_that_cannot_go_on_fails_its_health_check_and_releases_the_folder(tmp_path: Path) -> None:
    async def scene(running: Endpoint) -> None:
        running.runner.failure, running.runner.no_close = RuntimeError("a device is gone"), OSError("an actor stays")
        await running.until((await running.post(prompt=PROMPT)).json()["id"], "failed")
        for _ in range(500):
            if running.service._maker._worker is not None and running.service._maker._worker.done():
                break
            await asyncio.sleep(0.01)
        with pytest.raises(RuntimeError, match="the service has stopped making videos"):
            running.service.check_health()

    with pytest.raises(OSError, match="an actor stays"):
        serving(tmp_path, scene)
    VideoStore(tmp_path).close()
