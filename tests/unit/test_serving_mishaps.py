"""What goes wrong around a request: callers that hang up, full disks, keys that go, ids and event ids that are none."""

from __future__ import annotations

import asyncio
import json
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from framegrove.serving import service
from framegrove.serving.keys import add_key, remove_key
from framegrove.serving.store import VideoStore
from tests.endpoint import PROMPT, Endpoint, serving


@contextmanager
def held(store: VideoStore, method: str) -> Iterator[tuple[threading.Event, threading.Event]]:
    """A method of a store that says when it is called, and goes on when it is told to."""
    called, go_on, real = threading.Event(), threading.Event(), getattr(store, method)

    def slow(*given: Any, **named: Any) -> Any:
        called.set()
        assert go_on.wait(20)
        return real(*given, **named)

    setattr(store, method, slow)
    try:
        yield called, go_on
    finally:
        go_on.set()
        setattr(store, method, real)


async def hung_up(running: Endpoint, method: str, request: Callable[[], Any]) -> None:
    """A request whose caller goes while the store is busy with it."""
    with held(running.store, method) as (called, go_on):
        asking = asyncio.create_task(request())
        await asyncio.to_thread(called.wait, 20)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        go_on.set()


def test_a_video_whose_caller_hung_up_is_made(tmp_path: Path) -> None:
    async def scene(running: Endpoint) -> None:
        await hung_up(running, "add", lambda: running.post(prompt=PROMPT, seed=1))
        for _ in range(500):
            (video,) = (await running.client.get("/v1/videos")).json()["data"] or [{"status": ""}]
            if video["status"] == "completed":
                return
            await asyncio.sleep(0.01)
        raise AssertionError(video)

    serving(tmp_path, scene)


@pytest.mark.parametrize("deleted", [False, True])
def test_a_video_whose_canceller_hung_up_is_given_up(tmp_path: Path, deleted: bool) -> None:
    async def scene(running: Endpoint) -> None:
        running.runner.gate.clear()
        video = (await running.post(prompt=PROMPT, seed=1)).json()["id"]
        await running.until(video, "in_progress")
        path = f"/v1/videos/{video}"
        ask = (lambda: running.client.delete(path)) if deleted else (lambda: running.client.post(f"{path}/cancel"))
        await hung_up(running, "cancel", ask)
        for _ in range(500):
            status = (await running.client.get(path)).status_code
            if running.runner.running == 0 and status == (404 if deleted else 200):
                return
            await asyncio.sleep(0.01)
        raise AssertionError("its search goes on")

    serving(tmp_path, scene)


@pytest.mark.parametrize("with_keys", [False, True])
def test_a_full_disk_is_a_503_and_loses_nothing(tmp_path: Path, with_keys: bool) -> None:
    """No file may grow beyond what it is: POST, remix and DELETE say so, and so does readyz."""
    keys = tmp_path / "keys.json"
    headers = {"authorization": f"Bearer {add_key(keys, 'alice')}"} if with_keys else {}

    async def scene(running: Endpoint) -> None:
        running.client.headers.update(headers)
        video = (await running.post(prompt=PROMPT, seed=1)).json()["id"]
        await running.until(video, "completed")
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
        try:
            answers = [
                await running.post(prompt=PROMPT, seed=2),
                await running.client.post(f"/v1/videos/{video}/remix", json={"prompt": "a blue 5"}),
                await running.client.delete(f"/v1/videos/{video}"),
                await running.client.get("/readyz"),
            ]
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, ignored)
        assert [answer.status_code for answer in answers] == [503] * 4
        assert "cannot keep or read videos now" in answers[0].json()["error"]["message"]
        assert answers[0].headers["retry-after"] == "1"
        assert (await running.client.get("/readyz")).status_code == 200
        assert [each["id"] for each in (await running.client.get("/v1/videos")).json()["data"]] == [video]

    serving(tmp_path / "videos", scene, **({"keys": keys} if with_keys else {}))


