"""Several models behind one endpoint: one record of videos, and actors of its own for each."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from actors.ingress import read_models
from framegrove.config.model import ModelSource
from framegrove.errors import UserError
from framegrove.serving.api import Model
from framegrove.serving.keys import Limits, add_key
from framegrove.serving.offers import Offer
from tests.endpoint import PROMPT, Endpoint, NoRoomNow, serving
from tests.fakes import FakeRunner
from tests.tiny import save_tiny


def test_a_requests_model_makes_its_video(tmp_path: Path) -> None:
    runners = {"clouds": FakeRunner()}

    async def scene(running: Endpoint) -> None:
        listed = (await running.client.get("/v1/models")).json()["data"]
        assert [model["id"] for model in listed] == ["digits", "clouds"]
        assert (await running.client.get("/v1/models/clouds")).json()["id"] == "clouds"
        first = (await running.post(prompt=PROMPT, seed=1)).json()
        second = (await running.post(prompt=PROMPT, seed=2, model="clouds")).json()
        assert (first["model"], second["model"]) == ("digits", "clouds")
        for video in (first, second):
            await running.until(video["id"], "completed")
        assert [asked.seed for asked in running.runner.asked] == [1]
        assert [asked.seed for asked in runners["clouds"].asked] == [2]
        for path, body in (
            (f"{second['id']}/remix", {"prompt": "a blue 5"}),
            ("extensions", {"video": {"id": second["id"]}, "prompt": PROMPT, "seconds": "1"}),
        ):
            later = (await running.client.post(f"/v1/videos/{path}", json=body)).json()
            assert later["model"] == "clouds"
            await running.until(later["id"], "completed")
        assert len(runners["clouds"].asked) == 3

    serving(tmp_path, scene, others=runners)


def test_what_a_sample_costs_is_counted_while_others_are_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered, described = threading.Event(), Offer.described

    def slowly(offer: Offer) -> Model:
        assert answered.wait(10), "nobody was answered meanwhile"
        return described(offer)

    async def scene(running: Endpoint) -> None:
        monkeypatch.setattr(Offer, "described", slowly)
        asked = [asyncio.create_task(running.client.get(f"/v1/models{name}")) for name in ("", "/digits")]
        await asyncio.sleep(0)
        assert (await running.client.get("/healthz")).status_code == 200
        answered.set()
        assert [answer.status_code for answer in await asyncio.gather(*asked)] == [200, 200]

    serving(tmp_path, scene)


def test_an_unknown_model_is_told_which_there_are(tmp_path: Path) -> None:
    async def scene(running: Endpoint) -> None:
        for answer in (
            await running.post(prompt=PROMPT, model="sora-2"),
            await running.client.get("/v1/models/sora-2"),
        ):
            assert answer.status_code == 404
            error = answer.json()["error"]
            assert error["message"] == "there is no model 'sora-2' here, only digits, clouds"
            assert (error["param"], error["code"]) == ("model", "not_found")

    serving(tmp_path, scene, others={"clouds": FakeRunner()})


def test_no_model_waits_for_anothers_actors(tmp_path: Path) -> None:
    """One whose actors find no room, or whose videos take all of its places, leaves the other's alone."""
    crowded = FakeRunner(no_start=NoRoomNow("no room now"))

    async def scene(running: Endpoint) -> None:
        stuck = (await running.post(prompt=PROMPT, seed=1, model="clouds")).json()["id"]
        running.runner.gates[2] = asyncio.Event()
        held = (await running.post(prompt=PROMPT, seed=2)).json()["id"]
        await running.until(held, "in_progress")
        behind = (await running.post(prompt=PROMPT, seed=3)).json()["id"]
        assert (await running.video(stuck))["status"] == "queued"
        assert (await running.video(behind))["queue_position"] == 0, "the other model's video is not before it"
        running.runner.gates[2].set()
        await running.until(behind, "completed")
        assert (await running.client.post(f"/v1/videos/{stuck}/cancel")).json()["status"] == "cancelled"

    serving(tmp_path, scene, others={"clouds": crowded}, searches=1)


def test_a_defect_of_one_model_costs_the_other_no_actors(tmp_path: Path) -> None:
    broken = FakeRunner(failure=RuntimeError("a defect"))

    async def scene(running: Endpoint) -> None:
        failed = (await running.post(prompt=PROMPT, model="clouds")).json()["id"]
        await running.until(failed, "failed")
        well = (await running.post(prompt=PROMPT)).json()["id"]
        await running.until(well, "completed")
        assert (broken.closed, running.runner.closed) == (1, 0)

    serving(tmp_path, scene, others={"clouds": broken})


def test_owners_take_turns_and_have_one_quota_over_all_models(tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    secret = add_key(keys, "alice", Limits(flops_per_day=1))

    async def scene(running: Endpoint) -> None:
        running.client.headers["Authorization"] = f"Bearer {secret}"
        for model in ("digits", "clouds"):
            answer = await running.post(prompt=PROMPT, model=model)
            assert answer.status_code == 429
            assert answer.json()["error"]["code"] == "quota_exceeded"

    serving(tmp_path / "serve", scene, others={"clouds": FakeRunner()}, keys=keys)


def test_videos_of_a_model_that_is_gone_wait_for_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ids: list[str] = []

    async def asked(running: Endpoint) -> None:
        ids.append((await running.post(prompt=PROMPT, seed=4, model="clouds")).json()["id"])
        await running.until(ids[0], "in_progress")

    async def without(running: Endpoint) -> None:
        video = (await running.post(prompt=PROMPT)).json()["id"]
        await running.until(video, "completed")
        assert (await running.video(ids[0]))["status"] == "queued"
        remix = await running.client.post(f"/v1/videos/{ids[0]}/remix", json={"prompt": PROMPT})
        assert remix.status_code == 404
        assert remix.json()["error"]["message"] == "there is no model 'clouds' here, only digits"

    async def again(running: Endpoint) -> None:
        await running.until(ids[0], "completed")

    held = FakeRunner()
    held.gate.clear()
    serving(tmp_path, asked, others={"clouds": held})
    serving(tmp_path, without)
    assert "1 videos wait for the model clouds: serve it again" in caplog.text
    serving(tmp_path, again, others={"clouds": FakeRunner()})


def test_two_models_of_one_name_are_refused(tmp_path: Path) -> None:
    sources = [ModelSource(name=str(save_tiny(tmp_path / place / "tiny"))) for place in ("a", "b")]
    assert [files.name for files in read_models(sources[:1])] == ["tiny"]
    with pytest.raises(UserError, match="two models are called tiny, and requests choose by name"):
        read_models(sources)
