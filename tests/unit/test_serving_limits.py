"""An endpoint that keeps answering while clients hold their bodies back, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from framegrove.serving.records import StoredFile
from tests.endpoint import PROMPT, Endpoint, endpoint, serving

HEAD = b"POST /v1/videos HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
HALF = HEAD + b'Content-Length: 1000\r\n\r\n{"prompt": "a red'
STALLED = 300


@contextlib.contextmanager
def listening(folder: Path, **settings: Any) -> Iterator[int]:
    """The port of an endpoint behind uvicorn, in a thread."""
    ready, ports = threading.Event(), []
    servers: list[uvicorn.Server] = []

    async def serve() -> None:
        async with endpoint(folder, **settings) as running:
            server = uvicorn.Server(uvicorn.Config(running.app, lifespan="off", log_config=None))
            servers.append(server)
            place = socket.create_server(("127.0.0.1", 0), backlog=2 * STALLED)
            ports.append(place.getsockname()[1])
            ready.set()
            await server.serve(sockets=[place])

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert ready.wait(60)
    try:
        yield ports[0]
    finally:
        servers[0].should_exit = True
        thread.join(60)
        assert not thread.is_alive()


def answer_on(stalled: socket.socket) -> bytes:
    """All that the server sends until it closes the connection; TimeoutError if it does not."""
    answer = b""
    while received := stalled.recv(2**16):
        answer += received
    return answer


@pytest.mark.timeout(120)
def test_half_sent_bodies_leave_everybody_else_an_endpoint(tmp_path: Path) -> None:
    with listening(tmp_path, body_seconds=4, reading=32) as port, contextlib.ExitStack() as held:
        began = time.monotonic()
        stalled = [held.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(STALLED)]
        for each in stalled:
            each.settimeout(15)
            each.sendall(HALF)
        while time.monotonic() < began + 3:
            assert httpx.get(f"http://localhost:{port}/v1/models", timeout=3).status_code == 200
        answers = [answer_on(each) for each in stalled]

        late = [answer for answer in answers if answer.startswith(b"HTTP/1.1 408 ")]
        turned_away = [answer for answer in answers if answer.startswith(b"HTTP/1.1 503 ")]
        assert (len(late), len(turned_away)) == (32, STALLED - 32)
        assert b"the body was not there after 4 seconds" in late[0]
        assert b"retry-after: 1\r\n" in turned_away[0]

        fine = httpx.post(f"http://localhost:{port}/v1/videos", json={"prompt": PROMPT}, timeout=5)
        assert fine.status_code == 200, "all places are free again"


@pytest.mark.timeout(60)
def test_a_trickle_is_no_progress(tmp_path: Path) -> None:
    """The deadline is that of the whole body: a byte now and then does not put it off."""
    with listening(tmp_path, body_seconds=1) as port, socket.create_connection(("127.0.0.1", port)) as slow:
        slow.settimeout(10)
        slow.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        began = time.monotonic()
        with contextlib.suppress(ConnectionError):
            while time.monotonic() < began + 5:
                slow.sendall(b"1\r\n \r\n")
                time.sleep(0.1)
        assert time.monotonic() - began < 4
        with contextlib.suppress(ConnectionError):
            assert answer_on(slow).startswith(b"HTTP/1.1 408 ")


@pytest.mark.timeout(60)
def test_a_connection_that_breaks_frees_its_place(tmp_path: Path) -> None:
    with listening(tmp_path, reading=1) as port:
        with socket.create_connection(("127.0.0.1", port)) as broken:
            broken.sendall(HALF)
        for _ in range(100):
            answer = httpx.post(f"http://localhost:{port}/v1/videos", json={"prompt": PROMPT})
            if answer.status_code != 503:
                break
            time.sleep(0.05)
        assert answer.status_code == 200


@pytest.mark.timeout(60)
def test_lengths_that_are_none_are_refused(tmp_path: Path) -> None:
    with listening(tmp_path) as port:
        for length, status in ((b"1" * 30, b"400"), (b"9" * 15, b"413"), (b"-1", b"400")):
            with socket.create_connection(("127.0.0.1", port)) as client:
                client.settimeout(10)
                client.sendall(HEAD + b"Content-Length: " + length + b"\r\n\r\n")
                assert answer_on(client).startswith(b"HTTP/1.1 " + status), length


def test_a_body_may_come_in_pieces_of_any_size(tmp_path: Path) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for byte in json.dumps({"prompt": PROMPT}).encode():
            yield bytes([byte])

    async def scene(running: Endpoint) -> None:
        headers = {"content-type": "application/json; charset=utf-8"}
        assert (await running.client.post("/v1/videos", content=pieces(), headers=headers)).status_code == 200

    serving(tmp_path, scene)


def test_a_failure_shows_no_trace_and_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scene(running: Endpoint) -> None:
        async def broken(video_id: str, name: str, owner: str) -> StoredFile:
            raise KeyError("a secret of the house")

        running.service.file = broken  # type: ignore[method-assign]
        answer = await running.client.get("/v1/videos/video_0/content")
        assert (answer.status_code, answer.json()["error"]["type"]) == (500, "server_error")
        assert "secret" not in answer.text
        assert "Traceback" not in answer.text
        assert "KeyError: 'a secret of the house'" in caplog.text
        running.service.check_health()

    serving(tmp_path, scene)