def test_a_key_that_goes_while_the_body_arrives(tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    secrets = {name: add_key(keys, name) for name in ("alice", "bob")}

    async def sent(running: Endpoint, who: str, meanwhile: Callable[[], Any]) -> tuple[int, str]:
        async def body() -> Any:
            yield b'{"prompt": '
            meanwhile()
            yield b'"a red 3"}'

        headers = {"authorization": f"Bearer {secrets[who]}", "content-type": "application/json"}
        answer = await running.client.post("/v1/videos", content=body(), headers=headers)
        return answer.status_code, answer.json()["error"]["message"]

    async def scene(running: Endpoint) -> None:
        status, said = await sent(running, "alice", lambda: remove_key(keys, "alice"))
        assert (status, said) == (401, "the API key alice is no longer valid: use another one")
        status, said = await sent(running, "bob", lambda: keys.write_text("{"))
        assert (status, said[:42]) == (503, "the endpoint cannot read its API keys: tell"[:42])

    serving(tmp_path / "videos", scene, keys=keys)


@pytest.mark.parametrize("name", ["video_0", "a%00b", "%F0%9F%90%88", "video_" + 32 * "g", 5000 * "v"])
def test_what_is_no_id_is_no_video(tmp_path: Path, name: str) -> None:
    async def scene(running: Endpoint) -> None:
        assert (await running.client.get(f"/v1/videos/{name}")).status_code == 404
        assert (await running.client.delete(f"/v1/videos/{name}")).status_code == 404
        assert (await running.client.get(f"/v1/videos/{name}/content")).status_code == 404
        assert (await running.client.get(f"/v1/videos?after={name}")).status_code == 400

    serving(tmp_path, scene)


def test_event_ids_that_never_were(tmp_path: Path) -> None:
    """Of a finished video the stream ends, whatever its viewer claims to know."""

    async def scene(running: Endpoint) -> None:
        video = (await running.post(prompt=PROMPT, seed=1)).json()["id"]
        await running.until(video, "completed")
        path = f"/v1/videos/{video}/events"
        log = (await running.client.get(path)).text.partition("id: ")[2].partition("-")[0]
        for number in ("9" * 5000, "999999", "-1", "x"):
            headers = {"last-event-id": f"{log}-{number}"}
            answer = await asyncio.wait_for(running.client.get(path, headers=headers), 10)
            assert answer.status_code == 200

    serving(tmp_path, scene)


def test_a_video_that_is_cancelled_as_it_begins_leaves_its_place(tmp_path: Path) -> None:
    begun, cancelled = threading.Event(), threading.Event()

    async def scene(running: Endpoint) -> None:
        store = running.store
        begin, cancel = store.begin, store.cancel

        def begins(video_id: str) -> bool:
            found = begin(video_id)
            begun.set()
            return found

        def cancels(video_id: str) -> bool:
            begun.wait(10)
            found = cancel(video_id)
            cancelled.set()
            return found

        async def busy() -> None:  # so that the loop learns of both at once
            while not begun.is_set():  # noqa: ASYNC110  # of another thread
                await asyncio.sleep(0)
            cancelled.wait(10)
            time.sleep(0.02)  # noqa: ASYNC251

        store.begin, store.cancel = begins, cancels  # type: ignore[method-assign]
        holding = asyncio.create_task(busy())
        video = (await running.post(prompt=PROMPT)).json()["id"]
        answer = await running.client.post(f"/v1/videos/{video}/cancel")
        await holding
        assert answer.json()["status"] == "cancelled"
        assert running.service.in_progress == 0
        store.begin, store.cancel = begin, cancel  # type: ignore[method-assign]
        await running.until((await running.post(prompt=PROMPT)).json()["id"], "completed")

    serving(tmp_path, scene, searches=1)


def test_whoever_waits_for_a_video_hears_of_its_end_though_the_disk_failed_once(tmp_path: Path) -> None:
    async def scene(running: Endpoint) -> None:
        store, failures = running.store, list[OSError]()
        get, complete = store.get, store.complete

        def gets(*given: Any) -> Any:
            if failures:
                raise failures.pop()
            return get(*given)

        def completes(*given: Any) -> None:
            complete(*given)
            failures.append(OSError(5, "Input/output error"))

        store.get = gets  # type: ignore[method-assign]
        store.complete = completes  # type: ignore[method-assign]
        body = json.dumps({"prompt": PROMPT})
        headers = {"content-type": "application/json"}
        answer = await running.client.post("/v1/videos/sync", content=body, headers=headers, timeout=30)
        assert answer.status_code == 200

    serving(tmp_path, scene)


def test_requests_that_wait_count_as_streams_and_unread_answers_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "MOST_STREAMS", 2)

    async def scene(running: Endpoint) -> None:
        running.runner.gate.clear()
        headers = {"content-type": "application/json", "idempotency-key": "one"}
        body = json.dumps({"prompt": PROMPT, "seed": 1})

        async def wait() -> httpx.Response:
            return await running.client.post("/v1/videos/sync", content=body, headers=headers)

        waiting = [asyncio.create_task(wait()) for _ in range(2)]
        video = await first_of(running)
        await running.until(video, "in_progress")
        refused = await wait()
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_streams")
        running.runner.gate.set()
        assert [answer.status_code for answer in await asyncio.gather(*waiting)] == [200, 200]
        for _ in range(3):  # answers that nobody begins to read
            unread = await running.service.events(video)
            del unread
        assert (await wait()).status_code == 200

    serving(tmp_path, scene)


async def first_of(running: Endpoint) -> str:
    """The id of the only video, once it is accepted."""
    while not (found := (await running.client.get("/v1/videos")).json()["data"]):  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    return str(found[0]["id"])


def test_event_streams_of_one_owner_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "MOST_STREAMS", 2)

    async def scene(running: Endpoint) -> None:
        running.runner.gate.clear()
        video = (await running.post(prompt=PROMPT, seed=1)).json()["id"]
        await running.until(video, "in_progress")
        streams = [await running.service.events(video) for _ in range(2)]
        for stream in streams:
            await anext(stream)
        refused = await running.client.get(f"/v1/videos/{video}/events")
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_streams")
        for stream in streams:
            await stream.aclose()  # type: ignore[attr-defined]
        running.runner.gate.set()
        assert (await running.client.get(f"/v1/videos/{video}/events")).status_code == 200

    serving(tmp_path, scene)
