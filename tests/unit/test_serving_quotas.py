"""Quotas at the endpoint: what an owner's requests may cost and its videos take, over HTTP with keys."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from framegrove.serving.keys import Limits, add_key
from tests.endpoint import PROMPT, Endpoint, serving
from tests.fakes import FakeRunner

SAMPLE = 64 * 64  # FLOPs of one sample of one unit with 64x64 pixels, in the endpoint of the tests
ASK = {"prompt": PROMPT, "size": "64x64", "seconds": "0.1"}  # one unit


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


async def ask(running: Endpoint, secret: str, budget: str, idempotency: str | None = None) -> tuple[int, dict]:  # type: ignore[type-arg]
    headers = {"Authorization": f"Bearer {secret}"} | ({"Idempotency-Key": idempotency} if idempotency else {})
    answer = await running.client.post("/v1/videos", json=ASK | {"search": {"budget": budget}}, headers=headers)
    return answer.status_code, answer.json()


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never was so")


def test_a_day_of_flops_is_shared_by_an_owners_requests(tmp_path: Path, keys: Path) -> None:
    alice = add_key(keys, "alice", Limits(flops_per_day=10 * SAMPLE))
    bob = add_key(keys, "bob")
    runner = FakeRunner()
    runner.gate.clear()

    async def scene(running: Endpoint) -> None:
        status, first = await ask(running, alice, "6x", "one")
        assert status == 200
        status, refused = await ask(running, alice, "5x")
        assert (status, refused["error"]["code"]) == (429, "quota_exceeded")
        assert "the key alice has used 2.46e+04 of its 4.1e+04 in 24 hours" in refused["error"]["message"]
        status, again = await ask(running, alice, "6x", "one")
        assert (status, again["id"]) == (200, first["id"]), "the same request again costs nothing"
        assert (await ask(running, bob, "64x"))[0] == 200
        assert (await ask(running, alice, "4x"))[0] == 200
        assert (await ask(running, alice, "1x"))[0] == 429
        kept = await running.client.get("/v1/videos", headers={"Authorization": f"Bearer {alice}"})
        assert len(kept.json()["data"]) == 2, "what is refused is not kept"
        runner.gate.set()

    serving(tmp_path / "videos", scene, runner=runner, keys=keys)


def test_of_requests_at_the_same_time_only_those_pass_for_which_there_is_room(tmp_path: Path, keys: Path) -> None:
    alice = add_key(keys, "alice", Limits(flops_per_day=10 * SAMPLE))

    async def scene(running: Endpoint) -> None:
        answers = await asyncio.gather(*(ask(running, alice, "3x") for _ in range(8)))
        assert sorted(status for status, _ in answers) == [200] * 3 + [429] * 5

    serving(tmp_path / "videos", scene, keys=keys)


def test_what_is_cancelled_while_it_waits_costs_nothing(tmp_path: Path, keys: Path) -> None:
    alice = add_key(keys, "alice", Limits(flops_per_day=10 * SAMPLE))
    runner = FakeRunner()
    runner.gate.clear()

    async def scene(running: Endpoint) -> None:
        _, begun = await ask(running, alice, "5x")
        await until(lambda: runner.running == 1)
        _, waiting = await ask(running, alice, "5x")
        for video in (waiting, begun):
            headers = {"Authorization": f"Bearer {alice}"}
            answer = await running.client.post(f"/v1/videos/{video['id']}/cancel", headers=headers)
            assert answer.status_code == 200
        assert (await ask(running, alice, "5x"))[0] == 200
        assert (await ask(running, alice, "1x"))[0] == 429, "the one that was being made counts"

    serving(tmp_path / "videos", scene, runner=runner, keys=keys, searches=1)


def test_stored_bytes_are_limited_until_videos_are_deleted(tmp_path: Path, keys: Path) -> None:
    alice = add_key(keys, "alice", Limits(bytes=10))

    async def scene(running: Endpoint) -> None:
        headers = {"Authorization": f"Bearer {alice}"}
        made = await running.client.post("/v1/videos/sync", json=ASK, headers=headers)
        assert made.status_code == 200
        status, refused = await ask(running, alice, "1x")
        assert status == 429
        assert "bytes of the 10 allowed: delete some" in refused["error"]["message"]
        assert (
            await running.client.delete(f"/v1/videos/{made.headers['x-video-id']}", headers=headers)
        ).status_code == 200
        assert (await ask(running, alice, "1x"))[0] == 200

    serving(tmp_path / "videos", scene, keys=keys)
