"""The endpoint on a port of its own, in a thread, with searches that a test grows by hand."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn

from framegrove.config.flow import latent_size
from framegrove.config.serve import ServeConfig
from framegrove.evaluation import tree_page
from framegrove.media.stills import strip
from framegrove.media.writing import encode_mp4
from framegrove.serving.api import LATENTS, PolicyOffer
from framegrove.serving.live import OnLive
from framegrove.serving.offers import ServedModel
from framegrove.serving.service import VideoService
from framegrove.serving.store import VideoStore
from framegrove.serving.web import build_app
from framegrove.types import GenerationRequest, GenerationResult, Progress
from tests.endpoint import DIGITS, POLICIES, VERIFIERS
from tests.fakes import FakeRunner
from tests.tiny import digits_recipe


@functools.cache
def film() -> bytes:
    """A second of noise as an mp4."""
    frames = np.random.default_rng(0).integers(0, 255, (8, 64, 64, 3), np.uint8)
    return encode_mp4(frames, 8)


@functools.cache
def picture(seed: int) -> bytes:
    """A WebP strip of noise."""
    return strip(np.random.default_rng(seed).integers(0, 255, (4, 32, 32, 3), np.uint8), 32)


class FilmRunner(FakeRunner):
    """Makes a film in the end."""

    async def run(
        self, request: GenerationRequest, on_progress: Callable[[Progress], None], on_live: OnLive
    ) -> GenerationResult:
        await super().run(request, on_progress, on_live)
        page = b"<!doctype html><title>tree</title><h1>The finished tree</h1>"
        return GenerationResult(
            film(), {}, {"thumbnail.webp": picture(0), "tree.html": page, "tree.json": b"{}", LATENTS: b"latents"}
        )


class Server:
    """An endpoint whose searches look as ``grow`` says, and end when the gate of ``runner`` opens.

    It serves models of these names, which are all the same.
    """

    def __init__(self, folder: Path, port: int = 0, names: Sequence[str] = ("digits",), **settings: Any) -> None:
        self.folder, self.names, self.settings = folder, names, settings
        self.port = port or _free_port()
        self.runner = FilmRunner()
        self._thread: threading.Thread | None = None
        self._server: uvicorn.Server | None = None

    @property
    def url(self) -> str:
        return f"http://localhost:{self.port}/"

    def start(self) -> None:
        self._server = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()
        while self._server is None or not self._server.started:
            assert self._thread.is_alive(), "the server did not start"
            time.sleep(0.01)

    def stop(self) -> None:
        """End, as a server does that is told to: open streams are cut."""
        assert self._server is not None
        assert self._thread is not None
        self._server.should_exit = True
        self._thread.join(20)
        assert not self._thread.is_alive(), "the server did not end"

    def on_loop(self, act: Callable[[], Any]) -> None:
        """Do something where the searches run."""
        done = threading.Event()
        self._loop.call_soon_threadsafe(lambda: (act(), done.set()))
        assert done.wait(10)

    def grow(self, branch: str, standing: str = "running", **facts: Any) -> None:
        """A branch of the running search is like this now."""
        self.grow_all({branch: {"standing": standing, **facts}})

    def grow_all(self, branches: dict[str, dict[str, Any]]) -> None:
        """Branches of the running search are like this now."""
        live = self.runner.live

        def act() -> None:
            for branch, facts in branches.items():
                live.branches[branch] = {
                    "name": branch.replace("-", "."),
                    "parent": branch.rpartition("-")[0] or None,
                    "unit": branch.count("-"),
                    "speculative": False,
                    "score": None,
                    "scores": {},
                    "workers": [],
                    **facts,
                }
                live.previews[branch] = picture(sum(map(int, branch.split("-"))))

        self.on_loop(act)

    def give_up(self, branch: str) -> None:
        """A branch of the running search is no longer there."""
        self.on_loop(lambda: self.runner.live.branches.pop(branch))

    def hold(self) -> None:
        """Searches go on until ``finish``."""
        self.on_loop(self.runner.gate.clear)

    def finish(self) -> None:
        self.on_loop(self.runner.gate.set)

    async def _serve(self) -> None:
        limits = ServeConfig(folder=self.folder, most_units=8, port=self.port, **self.settings)
        model = ServedModel(
            "digits",
            digits_recipe().model_copy(update={"knows": "digits that move", "known_prompts": "a .* moves .*"}),
            check=lambda asked: latent_size(asked.height, asked.width, **DIGITS),
            policies={name: PolicyOffer(description=text) for name, text in POLICIES.items()},
            judged=lambda policy: policy != "single",
            side=64,
            most_units=200,
            flops=lambda asked: asked.units * asked.height * asked.width,
            verifiers=VERIFIERS,
        )
        self._loop = asyncio.get_running_loop()
        self.runner.gate = _like(self.runner.gate)
        models = [(replace(model, name=name), self.runner) for name in self.names]
        service = VideoService(VideoStore(self.folder), models, limits)
        app = build_app(service, limits, scripts=[tree_page.script_hash()])
        self._server = uvicorn.Server(
            uvicorn.Config(app, port=self.port, log_level="critical", timeout_graceful_shutdown=1)
        )
        await self._server.serve()


def _like(gate: asyncio.Event) -> asyncio.Event:
    """A gate for another event loop, as open as this one."""
    made = asyncio.Event()
    if gate.is_set():
        made.set()
    return made


def _free_port() -> int:
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def serving(folder: Path, **settings: Any) -> Iterator[Server]:
    """A server as long as the block lasts."""
    server = Server(folder, **settings)
    server.start()
    try:
        yield server
    finally:
        server.finish()
        server.stop()
