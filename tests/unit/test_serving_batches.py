"""Requests for several videos, and several requests at once: all or nothing, and never more than there is room for."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from framegrove.serving.keys import Limits, add_key
from framegrove.serving.quotas import Quotas
from framegrove.serving.store import VideoStore
from tests.endpoint import PROMPT, Endpoint, endpoint, serving
from tests.fakes import FakeRunner
from tests.unit.test_serving_quotas import ASK, SAMPLE, ask
from tests.unit.test_serving_store import broken


def held() -> FakeRunner:
    """A runner that ends no video."""
    runner = FakeRunner()
    runner.gate.clear()
    return runner


async def listed(running: Endpoint, secret: str = "") -> list[dict[str, Any]]:
    headers = {"Authorization": f"Bearer {secret}"}
    answer = await running.client.get("/v1/videos?limit=100&order=asc", headers=headers)
    videos: list[dict[str, Any]] = answer.json()["data"]
    return videos


def test_several_videos_of_one_request_have_seeds_that_follow_each_other(tmp_path: Path) -> None:
    async def scene(running: Endpoint) -> None:
        first = (await running.post(prompt=PROMPT, n=3, seed=7, metadata={"take": "1"})).json()
        videos = await listed(running)
        assert first["id"] == videos[0]["id"]
        assert [video["seed"] for video in videos] == [7, 8, 9]
        ids = [video["id"] for video in videos]
        assert all(video["batch"] == ids for video in (first, *videos))
        assert all(video["metadata"] == {"take": "1"} for video in videos)
        for video in videos:
            await running.until(video["id"], "completed")
            content = await running.client.get(f"/v1/videos/{video['id']}/content")
            assert content.content == f"{PROMPT} from {video['seed']}".encode()
        alone = (await running.post(prompt=PROMPT, seed=8)).json()
        assert alone["batch"] == []
        await running.client.delete(f"/v1/videos/{ids[1]}")
        assert (await running.client.get(f"/v1/videos/{ids[1]}")).status_code == 404
        assert (await running.video(ids[2]))["batch"] == ids
        drawn = (await running.post(prompt=PROMPT, n=2)).json()
        assert (await running.video(drawn["batch"][1]))["seed"] == drawn["seed"] + 1

    serving(tmp_path, scene)


def test_a_form_asks_for_several_videos_too(tmp_path: Path) -> None:
    async def scene(running: Endpoint) -> None:
        form = {"prompt": (None, PROMPT), "n": (None, "2"), "search[verifiers]": (None, "eye, signals")}
        answer = await running.client.post("/v1/videos", files=form)
        assert answer.status_code == 200, answer.text
        assert len(answer.json()["batch"]) == 2
        assert answer.json()["search"]["verifiers"] == {"eye": 1.0, "signals": 1.0}

    serving(tmp_path, scene)


def test_all_videos_of_a_request_find_room_or_none_does(tmp_path: Path) -> None:
    async def scene(running: Endpoint) -> None:
        await running.until((await running.post(prompt=PROMPT)).json()["id"], "in_progress")
        assert (await running.post(prompt=PROMPT, n=3)).status_code == 200
        full = await running.post(prompt=PROMPT, n=3)
        assert (full.status_code, full.json()["error"]["code"]) == (429, "queue_full")
        assert "no room for 3 more videos" in full.json()["error"]["message"]
        assert len(await listed(running)) == 4
        never = await running.post(prompt=PROMPT, n=6)
        assert (never.status_code, never.json()["error"]["param"]) == (400, "n")
        assert "may ask for 5 videos at most" in never.json()["error"]["message"]
        assert (await running.post(prompt=PROMPT, n=2)).status_code == 200
        sync = await running.client.post("/v1/videos/sync", json={"prompt": PROMPT, "n": 2})
        assert (sync.status_code, sync.json()["error"]["param"]) == (400, "n")

    serving(tmp_path, scene, runner=held(), searches=1, waiting=5)


def test_an_idempotency_key_stands_for_all_videos_of_its_request(tmp_path: Path) -> None:
    async def scene(running: Endpoint) -> None:
        async def post(n: int) -> Any:
            body = {"prompt": PROMPT, "seed": 1, "n": n}
            return await running.client.post("/v1/videos", json=body, headers={"Idempotency-Key": "one"})

        answers = await asyncio.gather(*(post(2) for _ in range(10)))
        assert {answer.json()["id"] for answer in answers} == {answers[0].json()["id"]}
        assert {tuple(answer.json()["batch"]) for answer in answers} == {tuple(answers[0].json()["batch"])}
        assert len(await listed(running)) == 2
        assert (await post(3)).status_code == 409

    serving(tmp_path, scene)


def test_a_quota_counts_all_videos_of_a_request(tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    alice = add_key(keys, "alice", Limits(flops_per_day=10 * SAMPLE))

    async def scene(running: Endpoint) -> None:
        async def post(n: int) -> Any:
            body = ASK | {"search": {"budget": "2x"}, "n": n}
            return await running.client.post("/v1/videos", json=body, headers={"Authorization": f"Bearer {alice}"})

        assert (await post(6)).status_code == 429
        assert await listed(running, alice) == []
        first = await post(4)
        assert first.status_code == 200
        assert (await ask(running, alice, "3x"))[0] == 429
        last = first.json()["batch"][-1]
        headers = {"Authorization": f"Bearer {alice}"}
        assert (await running.client.delete(f"/v1/videos/{last}", headers=headers)).status_code == 200
        assert (await ask(running, alice, "4x"))[0] == 200, "what was deleted while it waited costs nothing"
        assert (await ask(running, alice, "1x"))[0] == 429

    serving(tmp_path / "videos", scene, runner=held(), keys=keys, searches=1)


def test_of_300_requests_at_once_as_many_are_accepted_as_there_are_places(tmp_path: Path) -> None:
    async def scene(running: Endpoint) -> None:
        await running.until((await running.post(prompt=PROMPT)).json()["id"], "in_progress")
        answers = await asyncio.gather(*(running.post(prompt=PROMPT, seed=seed) for seed in range(300)))
        assert Counter(answer.status_code for answer in answers) == {200: 40, 429: 260}
        for answer in answers:
            if answer.status_code == 429:
                assert answer.json()["error"]["code"] == "queue_full"
                assert int(answer.headers["retry-after"]) > 0
        kept = await listed(running)
        accepted = {answer.json()["id"] for answer in answers if answer.status_code == 200}
        assert {video["id"] for video in kept[1:]} == accepted
        assert running.service.waiting == 40

    serving(tmp_path, scene, runner=held(), searches=1, waiting=40)


@pytest.mark.parametrize("n", [1, 3])
def test_a_disk_that_fails_leaves_no_video_uncounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    """Whatever fails on the way: either nothing is kept and nothing is counted, or nothing is kept."""
    keys = tmp_path / "keys.json"
    alice = add_key(keys, "alice", Limits(flops_per_day=10 * SAMPLE))
    headers = {"Authorization": f"Bearer {alice}"}

    def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    async def play() -> None:
        async with endpoint(tmp_path / "videos", keys=keys) as running:

            async def post() -> Any:
                body = ASK | {"search": {"budget": "3x"}, "n": n}
                return await running.client.post("/v1/videos", json=body, headers=headers)

            quotas = running.service._intake._quotas
            assert quotas is not None
            with monkeypatch.context() as patch:
                patch.setattr(Quotas, "used", full)
                assert (await post()).status_code == 503
            with monkeypatch.context() as patch:
                patch.setattr(VideoStore, "add", broken)
                assert (await post()).status_code == 500
            assert await listed(running, alice) == []
            assert running.runner.asked == []
            assert quotas.flops_of("alice") == 0, "what was not kept is not counted"
            with monkeypatch.context() as patch:  # neither can be said whether it is kept
                patch.setattr(VideoStore, "add", broken)
                patch.setattr(VideoStore, "get", broken)
                assert (await post()).status_code == 503
            assert quotas.flops_of("alice") == 3 * n * SAMPLE
            assert await listed(running, alice) == []

    asyncio.run(play())
