"""The endpoint in Ray Serve, over HTTP, with real but tiny, untrained models: quality does not matter here."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import openai
import psutil
import pytest
import ray
from ray import serve
from ray.util.state import list_actors

from actors.ingress import application
from framegrove.cluster.serving import shut_down
from framegrove.cluster.session import Cluster
from framegrove.config.model import ModelSource
from framegrove.config.serve import ServeConfig
from framegrove.config.verifier import load_panel
from framegrove.media.writing import decode_mp4
from framegrove.search.policies.dfs import DfsOptions
from tests.films import panned, recorded, scenery
from tests.tiny import save_tiny, save_tiny_verifier

pytestmark = pytest.mark.timeout(1200)

PROMPT = "a red 3 moves left and right"


@pytest.fixture(scope="module")
def client(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    """An OpenAI client of an endpoint on this machine."""
    folder = tmp_path_factory.mktemp("serve")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = ServeConfig(
        port=port,
        models=tuple(ModelSource(name=str(save_tiny(folder / name))) for name in ("tiny", "other")),
        verifier=load_panel(str(save_tiny_verifier(folder / "verifier"))),
        generators=1,
        folder=folder / "videos",
        body_seconds=10,
    )
    serve.start(http_options={"host": config.host, "port": config.port})
    serve.run(application(config))
    yield openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
    shut_down()


def create(client: openai.OpenAI, seed: int, **search: str) -> Any:
    return client.videos.create(
        prompt=PROMPT, model="tiny", seconds="2", size="64x64", extra_body={"seed": seed, "search": search}
    )


def seen(client: openai.OpenAI, video_id: str, *statuses: str) -> Any:
    """The video once it has one of these statuses; a replica that is being replaced is waited for."""
    deadline, video = time.monotonic() + 900, None
    while time.monotonic() < deadline:
        try:
            video = client.videos.retrieve(video_id)
        except (openai.APIConnectionError, openai.InternalServerError):
            video = None
        if video is not None and video.status in statuses:
            return video
        time.sleep(0.5)
    raise AssertionError(f"{video_id} was not {' or '.join(statuses)} in time: {video}")


def replica_of(cluster: Cluster) -> Any:
    alive = [("class_name", "=", "ServeReplica:default:Ingress"), ("state", "=", "ALIVE")]
    (replica,) = list_actors(address=cluster.address, filters=alive, detail=True)
    return replica


@pytest.mark.usefixtures("client")
def test_the_replica_stays_with_its_folder_and_takes_no_cpu(cluster: Cluster) -> None:
    here, replica = ray.get_runtime_context().get_node_id(), replica_of(cluster)
    assert replica.node_id == here
    assert replica.label_selector == {"ray.io/node-id": here}
    assert not replica.required_resources


def test_a_killed_replica_costs_time_only(cluster: Cluster, client: openai.OpenAI) -> None:
    """A searched video, asked for with OpenAI's client, is made although the replica dies over it."""
    asked = create(client, seed=5, policy="tof", budget="2x")
    assert (asked.object, asked.status, asked.seconds, asked.size) == ("video", "queued", "2", "64x64")
    seen(client, asked.id, "in_progress")
    os.kill(replica_of(cluster).pid, signal.SIGKILL)
    done = seen(client, asked.id, "completed", "failed")
    assert (done.status, done.progress, done.error) == ("completed", 100, None)
    frames, fps = decode_mp4(client.videos.download_content(asked.id).read())
    assert (frames.shape, fps) == ((16, 64, 64, 3), 8)  # two seconds, although three units have 17 frames


