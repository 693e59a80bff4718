"""deploy/serve.yaml on a cluster, and what clients see when it is deployed again with a change."""

from __future__ import annotations

import copy
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

from framegrove.cluster.serving import applications, is_from_a_file, shut_down
from framegrove.cluster.session import Cluster
from tests.tiny import save_tiny, save_tiny_verifier

pytestmark = pytest.mark.timeout(900)

ROOT = Path(__file__).resolve().parents[2]
PROMPT = "a red 3 moves left and right"


@pytest.fixture
def manifest(cluster: Cluster, tmp_path: Path) -> Iterator[dict[str, Any]]:
    """deploy/serve.yaml with tiny models, for this machine alone; Ray Serve listens where it says."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        place = {"host": "127.0.0.1", "port": probe.getsockname()[1]}
    given: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "serve.yaml").read_text(encoding="utf-8"))
    (application,) = given["applications"]
    given["http_options"] = place
    application["runtime_env"] = {"working_dir": f"local://{ROOT}", "env_vars": {"PYTHONPATH": str(ROOT / "platform")}}
    application["args"] = {
        **place,
        "folder": str(tmp_path / "videos"),
        "models": [{"name": str(save_tiny(tmp_path / "tiny"))}],
        "verifier": {"verifiers": [{"engine": {"model": str(save_tiny_verifier(tmp_path / "verifier"))}}]},
        "generators": 1,
        "searches": 2,
    }
    serve.start(http_options=place)
    yield given
    shut_down()


def deploy(manifest: dict[str, Any], *, blocking: bool = True, **changed: Any) -> None:
    """What `serve deploy` does with a file; if ``blocking``, returns once the application runs."""
    given = copy.deepcopy(manifest)
    given["applications"][0]["args"].update(changed)
    client = _get_global_client()
    assert client is not None
    client.deploy_apps(ServeDeploySchema.model_validate(given), _blocking=blocking)


class Clients:
    """What clients of an endpoint see while ``going``: each asks again and again, in a thread of its own."""

    def __init__(self, place: str) -> None:
        self.place = place
        self.accepted: list[str] = []
        self.answers: list[tuple[str, httpx.Response]] = []
        self.failures: list[tuple[str, Exception]] = []
        self._stop = threading.Event()
        asking: list[tuple[Callable[[], None], float]] = [(self._post, 1.0), (self._poll, 0.2), (self._watch, 0.2)]
        self._threads = [threading.Thread(target=self._repeat, args=each) for each in asking]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _repeat(self, ask: Callable[[], None], pause: float) -> None:
        while not self._stop.wait(pause):
            try:
                ask()
            except httpx.HTTPError as error:
                self.failures.append((ask.__name__, error))

    def _post(self) -> None:
        body = {"prompt": PROMPT, "seed": len(self.accepted), "size": "64x64", "search": {"policy": "single"}}
        answer = httpx.post(f"{self.place}/v1/videos", json=body, timeout=120)
        self.answers.append(("post", answer))
        if answer.status_code == 200:
            self.accepted.append(answer.json()["id"])

    def _poll(self) -> None:
        self.answers.append(("poll", httpx.get(f"{self.place}/v1/videos", timeout=120)))

    def _watch(self) -> None:
        """The events of a video, to the end of the stream."""
        if self.accepted:
            events = f"{self.place}/v1/videos/{self.accepted[-1]}/events"
            self.answers.append(("events", httpx.get(events, timeout=120)))


@pytest.mark.long
def test_an_upgrade_drops_no_request(manifest: dict[str, Any]) -> None:
    """Requests are held until the new replica is there; what was accepted is made once; who waits is told to return."""
    place = "http://{host}:{port}".format(**manifest["http_options"])
    deploy(manifest)
    found = applications()
    assert found is not None
    assert is_from_a_file(found["framegrove"])
    long = httpx.post(
        f"{place}/v1/videos",
        json={"prompt": PROMPT, "size": "64x64", "search": {"policy": "beam", "budget": "60x"}},
        timeout=120,
    ).json()["id"]
    clients = Clients(place)
    waiting = threading.Thread(target=lambda: clients.answers.append(("sync", sync(place))))
    waiting.start()
    time.sleep(8)
    began = time.monotonic()
    deploy(manifest, waiting=50)
    took = time.monotonic() - began
    time.sleep(5)
    clients.stop()
    waiting.join()
    held = max(answer.elapsed.total_seconds() for kind, answer in clients.answers if kind in ("post", "poll"))
    print(f"the upgrade took {took:.1f} s, and no answer longer than {held:.1f} s")
    assert not clients.failures
    refused = [(kind, answer) for kind, answer in clients.answers if answer.status_code != 200]
    assert all(answer.status_code == 503 and "retry-after" in answer.headers for _, answer in refused), refused
    assert [kind for kind, _ in refused] == ["sync"], "nobody else was refused"
    assert "the endpoint is being restarted, and will continue video_" in refused[0][1].json()["error"]["message"]
    httpx.post(f"{place}/v1/videos/{long}/cancel", json={}, timeout=60)
    assert_made_once(place, [*clients.accepted, long], long)
    assert took < 60


def sync(place: str) -> httpx.Response:
    body = {"prompt": PROMPT, "size": "64x64", "search": {"policy": "beam", "budget": "50x"}}
    return httpx.post(f"{place}/v1/videos/sync", json=body, timeout=300)


def assert_made_once(place: str, accepted: list[str], cancelled: str) -> None:
    """Every video that was accepted is there, and completed; the id of the one that was waited for is not known."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        videos = {each["id"]: each for each in httpx.get(f"{place}/v1/videos?limit=100", timeout=60).json()["data"]}
        (waited_for,) = set(videos) - set(accepted)
        if all(video["status"] == "completed" for name, video in videos.items() if name not in (cancelled, waited_for)):
            break
        time.sleep(1)
    assert len(set(accepted)) == len(accepted)
    assert set(accepted) <= set(videos)
    statuses = {video["status"] for name, video in videos.items() if name not in (cancelled, waited_for)}
    assert statuses == {"completed"}


@pytest.mark.long
def test_a_mistake_in_the_file_leaves_the_old_replica(manifest: dict[str, Any]) -> None:
    place = "http://{host}:{port}/v1/models".format(**manifest["http_options"])
    contrast = {"name": "contrast", "kind": "callable", "function": "framegrove.verification.examples:contrast"}
    manifest["applications"][0]["args"]["verifier"] = {"verifiers": [contrast]}  # nothing is judged here
    deploy(manifest)
    deploy(manifest, blocking=False, models=[{"name": "/nowhere"}])
    deadline = time.monotonic() + 300
    while (told := (applications() or {})["framegrove"]).status != "DEPLOY_FAILED" and time.monotonic() < deadline:
        assert httpx.get(place, timeout=30).json()["data"][0]["id"] == "tiny"
        time.sleep(1)
    assert "no model folder at /nowhere: give a folder that holds" in told.message
    assert httpx.get(place, timeout=30).json()["data"][0]["id"] == "tiny"
