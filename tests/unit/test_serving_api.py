"""What the API does beside asking for a video: lists, cancelling, files, remixes, events, trees, limits."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest

from framegrove.serving import making
from framegrove.serving.keys import add_key
from tests.endpoint import PROMPT, Endpoint, serving
from tests.fakes import FakeRunner


async def finished(running: Endpoint, **fields: Any) -> dict[str, Any]:
    video = (await running.post(prompt=PROMPT, **fields)).json()
    return await running.until(video["id"], "completed")


def held(seed: int) -> FakeRunner:
    """A runner that holds the video of this seed until it is let go."""
    runner = FakeRunner()
    runner.gates[seed] = asyncio.Event()
    return runner


def test_videos_are_listed_page_by_page(tmp_path: Path) -> None:
    async def scene(running: Endpoint) -> None:
        made = [(await finished(running))["id"] for _ in range(5)]
        first = (await running.client.get("/v1/videos", params={"limit": 3})).json()
        assert [video["id"] for video in first["data"]] == made[:1:-1]
        assert (first["has_more"], first["first_id"], first["last_id"]) == (True, made[4], made[2])
        rest = (await running.client.get("/v1/videos", params={"after": first["last_id"]})).json()
        assert [video["id"] for video in rest["data"]] == [made[1], made[0]]
        assert not rest["has_more"]
        oldest = (await running.client.get("/v1/videos?order=asc&limit=1&status=completed")).json()
        assert [video["id"] for video in oldest["data"]] == made[:1]
        for query, says in (
            ("limit=0", "limit: input should be greater than or equal to 1"),
            ("order=best", "order: input should be 'asc' or 'desc'"),
            ("status=done", "status: input should be 'queued'"),
            ("after=video_nobody", "there is no video 'video_nobody' to go on after"),
        ):
            answer = await running.client.get(f"/v1/videos?{query}")
            assert answer.status_code == 400
            assert says in answer.json()["error"]["message"]

    serving(tmp_path, scene)


def test_a_video_that_is_being_made_is_cancelled_and_the_next_one_is_made(tmp_path: Path) -> None:
    async def scene(running: Endpoint) -> None:
        video = (await running.post(prompt=PROMPT, seed=1)).json()
        waiting = (await running.post(prompt=PROMPT, seed=2)).json()
        await running.until(video["id"], "in_progress")
        assert (await running.video(waiting["id"]))["queue_position"] == 0
        answer = await running.client.post(f"/v1/videos/{video['id']}/cancel")
        assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
        await running.until(waiting["id"], "completed")
        assert (await running.video(video["id"]))["status"] == "cancelled"
        assert running.runner.running == 0
        again = await running.client.post(f"/v1/videos/{video['id']}/cancel")
        assert again.status_code == 409
        assert "cannot be cancelled any more, it is cancelled" in again.json()["error"]["message"]
        content = await running.client.get(f"/v1/videos/{video['id']}/content")
        assert content.status_code == 409
        assert "was cancelled" in content.json()["error"]["message"]

    serving(tmp_path, scene, runner=held(1), generators=1)


def test_a_video_that_waits_is_cancelled_and_never_made(tmp_path: Path) -> None:
    async def scene(running: Endpoint) -> None:
        (await running.post(prompt=PROMPT, seed=1)).json()
        waiting = (await running.post(prompt=PROMPT, seed=2)).json()
        assert (await running.client.post(f"/v1/videos/{waiting['id']}/cancel")).status_code == 200
        running.runner.gates[1].set()
        last = await finished(running, seed=3)
        assert last["status"] == "completed"
        assert [asked.seed for asked in running.runner.asked] == [1, 3]

    serving(tmp_path, scene, runner=held(1), generators=1)


def test_a_deleted_video_is_gone_even_while_it_is_being_made(tmp_path: Path) -> None:
    async def scene(running: Endpoint) -> None:
        done = await finished(running, seed=2)
        making = (await running.post(prompt=PROMPT, seed=1)).json()
        await running.until(making["id"], "in_progress")
        for video in (done, making):
            answer = await running.client.delete(f"/v1/videos/{video['id']}")
            assert answer.json() == {"id": video["id"], "object": "video.deleted", "deleted": True}
            assert (await running.client.get(f"/v1/videos/{video['id']}")).status_code == 404
            assert (await running.client.delete(f"/v1/videos/{video['id']}")).status_code == 404
        assert (await running.client.get("/v1/videos")).json()["data"] == []
        assert running.runner.running == 0

    serving(tmp_path, scene, runner=held(1))


def test_files_come_whole_in_parts_or_not_again(tmp_path: Path) -> None:
    async def scene(running: Endpoint) -> None:
        video = await finished(running, seed=7)
        whole = f"{PROMPT} from 7".encode()
        place = f"/v1/videos/{video['id']}/content"
        answer = await running.client.get(place)
        assert (answer.content, answer.headers["content-type"]) == (whole, "video/mp4")
        assert answer.headers["content-length"] == str(len(whole))
        for asked, expected in (("bytes=2-5", whole[2:6]), ("bytes=-4", whole[-4:]), ("bytes=5-", whole[5:])):
            part = await running.client.get(place, headers={"Range": asked})
            assert (part.status_code, part.content) == (206, expected)
            start = whole.index(expected)
            assert part.headers["content-range"] == f"bytes {start}-{start + len(expected) - 1}/{len(whole)}"
        for asked in ("bytes=1-2,4-5", "lines=1-2", "bytes=-"):
            assert (await running.client.get(place, headers={"Range": asked})).content == whole
        beyond = await running.client.get(place, headers={"Range": "bytes=900-"})
        assert beyond.status_code == 416
        head = await running.client.head(place)
        assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", str(len(whole)))
        known = await running.client.get(place, headers={"If-None-Match": answer.headers["etag"]})
        assert (known.status_code, known.content) == (304, b"")
        small = await running.client.get(place, params={"variant": "thumbnail"})
        assert (small.content, small.headers["content-type"]) == (b"a small picture", "image/webp")
        for variant, status, says in (("poster", 400, "choose one of video"), ("tree", 404, "has no tree.png")):
            refused = await running.client.get(place, params={"variant": variant})
            assert refused.status_code == status
            assert says in refused.json()["error"]["message"]

    serving(tmp_path, scene)


def test_a_video_whose_file_is_gone_says_so(tmp_path: Path) -> None:
    async def scene(running: Endpoint) -> None:
        video = await finished(running)
        for file in (tmp_path / "videos" / video["id"]).iterdir():
            file.unlink()
        answer = await running.client.get(f"/v1/videos/{video['id']}/content")
        assert answer.status_code == 410
        assert answer.json()["error"]["code"] == "file_missing"
        assert (await running.video(video["id"]))["status"] == "failed"

    serving(tmp_path, scene)


def test_the_same_key_makes_one_video(tmp_path: Path) -> None:
    async def scene(running: Endpoint) -> None:
        async def post(key: str, **fields: Any) -> Any:
            headers = {"content-type": "application/json", "Idempotency-Key": key}
            body = json.dumps({"prompt": PROMPT, **fields})
            return await running.client.post("/v1/videos", content=body, headers=headers)

        first, again = await asyncio.gather(post("a"), post("a"))
        assert first.json()["id"] == again.json()["id"]
        assert (await post("b")).json()["id"] != first.json()["id"]
        other = await post("a", seed=3)
        assert (other.status_code, other.json()["error"]["code"]) == (409, "idempotency_key_reused")
        assert (await post("a b")).status_code == 400
        assert len((await running.client.get("/v1/videos")).json()["data"]) == 2

    serving(tmp_path, scene)


def test_a_remix_is_the_same_request_for_another_prompt(tmp_path: Path) -> None:
    async def scene(running: Endpoint) -> None:
        first = await finished(running, seed=11, size="128x64", metadata={"scene": "4"})
        body = json.dumps({"prompt": "a blue 5 moves up and down"})
        headers = {"content-type": "application/json"}
        made = await running.client.post(f"/v1/videos/{first['id']}/remix", content=body, headers=headers)
        video = await running.until(made.json()["id"], "completed")
        assert video["remixed_from_video_id"] == first["id"]
        assert (video["prompt"], video["seed"], video["size"]) == ("a blue 5 moves up and down", 11, "128x64")
        assert video["metadata"] == {"scene": "4"}
        bad = await running.client.post(f"/v1/videos/{first['id']}/remix", content="{}", headers=headers)
        assert (bad.status_code, bad.json()["error"]["param"]) == (400, "prompt")

    serving(tmp_path, scene)


def test_a_video_goes_on_from_another_one(tmp_path: Path) -> None:
    async def scene(running: Endpoint) -> None:
        first = await finished(running, seed=3, seconds="1.1", size="128x64", metadata={"scene": "4"})
        headers = {"content-type": "application/json"}

        async def extend(**fields: Any) -> Any:
            body = json.dumps({"video": {"id": first["id"]}, "prompt": "a blue 5 moves up and down", **fields})
            return await running.client.post("/v1/videos/extensions", content=body, headers=headers)

        video = await running.until((await extend(seconds=2, seed=4)).json()["id"], "completed")
        asked = running.runner.asked[1]
        assert (asked.given, asked.units, asked.start) == (2, 4, b"latents of 3")
        assert (asked.width, asked.height, asked.seed) == (128, 64, 4)
        assert (video["extended_from_video_id"], video["size"], video["seconds"]) == (first["id"], "128x64", "3.125")
        too_long = await extend(seconds=9)
        assert too_long.status_code == 400
        assert "can become 6 s longer at most" in too_long.json()["error"]["message"]
        assert (await extend(seconds=1, video={"id": "video_nobody"})).status_code == 404
        running.runner.gate.clear()
        waiting = (await running.post(prompt=PROMPT)).json()
        refused = await extend(seconds=1, video={"id": waiting["id"]})
        assert (refused.status_code, "is not finished" in refused.text) == (409, True)
        running.runner.gate.set()

    serving(tmp_path, scene)


def test_what_a_video_goes_on_from_may_be_gone_when_its_turn_comes(tmp_path: Path) -> None:
    async def scene(running: Endpoint) -> None:
        first = await finished(running, seed=3)
        (await running.post(prompt=PROMPT, seed=1)).json()
        body = json.dumps({"video": {"id": first["id"]}, "prompt": PROMPT, "seconds": "1"})
        headers = {"content-type": "application/json"}
        waiting = (await running.client.post("/v1/videos/extensions", content=body, headers=headers)).json()
        await running.client.delete(f"/v1/videos/{first['id']}")
        running.runner.gates[1].set()
        failed = await running.until(waiting["id"], "failed")
        assert failed["error"]["code"] == "invalid_request"
        assert "which it goes on from, is gone" in failed["error"]["message"]

    serving(tmp_path, scene, runner=held(1), generators=1)


def test_events_tell_the_whole_story_and_go_on_where_a_viewer_left(tmp_path: Path) -> None:
    async def scene(running: Endpoint) -> None:
        running.runner.live.branches = {"0": {"standing": "running"}, "1": {"standing": "cut"}}
        running.runner.live.summary = {"spent": {"total": 1.5}}
        running.runner.live.previews = {"0": b"a strip"}
        video = (await running.post(prompt=PROMPT, seed=1)).json()
        await running.until(video["id"], "in_progress")
        place = f"/v1/videos/{video['id']}"
        tree = (await running.client.get(f"{place}/tree")).json()
        assert tree["branches"]["1"] == {"standing": "cut"}
        assert (await running.client.get(f"{place}/branches/0/preview")).content == b"a strip"
        assert (await running.client.get(f"{place}/branches/7/preview")).status_code == 404
        running.runner.gates[1].set()
        await running.until(video["id"], "completed")
        stream = (await running.client.get(f"{place}/events")).text
        told = [dict(line.split(": ", 1) for line in each.splitlines()) for each in stream.strip().split("\n\n")]
        kinds = [each["event"] for each in told]
        assert kinds[0] == "started"
        assert kinds[-1] == "status"
        assert sorted(kinds) == ["branch", "branch", "progress", "started", "status", "summary"]
        assert json.loads(told[-1]["data"])["status"] == "completed"
        last = {"Last-Event-ID": told[-2]["id"]}
        rest = (await running.client.get(f"{place}/events", headers=last)).text
        assert rest.count("event: ") == 1
        assert (await running.client.get(f"{place}/tree")).json() == {"branches": {}, "winner": "0"}
        assert (await running.client.get(f"{place}/report")).json() == {"seed": 1}

    serving(tmp_path, scene, runner=held(1))


def test_who_waits_for_the_file_gets_it(tmp_path: Path) -> None:
    async def scene(running: Endpoint) -> None:
        headers = {"content-type": "application/json"}
        body = json.dumps({"prompt": PROMPT, "seed": 5})
        answer = await running.client.post("/v1/videos/sync", content=body, headers=headers)
        assert (answer.status_code, answer.content) == (200, f"{PROMPT} from 5".encode())
        assert (await running.video(answer.headers["x-video-id"]))["status"] == "completed"

    serving(tmp_path, scene)


def test_fields_of_other_servers_mean_what_they_say(tmp_path: Path) -> None:
    async def scene(running: Endpoint) -> None:
        await finished(
            running,
            num_frames=13,
            fps=4,
            width=130,
            height=60,
            size_policy="nearest",
            seed=-1,
            negative_prompt="",
            num_inference_steps=4,
            guidance_scale=1.5,
            user="somebody",
        )
        asked = running.runner.asked[0]
        assert (asked.units, asked.frames, asked.fps) == (3, 13, 4)
        assert (asked.width, asked.height) == (128, 64)
        assert asked.seed >= 0
        assert asked.sampling.asked == {"negative": "", "steps": 4, "guidance": 1.5}
        shown = (await running.client.get("/v1/videos")).json()["data"][0]
        assert (shown["seconds"], shown["user"], shown["size"]) == ("3.25", "somebody", "128x64")
        exact = await finished(running, seconds="1.6")
        assert (running.runner.asked[1].frames, exact["seconds"]) == (13, "1.6")

    serving(tmp_path, scene)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"seconds": 2, "num_frames": 9}, "seconds and num_frames both say how long the video is"),
        ({"width": 64}, "width and height belong together"),
        ({"size": "64x64", "width": 128, "height": 64}, "size is 64x64 and width x height is another"),
        ({"n": 0}, "n must be at least 1, not 0"),
        ({"n": 9}, "n is 9: a request may ask for 8 videos at most"),
        ({"n": 2, "seed": 2**63 - 1}, "the last of 2 seeds from 9223372036854775807 is too large"),
        ({"search": {"verifiers": ["eye", "ear"]}}, "search.verifiers 'ear' is unknown: choose among eye, signals"),
        ({"search": {"verifiers": {"eye": 0}}}, "one of the weights must be above 0"),
        ({"search": {"verifiers": []}}, "search.verifiers"),
        ({"search": {"verifiers": {"eye": -1}}}, "search.verifiers.eye must be at least 0"),
        ({"metadata": {"a" * 65: "b"}}, "metadata has up to 16 keys"),
        ({"search": {"budget": "64x"}, "size": "1024x1024"}, "at most 64 are allowed"),
        ({"negative_prompt": "a\x00b"}, "which is no text"),
    ],
)
def test_fields_that_contradict_each_other_are_refused(tmp_path: Path, fields: dict[str, Any], says: str) -> None:
    async def scene(running: Endpoint) -> None:
        answer = await running.post(prompt=PROMPT, **fields)
        assert answer.status_code == 400, answer.text
        assert says in answer.json()["error"]["message"]

    serving(tmp_path, scene)


def test_a_model_says_what_a_request_may_ask_for(tmp_path: Path) -> None:
    async def scene(running: Endpoint) -> None:
        model = (await running.client.get("/v1/models/digits")).json()
        assert (model["size"], model["fps"], model["seconds"], model["most_budget"]) == ("64x64", 8, 3.125, "64x")
        assert model["most_videos"] == 8
        assert model["policies"]["dfs"]["description"] == "goes back"
        missing = await running.client.get("/v1/models/veo")
        assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")
        assert (await running.client.get("/healthz")).json() == {"status": "ok"}
        assert (await running.client.get("/readyz")).json() == {"status": "ok"}
        for number in range(3):
            unknown = await running.client.request(f"MADEUP{number}", "/v1/videos")
            assert unknown.status_code == 405
            assert "POST" in unknown.headers["allow"]
        figures = (await running.client.get("/metrics")).text
        assert set(re.findall(r'method="(\w+)"', figures)) == {"GET", "OTHER"}
        assert 'http_requests_total{handler="/v1/models/{name}",method="GET",status="2xx"} 1.0' in figures
        assert "framegrove_videos_waiting 0.0" in figures
        video = (await running.post(prompt=PROMPT, seed=1)).json()
        asked = await running.client.get(f"/v1/videos/{video['id']}")
        assert asked.headers["openai-poll-after-ms"] == "1000"

    serving(tmp_path, scene, runner=held(1))


def test_finished_videos_are_kept_as_long_as_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(making, "TIDY_EVERY", 0.02)

    async def scene(running: Endpoint) -> None:
        video = await finished(running)
        assert video["expires_at"] == pytest.approx(video["completed_at"] + 1, abs=1)
        for _ in range(500):
            if (await running.client.get(f"/v1/videos/{video['id']}")).status_code == 404:
                break
            await asyncio.sleep(0.01)
        assert (await running.client.get("/v1/videos")).json()["data"] == []

    serving(tmp_path, scene, keep_days=1 / 86_400)


def test_every_key_sees_its_own_videos_only(tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    mine, yours = (add_key(keys, name) for name in ("me", "you"))

    async def scene(running: Endpoint) -> None:
        async def ask(secret: str, method: str, place: str, **more: Any) -> Any:
            headers = {"Authorization": f"Bearer {secret}"}
            return await running.client.request(method, place, headers=headers, **more)

        assert (await running.client.get("/v1/videos")).status_code == 401
        assert (await running.client.get("/")).status_code == 200
        made = await ask(mine, "POST", "/v1/videos/sync", json={"prompt": PROMPT, "seed": 1})
        place = f"/v1/videos/{made.headers['x-video-id']}"
        for method, path in (
            ("GET", place),
            ("DELETE", place),
            ("POST", f"{place}/cancel"),
            ("GET", f"{place}/content"),
            ("GET", f"{place}/events"),
            ("GET", f"{place}/tree"),
            ("GET", f"{place}/report"),
        ):
            assert (await ask(yours, method, path)).status_code == 404, path
        for path, body in (
            (f"{place}/remix", {"prompt": PROMPT}),
            ("/v1/videos/extensions", {"video": {"id": made.headers["x-video-id"]}, "prompt": PROMPT, "seconds": "1"}),
        ):
            assert (await ask(yours, "POST", path, json=body)).status_code == 404, path
        assert (await ask(yours, "GET", "/v1/videos")).json()["data"] == []
        assert len((await ask(mine, "GET", "/v1/videos")).json()["data"]) == 1
        assert (await ask(mine, "GET", f"{place}/content")).status_code == 200

    serving(tmp_path / "videos", scene, keys=keys)


def test_the_page_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    async def scene(running: Endpoint) -> None:
        page = await running.client.get("/")
        assert "default-src 'self'" in page.headers["content-security-policy"]
        for name in ("main.js", "api.js", "tree.js", "lanes.js", "style.css", "icon.svg"):
            assert f"page/{name}" in page.text or name in ("api.js", "tree.js", "lanes.js")
            file = await running.client.get(f"/page/{name}")
            assert file.status_code == 200
            assert "http://" not in file.text.replace("http://www.w3.org/", "")
            assert "https://" not in file.text
        assert (await running.client.get("/page/../web.py")).status_code == 404

    serving(tmp_path, scene)
