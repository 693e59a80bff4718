"""The endpoint's driver: what it does when something is killed under it, or when it is ended or killed itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from framegrove.cluster.serving import HAPROXY
from framegrove.cluster.session import Cluster
from framegrove.serving.auth import FAILURES_PER_MINUTE
from framegrove.serving.keys import add_key, remove_key
from tests.processes import TAKING_INTERRUPTS, marked
from tests.tiny import save_tiny, save_tiny_verifier

pytestmark = pytest.mark.timeout(300)

ROOT = Path(__file__).resolve().parents[2]
MARK = "FRAMEGROVE_SERVE_DRIVER"  # in the environment of the driver, and so of everything that it starts
RAYLET, GCS = "/raylet/raylet", "/gcs/gcs_server"
PROMPT = "a red 3 moves left and right"
PANEL = "verifiers: [{name: contrast, kind: callable, function: 'framegrove.verification.examples:contrast'}]\n"
LIMIT = 15.0  # seconds until nothing is left of a cluster whose driver has ended


class Driver:
    """``python -m jobs.serve`` with a tiny model, which serves by the time this is made.

    ``judged``: a tiny vision-language model judges in vLLM, a process more to leave behind, and half a minute to start.
    """

    def __init__(
        self, folder: Path, *options: str, cluster: str | None = None, judged: bool = False, **environment: str
    ) -> None:
        self.name = uuid.uuid4().hex
        given = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        environment = given | environment | {MARK: self.name}
        if cluster is not None:
            environment["RAY_ADDRESS"] = cluster
        command = [sys.executable, "-m", "jobs.serve", "--port", "0", "--folder", str(folder / "videos")]
        panel = folder / "panel.yaml"
        panel.write_text(PANEL)
        verifier = save_tiny_verifier(folder / "verifier") if judged else panel
        models = ["--model", str(save_tiny(folder / "tiny")), "--verifier", str(verifier)]
        self.log = folder / "console.txt"
        with self.log.open("w") as console:
            self.process = subprocess.Popen(
                [*TAKING_INTERRUPTS, *command, *models, "--generators", "1", *options],
                cwd=ROOT,
                env=environment,
                stdout=console,
                stderr=console,
            )
        self.url = self._url()

    def _url(self) -> str:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and self.process.poll() is None:
            said = self.console().partition("serving on ")[2].partition("/v1/videos")
            if said[1]:
                return said[0]
            time.sleep(0.2)
        raise AssertionError(f"it did not serve: {self.console()}")

    def console(self) -> str:
        return self.log.read_text()

    def processes(self, program: str = "") -> list[int]:
        """Living processes that hang on this driver, itself included: all, or those of one program."""
        return marked(MARK, self.name, program)

    def ended(self, limit: float) -> int:
        """Its exit status; nothing that it has started is left within LIMIT."""
        status = self.process.wait(limit)
        deadline = time.monotonic() + LIMIT
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert not left
        return status

    def end(self) -> None:
        for pid in self.processes():
            os.kill(pid, signal.SIGKILL)
        self.process.wait()


def asked(url: str, secret: str, client: str) -> tuple[int, str]:
    """Status and body of an answer to somebody whom a proxy on this machine says to be at the address ``client``."""
    headers = {"Authorization": f"Bearer {secret}", "X-Forwarded-For": client}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_keys_come_and_go_at_an_endpoint_that_runs(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    alice = add_key(path, "alice")
    driver = Driver(tmp_path, "--keys", str(path))
    try:
        models, health = f"{driver.url}/v1/models", f"{driver.url}/healthz"
        assert asked(health, "", "203.0.113.9")[0] == 200
        assert asked(models, alice, "203.0.113.9")[0] == 200
        failures = [asked(models, "fg_wrong", "203.0.113.9") for _ in range(FAILURES_PER_MINUTE + 1)]
        assert [status for status, _ in failures] == [401] * FAILURES_PER_MINUTE + [429]
        assert "came from 203.0.113.9" in failures[-1][1]
        assert asked(models, "fg_wrong", "203.0.113.10")[0] == 401
        bob = add_key(path, "bob")
        remove_key(path, "alice")
        assert asked(models, bob, "203.0.113.9")[0] == 200
        assert asked(models, alice, "203.0.113.10")[0] == 401
    finally:
        driver.end()


@pytest.fixture
def driver(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Driver]:
    serving = Driver(tmp_path, judged=getattr(request, "param", True))
    try:
        yield serving
    finally:
        serving.end()


@pytest.mark.parametrize(
    ("driver", "program", "says"),
    [(True, RAYLET, "is gone"), (False, GCS, "the control service (GCS) of the Ray cluster at")],
    indirect=["driver"],
    ids=["raylet", "gcs"],
)
def test_a_cluster_that_is_killed_ends_the_driver_for_a_supervisor_to_start_again(
    driver: Driver, program: str, says: str
) -> None:
    (victim,) = driver.processes(program)
    os.kill(victim, signal.SIGKILL)
    assert driver.ended(30) == 3, driver.console()
    (line,) = [line for line in driver.console().splitlines() if line.startswith("error:")]
    assert says in line
    assert line.endswith("unfinished videos are kept: start the endpoint again")


def test_a_killed_driver_leaves_no_process(driver: Driver) -> None:
    assert len(driver.processes()) > 5
    driver.process.kill()
    assert driver.ended(5) == -signal.SIGKILL


@pytest.mark.long
def test_a_driver_takes_the_place_of_one_that_was_killed(cluster: Cluster, tmp_path: Path) -> None:
    """On a cluster that goes on, its endpoint goes on, too: the next driver upgrades it, and ends it in the end."""
    first = Driver(tmp_path, cluster=cluster.address)
    video = httpx.post(
        f"{first.url}/v1/videos", json={"prompt": PROMPT, "search": {"policy": "beam", "budget": "60x"}}, timeout=60
    ).json()["id"]
    first.process.kill()
    first.process.wait()
    assert httpx.get(f"{first.url}/healthz", timeout=60).status_code == 200, "it is still served"
    with pytest.raises(AssertionError, match=r"has no second address: give --host 127\.0\.0\.1 --port \d+"):
        Driver(tmp_path, "--port", "1", cluster=cluster.address)
    assert httpx.get(f"{first.url}/healthz", timeout=60).status_code == 200, "a mistake does not end it"
    second = Driver(tmp_path, "--set", "waiting=7", cluster=cluster.address)
    try:
        assert "a driver that was killed has left its endpoint running: this one takes its place" in second.console()
        assert second.url == first.url
        assert httpx.get(f"{second.url}/v1/videos/{video}", timeout=60).json()["status"] in (
            "queued",
            "in_progress",
            "completed",
        )
        with pytest.raises(
            AssertionError, match=r"error: process \d+ on \S+ serves Framegrove on this cluster already"
        ):
            Driver(tmp_path, cluster=cluster.address)
        second.process.send_signal(signal.SIGTERM)
        assert second.process.wait(60) == 130, second.console()
    finally:
        second.end()
        first.end()
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{first.url}/healthz", timeout=60)


@pytest.mark.long
def test_haproxy_answers_where_it_is_asked_for(tmp_path: Path) -> None:
    secret = add_key(tmp_path / "keys.json", "alice")
    driver = Driver(tmp_path, "--keys", str(tmp_path / "keys.json"), **{HAPROXY: "1"})
    try:
        port = int(driver.url.rpartition(":")[2])
        open_ports = [each for each in psutil.net_connections("tcp") if each.status == psutil.CONN_LISTEN]
        listening = [each.pid for each in open_ports if each.laddr[1] == port]
        assert [psutil.Process(pid).name() for pid in listening] == ["haproxy"]
        claimed = [f"203.0.113.{number}" for number in range(FAILURES_PER_MINUTE + 1)]
        failures = [asked(f"{driver.url}/v1/models", "fg_wrong", client) for client in claimed]
        assert [status for status, _ in failures] == [401] * FAILURES_PER_MINUTE + [429], "nobody chooses an address"
        body = {"prompt": PROMPT, "size": "64x64", "search": {"policy": "single"}}
        headers = {"Authorization": f"Bearer {secret}"}
        with httpx.Client(base_url=f"{driver.url}/v1", headers=headers, timeout=60) as client:
            video = client.post("/videos", json=body).json()["id"]
            with client.stream("GET", f"/videos/{video}/events") as events:
                assert '"status": "completed"' in "".join(events.iter_text())
            found = client.get(f"/videos/{video}/content", headers={"Range": "bytes=0-99"})
        assert (found.status_code, len(found.content)) == (206, 100)
        driver.process.send_signal(signal.SIGTERM)
        assert driver.ended(20) == 130, driver.console()
        assert driver.console().splitlines()[3:] == ["stopped"]
    finally:
        driver.end()


@pytest.mark.parametrize(
    ("driver", "ending"), [(True, signal.SIGTERM), (False, signal.SIGINT)], indirect=["driver"], ids=["term", "int"]
)
def test_it_is_ended_without_a_complaint(driver: Driver, ending: signal.Signals) -> None:
    with urllib.request.urlopen(f"{driver.url}/v1/models", timeout=30) as answer:
        assert answer.status == 200
    driver.process.send_signal(ending)
    assert driver.ended(60) == 130, driver.console()
    told = [line.split(" ")[0] for line in driver.console().splitlines()]
    assert told == ["starting", "serving", "the", "stopped"], driver.console()
