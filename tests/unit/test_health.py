"""When something that an endpoint runs on is taken to be gone."""

from __future__ import annotations

import http.server
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from framegrove.cluster import health
from framegrove.cluster.health import LOOK_EVERY_S, Check, answers, connects, connects_to_file, first_gone, within


class Clock:
    """Time passes only where it is waited for."""

    def __init__(self) -> None:
        self.now = 0.0

    def pause(self, seconds: float) -> None:
        self.now += seconds


def check(name: str, patience: float, clock: Clock, there: list[tuple[float, float]]) -> Check:
    """Something that is there in these stretches of time."""
    is_there = lambda: any(start <= clock.now < end for start, end in there)  # noqa: E731
    return Check(name, patience, cluster=False, is_there=is_there)


def test_what_comes_back_in_time_is_not_gone() -> None:
    clock = Clock()
    shaky = check("shaky", 30, clock, [(0, 10), (38, 60), (62, 100)])
    firm = check("firm", 3, clock, [(0, 1000)])
    gone = first_gone([firm, shaky], pause=clock.pause, clock=lambda: clock.now)
    assert gone is shaky
    assert clock.now == 130, "30 s after it was there last, not after it was away first"


def test_what_is_gone_is_named_within_a_few_seconds() -> None:
    clock = Clock()
    checks = [check("serve", 60, clock, [(0, 50)]), check("raylet", 3, clock, [(0, 50)])]
    assert first_gone(checks, pause=clock.pause, clock=lambda: clock.now).gone == "raylet"
    assert 50 <= clock.now <= 50 + 3 + LOOK_EVERY_S


def test_a_look_at_addresses(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert connects("127.0.0.1", port)
    assert not connects("127.0.0.1", port)
    path = str(tmp_path / "raylet")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        assert connects_to_file(path)
    assert not connects_to_file(path), "a socket's file stays when its owner is killed"


@pytest.fixture
def server() -> Iterator[http.server.ThreadingHTTPServer]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            well = self.path == "/-/healthz" and self.server.well  # type: ignore[attr-defined]
            self.send_response(200 if well else 503)
            self.end_headers()

        def log_message(self, *given: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_only_a_proxy_that_is_well_counts(
    server: http.server.ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    port = server.server_address[1]
    server.well = True  # type: ignore[attr-defined]
    assert answers("127.0.0.1", port)
    server.well = False  # type: ignore[attr-defined]
    assert not answers("127.0.0.1", port)
    monkeypatch.setattr(health, "_ANSWER_LIMIT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert not answers("127.0.0.1", silent.getsockname()[1])
    assert not answers("127.0.0.1", 1)


@pytest.mark.parametrize(
    ("status", "well"), [("RUNNING", True), ("DEPLOYING", True), ("UNHEALTHY", False), ("DELETING", False)]
)
def test_an_application_runs_or_comes_up(status: str, well: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    found = SimpleNamespace(applications={"framegrove": SimpleNamespace(status=status)})
    monkeypatch.setattr(health.serve, "status", lambda: found)
    assert health.runs("framegrove") is well
    assert not health.runs("another")


def test_a_call_that_hangs_or_raises_has_no_answer() -> None:
    assert within(5, lambda: 3) == 3
    began = time.monotonic()
    assert within(0.1, threading.Event().wait) is None
    assert time.monotonic() - began < 2
    assert within(5, lambda: 1 // 0) is None
