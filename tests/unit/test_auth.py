"""Who is let in: the middleware in front of a small application, over HTTP without a socket."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from framegrove.serving import auth
from framegrove.serving.auth import FAILURES_PER_MINUTE, KeyAuth
from framegrove.serving.keys import KeyRing, Limits, add_key, remove_key

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


async def whoever(request: Request) -> PlainTextResponse:
    return PlainTextResponse(getattr(request.state, "owner", "nobody"))


@asynccontextmanager
async def client(path: Path, address: str = "192.0.2.1") -> AsyncIterator[httpx.AsyncClient]:
    app = Starlette(routes=[Route("/{path:path}", whoever, methods=["GET", "POST"])])
    transport = httpx.ASGITransport(KeyAuth(app, KeyRing(path)), client=(address, 1234))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as connected:
        yield connected


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


async def test_a_key_lets_its_owner_in(path: Path) -> None:
    alice, bob = add_key(path, "alice"), add_key(path, "bob")
    async with client(path) as http:
        for secret, name in ((alice, "alice"), (bob, "bob"), (alice, "alice")):
            answer = await http.post("/v1/videos", headers=bearer(secret))
            assert (answer.status_code, answer.text) == (200, name)
        assert (await http.get("/v1/models", headers={"authorization": f"bearer  {alice}"})).text == "alice"


@pytest.mark.parametrize(
    "headers",
    [{}, bearer(""), bearer("fg_wrong"), bearer("x" * 10_000), {"Authorization": "Basic YTpi"}, {"X-API-Key": "fg_x"}],
)
async def test_anybody_else_is_told_what_to_send(path: Path, headers: dict[str, str]) -> None:
    add_key(path, "alice")
    async with client(path) as http:
        answer = await http.get("/v1/videos/video_1", headers=headers)
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == 'Bearer realm="framegrove"'
    error = answer.json()["error"]
    assert error["message"].startswith("no valid API key was given: send the header `Authorization: Bearer KEY`")
    assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", "invalid_api_key", None)


async def test_probes_and_the_page_are_open_and_nothing_else(path: Path) -> None:
    add_key(path, "alice")
    async with client(path) as http:
        for open_path in ("/", "/healthz", "/readyz", "/page/app.js"):
            answer = await http.get(open_path)
            assert (answer.status_code, answer.text) == (200, "nobody")
        for closed in ("/v1/models", "/docs", "/openapi.json", "/healthz/x", "/page", "/page/%2e%2e/v1/models"):
            assert (await http.get(closed)).status_code == 401, closed
        assert (await http.post("/")).status_code == 401


async def test_keys_come_and_go_without_a_restart(path: Path) -> None:
    alice = add_key(path, "alice")
    async with client(path) as http:
        assert (await http.get("/v1/models", headers=bearer(alice))).status_code == 200
        bob = add_key(path, "bob")
        assert (await http.get("/v1/models", headers=bearer(bob))).text == "bob"
        remove_key(path, "alice")
        assert (await http.get("/v1/models", headers=bearer(alice))).status_code == 401
        os.unlink(path)
        answer = await http.get("/v1/models", headers=bearer(bob))
        assert answer.status_code == 503
        assert "cannot read its API keys" in answer.json()["error"]["message"]
        assert (await http.get("/healthz")).status_code == 200


async def test_each_key_has_its_own_limit_of_requests(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alice, bob = add_key(path, "alice", Limits(requests_per_minute=3)), add_key(path, "bob")
    clock = time.time()
    monkeypatch.setattr(time, "time", lambda: clock)
    async with client(path) as http:
        ask = asking(http, alice)
        assert [await ask() for _ in range(2)] == [200, 200]
        clock += 30
        assert [await ask() for _ in range(2)] == [200, 429]
        answer = await http.get("/v1/models", headers=bearer(alice))
        assert answer.headers["Retry-After"] == "30"
        assert answer.json()["error"]["code"] == "rate_limit_exceeded"
        assert "the key alice may send 3 requests per minute: try again in 30 s" in answer.text
        assert await asking(http, bob)() == 200
        clock += 31  # the first two are more than a minute ago
        assert [await ask() for _ in range(3)] == [200, 200, 429]


async def test_failures_are_limited_by_address_and_never_shut_a_key_out(path: Path) -> None:
    alice = add_key(path, "alice")
    async with client(path) as http:
        failing = asking(http, "fg_wrong")
        assert [await failing() for _ in range(FAILURES_PER_MINUTE + 1)] == [401] * FAILURES_PER_MINUTE + [429]
        answer = await http.get("/v1/models")
        assert "too many requests without a valid API key came from 192.0.2.1" in answer.text
        assert 0 < int(answer.headers["Retry-After"]) <= 61
        assert await asking(http, alice)() == 200
    async with client(path, "192.0.2.2") as other:
        assert await asking(other, "fg_wrong")() == 401


def test_an_ipv6_client_is_its_network() -> None:
    assert auth._network({"client": ("2001:db8::1:2:3:4", 1)}) == auth._network({"client": ("2001:db8::9", 1)})
    assert auth._network({"client": ("2001:db8::1", 1)}) != auth._network({"client": ("2001:db8:0:1::1", 1)})
    assert auth._network({"client": None}) == "an unknown address"


def asking(http: httpx.AsyncClient, secret: str) -> Callable[[], Awaitable[int]]:
    async def ask() -> int:
        return (await http.get("/v1/models", headers=bearer(secret))).status_code

    return ask
