"""The bench of an endpoint that is killed at random: its replica, driver, raylet, proxy, generators and verifiers.

A supervisor starts the driver again whenever it ends, as systemd would (deploy/framegrove.service); clients repeat a
request under its Idempotency-Key until they have an answer. What is conserved: every request becomes one video, that
video is finished, and its bytes are those that an endpoint makes which nobody disturbs.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import httpx
    import torch

    from framegrove.evaluation.benches import Finding

KILLS = 50
EVERY = (3.0, 9.0)  # seconds between two kills, once the endpoint answers again
SEEDS = 6  # different videos
_AT_A_TIME = 4  # requests that are under way
_PAUSE = 1.0
_PATIENCE = 600.0  # seconds for an endpoint that was left alone to finish what it has
_UNDER_FIRE = _PATIENCE + 60.0 * KILLS  # seconds for a request: videos that take longer than kills are apart wait
_MARK = "FRAMEGROVE_SURVIVAL"
PROMPT = "a red 3 moves left and right"
_PANEL = "verifiers: [{name: signals, kind: signals}]\n"  # back within seconds, as generators are

# How the victims are called in the list of processes. Whoever dies with them, dies with them.
VICTIMS = {
    "replica": "ray::ServeReplica",
    "proxy": "ray::ProxyActor",
    "generator": "ray::Generator",
    "verifier": "ray::SignalsVerifier",
    "raylet": "raylet",
    "driver": "jobs.serve",
}


def survival(device: torch.device, repeats: int) -> list[Finding]:
    """How many requests become the right video, once, beside 50 kills; the arguments are not heeded."""
    from framegrove.evaluation.benches import Finding

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        with endpoint(root / "undisturbed") as place:
            expected = asyncio.run(Clients(place).all_of(SEEDS))
        with endpoint(root / "killed") as place:
            clients = Clients(place)
            killed = asyncio.run(clients.under_fire(place, KILLS))
            kept = asyncio.run(clients.count())
    right = sum(digest == expected[number % SEEDS] for number, digest in clients.found.items())
    by_kind = ", ".join(f"{count} {kind}" for kind, count in sorted(killed.items()))
    what = f"requests that became the right video, once ({by_kind} killed; {kept} videos in the endpoint's list)"
    count = len(clients.found)
    return [Finding(what, right, "", count, aim="all", met=right == count == kept)]


@dataclass
class Endpoint:
    """An endpoint that is started again whenever it ends."""

    folder: Path
    port: int
    name: str
    ending: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"

    def supervise(self) -> None:
        """Start it, and again, until told to end."""
        panel = self.folder.with_name("panel.yaml")
        command = [sys.executable, "-m", "jobs.serve", "--folder", str(self.folder), "--port", str(self.port)]
        command += ["--verifier", str(panel), "--generators", "2", "--set", "budget=2x"]
        environment = {**os.environ, _MARK: self.name}
        environment.pop("RAY_ADDRESS", None)
        with (self.folder.with_name(f"{self.folder.name}.log")).open("wb") as log:
            while not self.ending.is_set():
                driver = subprocess.Popen(
                    command, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
                )
                while driver.poll() is None and not self.ending.wait(0.2):
                    pass
                if driver.poll() is None:
                    driver.send_signal(signal.SIGTERM)
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        driver.wait(60)
                self.ending.wait(_PAUSE)
        for process in self.processes(""):
            process.kill()

    def processes(self, program: str) -> list[Any]:
        """Living processes of this endpoint whose command has ``program`` in it."""
        import psutil

        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(_MARK) == self.name and program in " ".join(process.cmdline()):
                    found.append(process)
        return found


@contextlib.contextmanager
def endpoint(folder: Path) -> Iterator[Endpoint]:
    """An endpoint with a supervisor, as long as the block lasts."""
    folder.parent.mkdir(exist_ok=True)
    folder.with_name("panel.yaml").write_text(_PANEL, encoding="utf-8")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        place = Endpoint(folder, probe.getsockname()[1], f"{os.getpid()}-{folder.name}")
    supervisor = threading.Thread(target=place.supervise)
    supervisor.start()
    try:
        yield place
    finally:
        place.ending.set()
        supervisor.join()


@dataclass
class Clients:
    """Clients of an endpoint. ``found`` has the digest of the video of every request."""

    place: Endpoint
    found: dict[int, str] = field(default_factory=dict)

    async def all_of(self, count: int) -> list[str]:
        """The digests of the first requests' videos."""
        async with self._client() as client:
            await asyncio.gather(*(self._one(client, number) for number in range(count)))
        return [self.found[number] for number in range(count)]

    async def under_fire(self, place: Endpoint, kills: int) -> Counter[str]:
        """Ask for one video after the other while processes are killed, and wait for all; what was killed how often."""
        killed: Counter[str] = Counter()
        numbers = iter(range(10**6))
        over = asyncio.Event()

        async def ask(client: httpx.AsyncClient) -> None:
            for number in numbers:
                await self._one(client, number)
                if over.is_set():
                    return

        async with self._client() as client, asyncio.TaskGroup() as group:
            for _ in range(_AT_A_TIME):
                group.create_task(ask(client))
            rng = random.Random(0)
            await self._until(client, "/readyz", lambda answer: answer.status_code == 200)
            while killed.total() < kills:
                await asyncio.sleep(rng.uniform(*EVERY))
                kind = rng.choice(list(VICTIMS))
                there = await asyncio.to_thread(place.processes, VICTIMS[kind])
                if there:
                    with contextlib.suppress(Exception):  # it may have ended by itself meanwhile
                        rng.choice(there).kill()
                        killed[kind] += 1
                await self._until(client, "/readyz", lambda answer: answer.status_code == 200)
            over.set()
        return killed

    async def count(self) -> int:
        """How many videos the endpoint lists."""
        ids: set[str] = set()
        async with self._client() as client:
            page = await self._until(client, "/v1/videos?limit=100", lambda answer: answer.status_code == 200)
            while True:
                ids |= {video["id"] for video in page.json()["data"]}
                if not page.json()["has_more"]:
                    return len(ids)
                place = f"/v1/videos?limit=100&after={page.json()['last_id']}"
                page = await self._until(client, place, lambda answer: answer.status_code == 200)

    def _client(self) -> httpx.AsyncClient:
        import httpx

        return httpx.AsyncClient(base_url=self.place.url, timeout=20)

    async def _one(self, client: httpx.AsyncClient, number: int) -> None:
        """One request, from asking to the bytes of its video."""
        import httpx

        body = {"prompt": PROMPT, "seed": number % SEEDS, "seconds": "1.125", "search": {"policy": "linear"}}
        deadline = time.monotonic() + _UNDER_FIRE
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.HTTPError):
                answer = await client.post("/v1/videos", json=body, headers={"Idempotency-Key": f"request-{number}"})
                if answer.status_code == 200:
                    break
            await asyncio.sleep(0.5)
        video = answer.json()["id"]
        done = await self._until(client, f"/v1/videos/{video}", _is_finished, _UNDER_FIRE)
        if done.json()["status"] != "completed":
            self.found[number] = done.json()["status"]
            return
        bytes_ = await self._until(client, f"/v1/videos/{video}/content", lambda answer: answer.status_code == 200)
        self.found[number] = hashlib.sha256(bytes_.content).hexdigest()

    async def _until(
        self, client: httpx.AsyncClient, path: str, fits: Callable[[httpx.Response], bool], patience: float = _PATIENCE
    ) -> httpx.Response:
        """The first answer that fits. Raises TimeoutError after ``patience`` seconds without one."""
        import httpx

        deadline = time.monotonic() + patience
        while True:
            with contextlib.suppress(httpx.HTTPError):
                answer = await client.get(path)
                if fits(answer):
                    return answer
            if time.monotonic() > deadline:
                raise TimeoutError(f"{path} was not to be had within {patience:.0f} s")
            await asyncio.sleep(0.5)


def _is_finished(answer: httpx.Response) -> bool:
    return answer.status_code == 200 and answer.json()["status"] in ("completed", "failed", "cancelled")
