"""The bench of the endpoint under load: how soon it answers 100 pollers while 20 viewers watch searches grow.

Once with a search that only pretends, so that the endpoint alone is measured, and twice in Ray Serve beside searches
with the shipped model, which take all of the machine's processors: behind Ray Serve's own proxy, and behind HAProxy.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import re
import socket
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from framegrove.config.serve import ServeConfig
from framegrove.types import GenerationRequest, GenerationResult, Progress

if TYPE_CHECKING:
    import aiohttp
    import torch

    from framegrove.evaluation.benches import Finding
    from framegrove.serving.live import LiveTree, OnLive

POLLERS = 100  # each asks every second, as the endpoint tells it to
VIEWERS = 20
SECONDS = 20.0
SEARCHES = 4
REQUESTS = 10_000  # after which memory is looked at
BRANCHES = 60  # of a pretended search
CHANGING = 10  # one in so many of its branches has changed whenever somebody looks
PROMPT = "a red 3 moves left and right and a blue 7 moves up and down"


def load(device: torch.device, repeats: int) -> list[Finding]:
    """Times of GET under load, and memory after 10,000 requests; the arguments are not heeded."""
    from framegrove.cluster.serving import HAPROXY
    from framegrove.evaluation.benches import Finding

    findings = []
    with pretended() as (place, process):
        slowest, median, grown = asyncio.run(_measured(place, process))
        what = f"GET of a video, 99 of 100 within, {POLLERS} pollers and {VIEWERS} viewers"
        findings.append(_finding(f"{what}, pretended searches", slowest, median, 0.1))
        findings.append(
            Finding(
                f"memory that {REQUESTS:,} further requests take", grown, "MB", aim="at most 10 MB", met=grown <= 10
            )
        )
    for proxy, environment in (("Ray Serve's proxy", {HAPROXY: "0"}), ("HAProxy", {HAPROXY: "1"})):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as apart:  # Ray Serve reads it when imported
            slowest, median = apart.submit(_beside_searches, environment).result()
        beside = f"{what}, beside {SEARCHES} searches with the shipped model, behind {proxy}"
        findings.append(_finding(beside, slowest, median, 0.5))
    return findings


def _beside_searches(environment: Mapping[str, str]) -> tuple[float, float]:
    """The time within which 99 of 100 GETs are answered in Ray Serve with this environment, and the median, s."""
    os.environ.update(environment)
    with served() as place:
        slowest, median, _ = asyncio.run(_measured(place))
    return slowest, median


def _finding(what: str, slowest: float, median: float, aim: float) -> Finding:
    from framegrove.evaluation.benches import Finding

    said = f"{what} (median {1000 * median:.0f} ms)"
    return Finding(said, 1000 * slowest, "ms", aim=f"at most {1000 * aim:.0f} ms", met=slowest <= aim)


class PretendedRunner:
    """A runner whose searches are trees that change all the time, and last as long as the bench."""

    def __init__(self) -> None:
        self._looks = 0

    async def start(self, *, judging: bool = True) -> None:
        """Nothing."""

    async def close(self) -> None:
        """Nothing."""

    async def run(
        self, request: GenerationRequest, on_progress: Callable[[Progress], None], on_live: OnLive
    ) -> GenerationResult:
        on_live(self)
        await asyncio.sleep(10 * SECONDS)
        return GenerationResult(b"", {})

    def look(self) -> LiveTree:
        from framegrove.serving.live import LiveTree

        self._looks += 1
        return LiveTree(
            {
                str(branch): {
                    "name": str(branch),
                    "parent": None,
                    "standing": "judged",
                    "scores": {"motion": {"alignment": (self._looks + branch) // CHANGING}},
                }
                for branch in range(BRANCHES)
            },
            {"looks": self._looks},
        )

    async def preview(self, branch: str) -> bytes | None:
        return None


@contextlib.contextmanager
def pretended() -> Iterator[tuple[str, int]]:
    """The address of an endpoint whose searches only pretend, and its process: one apart, as those who ask have work.

    It stands behind the HTTP server that Ray Serve uses too.
    """
    with tempfile.TemporaryDirectory() as folder:
        port = _free_port()
        process = multiprocessing.get_context("spawn").Process(target=_pretend, args=(Path(folder), port), daemon=True)
        process.start()
        try:
            _listening(port, process)
            assert process.pid is not None, "it was started"
            yield f"http://127.0.0.1:{port}", process.pid
        finally:
            process.terminate()
            process.join()


def _pretend(folder: Path, port: int) -> None:
    """Serve, until the process is ended."""
    import uvicorn

    from actors.ingress import served as offered
    from actors.model_files import ModelFiles
    from framegrove.config.model import ModelSource
    from framegrove.serving.service import VideoService
    from framegrove.serving.store import VideoStore
    from framegrove.serving.web import build_app

    config = ServeConfig(folder=folder, port=port, generators=SEARCHES)
    service = VideoService(
        VideoStore(config.folder),
        [(offered(ModelFiles.read(ModelSource()), config.verifier), PretendedRunner())],
        config,
    )
    uvicorn.run(build_app(service, config), port=port, log_level="critical", timeout_graceful_shutdown=1)


def _listening(port: int, process: BaseProcess) -> None:
    """Return once the process listens on this port."""
    while process.is_alive():
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.1)
    raise AssertionError(f"the endpoint has ended with {process.exitcode}")


@contextlib.contextmanager
def served() -> Iterator[str]:
    """The address of an endpoint in Ray Serve, with the shipped model."""
    import logging

    from ray import serve

    from actors.ingress import application
    from framegrove.cluster.priority import let_others_give_way
    from framegrove.cluster.serving import prepare_haproxy, shut_down
    from framegrove.cluster.session import connect

    let_others_give_way()
    prepare_haproxy()
    with tempfile.TemporaryDirectory() as folder, connect():
        config = ServeConfig(folder=Path(folder), port=_free_port(), searches=SEARCHES)
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        serve.start(http_options={"host": config.host, "port": config.port})
        serve.run(application(config))
        try:
            yield f"http://127.0.0.1:{config.port}"
        finally:
            shut_down()


async def _measured(place: str, process: int | None = None) -> tuple[float, float, float]:
    """The time within which 99 of 100 GETs are answered, and the median, s; and megabytes that ``process`` grows by.

    They are asked with the cheapest client there is: it takes its turns on the same processors, and what it waits for
    them would be counted as the endpoint's.
    """
    import aiohttp

    many, patience = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=None, sock_read=60)
    async with aiohttp.ClientSession(place, connector=many, timeout=patience, raise_for_status=True) as client:
        ids = [await _asked(client, seed) for seed in range(SEARCHES)]
        await _begun(client, ids[0])
        times: list[float] = []
        async with _together(
            *(_poll(client, ids[n % SEARCHES], times, n / POLLERS) for n in range(POLLERS)),  # no chorus
            *(_watch(client, ids[n % SEARCHES]) for n in range(VIEWERS)),
        ):
            await asyncio.sleep(SECONDS)
        grown = await _grown(client, ids[0], process) if process is not None else 0.0
        for each in ids:
            await client.delete(f"/v1/videos/{each}")
    return statistics.quantiles(times, n=100)[98], statistics.median(times), grown


async def _asked(client: aiohttp.ClientSession, seed: int) -> str:
    body = {"prompt": PROMPT, "seed": seed, "search": {"policy": "beam", "budget": "64x"}}
    async with client.post("/v1/videos", json=body) as answer:
        return str((await answer.json())["id"])


async def _begun(client: aiohttp.ClientSession, video: str) -> None:
    """Return once a search has sampled something."""
    async with client.get(f"/v1/videos/{video}/events") as stream:
        rest = b""
        async for chunk in stream.content.iter_any():
            if b"event: branch\n" in rest + chunk:
                return
            rest = chunk[-20:]
    raise AssertionError("the search ended before it had a branch")


async def _got(client: aiohttp.ClientSession, video: str) -> None:
    async with client.get(f"/v1/videos/{video}") as answer:
        await answer.read()


async def _poll(client: aiohttp.ClientSession, video: str, times: list[float], wait: float) -> None:
    await asyncio.sleep(wait)
    while True:
        began = time.monotonic()
        await _got(client, video)
        times.append(time.monotonic() - began)
        await asyncio.sleep(1.0)


async def _watch(client: aiohttp.ClientSession, video: str) -> None:
    """Follow the events of a search; they come in the order of their numbers."""
    async with client.get(f"/v1/videos/{video}/events") as stream:
        last, rest = 0, b""
        async for chunk in stream.content.iter_any():
            whole, _, rest = (rest + chunk).rpartition(b"\n")
            for number in map(int, re.findall(rb"^id: \S+-(\d+)$", whole, re.MULTILINE)):
                assert number > last, "events come in order"
                last = number
    raise AssertionError("the stream ended before its search")


async def _grown(client: aiohttp.ClientSession, video: str, process: int) -> float:
    """Megabytes that the endpoint's process has grown by after many requests more."""
    import psutil

    async def some(count: int) -> None:
        for _ in range(count):
            await _got(client, video)

    endpoint = psutil.Process(process)
    await asyncio.gather(*(some(REQUESTS // 40) for _ in range(10)))  # so that pools and caches are full
    before = endpoint.memory_info().rss
    await asyncio.gather(*(some(REQUESTS // 10) for _ in range(10)))
    return (endpoint.memory_info().rss - before) / 1e6


@contextlib.asynccontextmanager
async def _together(*loops: Any) -> AsyncIterator[None]:
    """Run endless loops as long as the block lasts; the first that fails ends it."""
    tasks = [asyncio.ensure_future(each) for each in loops]
    try:
        yield
        for task in tasks:
            if task.done():
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