def test_every_call_of_openais_client(client: openai.OpenAI) -> None:
    first = client.videos.create_and_poll(prompt=PROMPT, seconds="2", size="64x64", poll_interval_ms=200)  # type: ignore[arg-type]
    assert first.status == "completed"
    remix = client.videos.remix(first.id, prompt="a blue 5 moves up and down")
    assert remix.remixed_from_video_id == first.id
    seen(client, remix.id, "completed")
    assert [video.id for video in client.videos.list(limit=1, order="desc")][:2] == [remix.id, first.id]
    for variant, kind in (("video", b"ftyp"), ("thumbnail", b"WEBP"), ("spritesheet", b"WEBP")):
        content = client.videos.download_content(first.id, variant=variant).read()  # type: ignore[arg-type]
        assert kind in content[:16]
    assert client.videos.delete(remix.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.videos.retrieve(remix.id)


def test_a_script_for_vllm_omnis_server_works_unchanged(client: openai.OpenAI) -> None:
    """Form fields, polling, download and the synchronous route as in its documentation of the Videos API.

    https://docs.vllm.ai/projects/vllm-omni/en/latest/serving/videos_api/
    """
    fields = {"prompt": PROMPT, "width": "64", "height": "64", "num_frames": "9", "fps": "8", "seed": "42"}
    fields |= {"num_inference_steps": "2", "guidance_scale": "4.0", "negative_prompt": "blurry"}
    with httpx.Client(base_url=str(client.base_url).removesuffix("/v1/"), timeout=120) as http:
        form = {name: (None, value) for name, value in fields.items()}
        made = http.post("/v1/videos", files=form).raise_for_status().json()
        while (state := http.get(f"/v1/videos/{made['id']}").json())["status"] not in ("completed", "failed"):
            time.sleep(0.5)
        assert state["status"] == "completed", state
        frames, fps = decode_mp4(http.get(f"/v1/videos/{made['id']}/content").raise_for_status().content)
        assert (frames.shape, fps) == ((9, 64, 64, 3), 8)
        at_once = http.post("/v1/videos/sync", files=form).raise_for_status()
        assert at_once.headers["content-type"] == "video/mp4"
        assert np.array_equal(decode_mp4(at_once.content)[0], frames), "the same seed"
        assert any(each["id"] == made["id"] for each in http.get("/v1/videos").json()["data"])
        assert http.delete(f"/v1/videos/{made['id']}").json()["deleted"]


def test_each_model_has_actors_of_its_own(cluster: Cluster, client: openai.OpenAI) -> None:
    models = list(client.models.list())
    assert [model.id for model in models] == ["tiny", "other"]
    dfs = models[0].model_dump()["policies"]["dfs"]
    assert dfs["defaults"].keys() == dfs["options"].keys()
    assert dfs["defaults"]["accept"] == DfsOptions().accept
    asked = client.videos.create(prompt=PROMPT, model="other", seconds="1", size="64x64")  # type: ignore[arg-type]
    assert seen(client, asked.id, "completed", "failed").status == "completed"
    filters = [("class_name", "=", "Generator"), ("state", "=", "ALIVE")]
    assert len(list_actors(address=cluster.address, filters=filters)) == 2
    with pytest.raises(openai.NotFoundError, match="there is no model 'sora-2' here, only tiny, other"):
        client.videos.create(prompt=PROMPT, model="sora-2")


def test_a_search_is_watched_and_cancelled_while_it_goes_on(client: openai.OpenAI) -> None:
    """Its events come through Ray Serve's proxy as they happen, its tree and previews are there, and it stops."""
    video = create(client, seed=6, policy="beam", budget="60x")
    kinds, branches = set[str](), dict[str, Any]()
    with httpx.stream("GET", f"{client.base_url}videos/{video.id}/events", timeout=300) as events:
        kind = ""
        for line in events.iter_lines():
            name, _, text = line.partition(": ")
            if name == "event":
                kind = text
                kinds.add(kind)
            elif name == "data" and kind == "branch":
                facts = json.loads(text)
                branches[facts["id"]] = facts
                if any(facts["scores"] for facts in branches.values()) and video.status != "cancelled":
                    judged = next(id for id, facts in branches.items() if facts["scores"])
                    preview = httpx.get(f"{client.base_url}videos/{video.id}/branches/{judged}/preview", timeout=60)
                    assert preview.headers["content-type"] == "image/webp"
                    tree = httpx.get(f"{client.base_url}videos/{video.id}/tree", timeout=60).json()
                    assert judged in tree["branches"]
                    began = time.monotonic()
                    answer = httpx.post(f"{client.base_url}videos/{video.id}/cancel", json={}, timeout=60)
                    video.status = answer.json()["status"]
                    assert time.monotonic() - began < 20
    assert video.status == "cancelled"
    assert {"started", "branch", "summary", "status"} <= kinds
    assert seen(client, create(client, seed=7, policy="single").id, "completed")


def test_bad_requests_are_told_in_a_sentence(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="the prompt is empty"):
        client.videos.create(prompt=" ")
    with pytest.raises(openai.BadRequestError, match="multiples of 64"):
        client.videos.create(prompt=PROMPT, size="100x64")  # type: ignore[arg-type]
    with pytest.raises(openai.NotFoundError, match="there is no video"):
        client.videos.retrieve("video_0")


def test_half_sent_bodies_leave_everybody_else_an_endpoint(cluster: Cluster, client: openai.OpenAI) -> None:
    """More of them than the replica takes requests: behind Ray Serve's proxy, too, they are turned away or time out."""
    replica, place = replica_of(cluster).pid, (client.base_url.host, client.base_url.port)
    head = (
        f"POST /v1/videos HTTP/1.1\r\nHost: {place[0]}\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n"
    )
    with contextlib.ExitStack() as held:
        stalled = [held.enter_context(socket.create_connection(place, timeout=60)) for _ in range(300)]
        for each in stalled:
            each.sendall(head.encode() + b'{"prompt": ')
        for _ in range(5):
            assert client.models.list(timeout=10).data
        statuses = [each.recv(2**16).split(b" ")[1] for each in stalled]
    assert set(statuses) == {b"408", b"503"}
    assert statuses.count(b"408") <= 2 * ServeConfig().reading  # a place may be taken a second time
    assert client.videos.create(prompt=PROMPT, timeout=30).status == "queued"
    assert replica_of(cluster).pid == replica, "no request ends the replica"


def test_a_video_goes_on_from_another_one(client: openai.OpenAI) -> None:
    """The new video begins with all frames of the old one, bit for bit but for the file's compression."""
    first = seen(client, create(client, seed=8, policy="single").id, "completed")
    asked = {"video": {"id": first.id}, "prompt": PROMPT, "seconds": "1", "search": {"budget": "2x"}}
    answer = httpx.post(f"{client.base_url}videos/extensions", json=asked, timeout=60)
    assert answer.status_code == 200, answer.text
    longer = seen(client, answer.json()["id"], "completed", "failed")
    assert longer.status == "completed", longer.error
    before, after = (decode_mp4(client.videos.download_content(each.id).read())[0] for each in (first, longer))
    assert (len(before), len(after)) == (16, 25)
    assert np.abs(after[:16].astype(int) - before.astype(int)).mean() < 3


def test_a_video_goes_on_from_an_uploaded_clip(client: openai.OpenAI) -> None:
    """A camera's clip in a form: the video begins with it as the model's VAE sees it, and with nothing of it lost."""
    clip = recorded(panned(scenery(3), 60, 2), 24, "mov", sound=True)  # two and a half seconds
    form = {"prompt": PROMPT, "seconds": "1", "search[budget]": "2x"}
    answer = httpx.post(
        f"{client.base_url}videos/extensions", data=form, files={"video": ("clip.mov", clip)}, timeout=60
    )
    assert answer.status_code == 200, answer.text
    longer = seen(client, answer.json()["id"], "completed", "failed")
    assert longer.status == "completed", longer.error
    frames, fps = decode_mp4(client.videos.download_content(longer.id).read())
    assert (frames.shape, fps, longer.seconds) == ((25, 64, 64, 3), 8, "3.125")
    again = {"video": {"id": longer.id}, "prompt": PROMPT, "seconds": "1", "search": {"policy": "single"}}
    longest = httpx.post(f"{client.base_url}videos/extensions", json=again, timeout=60).json()
    assert seen(client, longest["id"], "completed", "failed").status == "completed"
    refused = httpx.post(
        f"{client.base_url}videos/extensions", data=form, files={"video": ("clip.mov", clip[:-100])}, timeout=60
    )
    assert (refused.status_code, "half a file" in refused.text) == (400, True)


def test_a_caller_that_hangs_up_ends_the_decoding_of_its_clip(cluster: Cluster, client: openai.OpenAI) -> None:
    replica = psutil.Process(replica_of(cluster).pid)

    def decoding() -> list[psutil.Process]:
        return [each for each in replica.children() if "framegrove.serving.decode_clip" in each.cmdline()]

    def until(count: int) -> list[psutil.Process]:
        for _ in range(3000):
            with contextlib.suppress(psutil.NoSuchProcess):
                if len(found := decoding()) == count:
                    return found
            time.sleep(0.01)
        raise AssertionError(f"there are never {count} processes that decode a clip")

    clip = recorded(panned(scenery(3), 60, 2), 24)
    form = {"prompt": PROMPT, "seconds": "1"}
    with ThreadPoolExecutor(1) as caller:
        address = f"{client.base_url}videos/extensions"
        call = caller.submit(httpx.post, address, data=form, files={"video": ("clip.mp4", clip)}, timeout=15)
        until(1)[0].suspend()
        with pytest.raises(httpx.ReadTimeout):
            call.result()
    until(0)


@contextlib.contextmanager
def suspended(cluster: Cluster) -> Iterator[None]:
    """Generators that stand still: what is in progress stays so."""
    filters = [("class_name", "=", "Generator"), ("state", "=", "ALIVE")]
    workers = [psutil.Process(actor.pid) for actor in list_actors(address=cluster.address, filters=filters)]
    assert workers
    for worker in workers:
        worker.suspend()
    try:
        yield
    finally:
        for worker in workers:
            worker.resume()


def test_of_300_requests_at_once_as_many_are_accepted_as_there_are_places(
    cluster: Cluster, client: openai.OpenAI
) -> None:
    """Through Ray Serve's proxy: a full queue is a 429 that says when to ask again, for everybody but those inside."""
    held = create(client, seed=9, policy="beam", budget="60x")
    while not seen(client, held.id, "in_progress").progress:  # its generators are there
        time.sleep(0.1)

    async def burst() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=300)
        async with httpx.AsyncClient(timeout=120, limits=limits) as many:
            body = {"prompt": PROMPT, "seconds": "1", "search": {"policy": "single"}}
            return await asyncio.gather(*(many.post(f"{client.base_url}videos", json=body) for _ in range(300)))

    with suspended(cluster):
        answers = asyncio.run(burst())
        waiting = client.videos.list(limit=100, order="asc").data
    accepted = [answer.json()["id"] for answer in answers if answer.status_code == 200]
    turned_away = [answer for answer in answers if answer.status_code != 200]
    assert {answer.status_code for answer in turned_away} <= {429, 503}
    assert all(int(answer.headers["retry-after"]) > 0 for answer in turned_away)
    assert {video.id for video in waiting if video.status == "queued"} == set(accepted)
    assert len(accepted) == ServeConfig().waiting
    for video_id in [*accepted, held.id]:
        httpx.delete(f"{client.base_url}videos/{video_id}", timeout=60)
