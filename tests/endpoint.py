"""The endpoint over a fake search, for tests: its application in this process, without a socket and without Ray."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI
from PIL import Image

from framegrove.config.flow import latent_size
from framegrove.config.serve import ServeConfig
from framegrove.errors import UserError
from framegrove.serving.api import PolicyOffer, VerifierOffer
from framegrove.serving.keys import KeyRing
from framegrove.serving.offers import ServedModel
from framegrove.serving.quotas import Quotas
from framegrove.serving.service import VideoService
from framegrove.serving.store import VideoStore
from framegrove.serving.web import build_app
from framegrove.types import Assessment
from tests.fakes import FakeRunner
from tests.tiny import digits_recipe

DIGITS = {"stages": 3, "patch": 2, "factor": 8}
PROMPT = "a red 3 moves left and right"
VERIFIERS = {
    "eye": VerifierOffer(kind="vllm", judges=list(Assessment)),
    "signals": VerifierOffer(kind="signals", judges=[Assessment.MOTION, Assessment.FINAL]),
}
POLICIES = {"dfs": "goes back", "linear": "keeps the best of several", "single": "takes the first sample"}


class NoRoomNow(UserError):
    """Stands for an error of the cluster that passes."""


def picture(form: str = "PNG", size: tuple[int, int] = (6, 4), **options: Any) -> bytes:
    """A red picture's file."""
    file = io.BytesIO()
    Image.new("RGB", size, "red").save(file, form, **options)
    return file.getvalue()


@dataclass
class Endpoint:
    client: httpx.AsyncClient
    runner: FakeRunner
    store: VideoStore
    service: VideoService
    queue: list[int]
    app: FastAPI

    async def post(self, **fields: Any) -> httpx.Response:
        headers = {"content-type": "application/json"}
        return await self.client.post("/v1/videos", content=json.dumps(fields), headers=headers)

    async def video(self, video_id: str) -> dict[str, Any]:
        answer = await self.client.get(f"/v1/videos/{video_id}")
        assert answer.status_code == 200, answer.text
        body: dict[str, Any] = answer.json()
        return body

    async def until(self, video_id: str, status: str, progress: int = 0) -> dict[str, Any]:
        for _ in range(500):
            video = await self.video(video_id)
            if video["status"] == status and video["progress"] >= progress:
                return video
            await asyncio.sleep(0.01)
        raise AssertionError(f"{video_id} never was {status}, it is {video}")


@asynccontextmanager
async def endpoint(
    folder: Path, runner: FakeRunner | None = None, others: Mapping[str, FakeRunner] | None = None, **settings: Any
) -> AsyncIterator[Endpoint]:
    """An endpoint whose model is called digits; ``others`` are runners of more models, by their names."""
    runner = runner or FakeRunner()
    limits = ServeConfig(folder=folder, most_units=8, **settings)
    store = VideoStore(folder)
    model = ServedModel(
        "digits",
        digits_recipe(),
        check=lambda asked: latent_size(asked.height, asked.width, **DIGITS),
        policies={name: PolicyOffer(description=text) for name, text in POLICIES.items()},
        judged=lambda policy: policy != "single",
        side=64,
        most_units=200,
        flops=lambda asked: asked.units * asked.height * asked.width,
        verifiers=VERIFIERS,
    )
    queue: list[int] = []
    quotas = Quotas(folder / "usage.sqlite", KeyRing(limits.keys)) if limits.keys is not None else None
    models = [(replace(model, name=name), each) for name, each in {"digits": runner, **(others or {})}.items()]
    videos = VideoService(store, models, limits, passing=(NoRoomNow,), on_queue=queue.append, quotas=quotas)
    app = build_app(videos, limits)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
    ):
        yield Endpoint(client, runner, store, videos, queue, app)


def serving(folder: Path, scene: Callable[[Endpoint], Awaitable[None]], **options: Any) -> None:
    async def play() -> None:
        async with endpoint(folder, **options) as running:
            await scene(running)

    asyncio.run(play())
