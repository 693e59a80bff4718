"""Servers in the shape of the OpenAI Videos API on a port of this machine, for tests of what asks them for videos."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from framegrove.media.writing import encode_mp4


def film(seed: int, frames: int = 9, height: int = 32, width: int = 32) -> bytes:
    """A video whose colour follows from its seed."""
    clip = np.full((frames, height, width, 3), (seed % 251, 60, 60), np.uint8)
    return encode_mp4(clip, 8)


@dataclass
class FakeVideos:
    """A server of videos that are ready after ``looks`` looks. ``faults`` answer its next requests in its place.

    ``failing`` says of the nth video why it fails, ``film`` makes its file.
    """

    looks: int = 1
    faults: list[Response] = field(default_factory=list)
    failing: dict[int, str] = field(default_factory=dict)
    film: Callable[[dict[str, str]], bytes] = lambda asked: film(int(asked["seed"]), int(asked["num_frames"]))
    can_cancel: bool = True
    asked: list[dict[str, str]] = field(default_factory=list)
    videos: dict[str, dict[str, Any]] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    seen: list[str] = field(default_factory=list)

    def app(self) -> FastAPI:
        app = FastAPI()

        @app.middleware("http")
        async def fault(request: Request, call_next: Any) -> Response:
            self.seen.append(f"{request.method} {request.url.path}")
            return self.faults.pop(0) if self.faults else await call_next(request)

        @app.post("/v1/videos")
        async def create(request: Request) -> dict[str, Any]:
            form = {name: value async for name, value in _fields(request)}
            key = request.headers["idempotency-key"]
            if key not in self.keys:
                self.asked.append(form)
                self.keys[key] = name = f"video-{len(self.asked)}"
                self.videos[name] = {"id": name, "status": "queued", "asked": form, "looks": 0}
            return self.videos[self.keys[key]]

        @app.get("/v1/videos/{name}")
        async def look(name: str) -> Response:
            if name not in self.videos:
                return _missing()
            video = self.videos[name]
            video["looks"] += 1
            if video["looks"] >= self.looks:
                reason = self.failing.get(int(name.removeprefix("video-")))
                video["status"] = "failed" if reason else "completed"
                video["error"] = {"code": "server_error", "message": reason} if reason else None
            return JSONResponse(video, headers={"openai-poll-after-ms": "10"})

        @app.get("/v1/videos/{name}/content")
        async def content(name: str) -> Response:
            return Response(self.film(self.videos[name]["asked"])) if name in self.videos else _missing()

        @app.post("/v1/videos/{name}/cancel")
        async def cancel(name: str) -> Response:
            if not self.can_cancel:
                return _missing()
            self.videos[name]["status"] = "cancelled"
            return JSONResponse(self.videos[name])

        @app.delete("/v1/videos/{name}")
        async def delete(name: str) -> dict[str, Any]:
            del self.videos[name]
            return {"id": name, "deleted": True}

        return app


async def _fields(request: Request) -> Any:
    for name, value in (await request.form()).multi_items():
        yield name, value if isinstance(value, str) else f"a file of {value.size} bytes"


def _missing() -> Response:
    return JSONResponse({"error": {"message": "no such video"}}, status_code=404)


class Server:
    """A server of an app in a thread, at one port for as long as it lives; it can be stopped and started again."""

    def __init__(self, app: Any) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._app = app
        self.start()

    def start(self) -> None:
        config = uvicorn.Config(self._app, "127.0.0.1", self.port, log_level="error", timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        deadline = time.monotonic() + 60
        while not self._server.started:
            assert time.monotonic() < deadline, "the server has not started"
            time.sleep(0.01)

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join()


@contextlib.contextmanager
def serving(app: Any) -> Iterator[Server]:
    server = Server(app)
    try:
        yield server
    finally:
        server.stop()
