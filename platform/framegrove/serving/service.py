"""Takes requests for videos, has them made one after the other, and says how far they are."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import secrets
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from framegrove.config.model import Recipe
from framegrove.config.request import frames_of, parse_size, units_for
from framegrove.config.search import parse_budget
from framegrove.config.serve import ServeConfig
from framegrove.errors import UserError
from framegrove.serving.api import LARGEST_SEED, ApiError, Search, Video, VideoError, VideoRequest
from framegrove.serving.store import STORE_ERRORS, VideoRecord, VideoStore
from framegrove.types import GenerationRequest, GenerationResult, Progress

log = logging.getLogger(__name__)

PAUSES = (1.0, 5.0, 20.0, 60.0)  # seconds before what failed is tried again, the last as often as it takes

Answer = TypeVar("Answer")


class Runner(Protocol):
    """Makes videos, once ``start`` has brought up what it needs; ``judging`` is for a request with a search.

    What ``start`` raises is no request's fault, a UserError of ``run`` is the request's mistake. A runner that was
    closed can be started again.
    """

    async def start(self, *, judging: bool = True) -> None: ...

    async def run(self, request: GenerationRequest, on_progress: Callable[[Progress], None]) -> GenerationResult: ...

    async def close(self) -> None: ...


@dataclass(frozen=True)
class ServedModel:
    """What is served: its name, how it is sampled, and a check that raises UserError for what it cannot make."""

    name: str
    recipe: Recipe
    check: Callable[[GenerationRequest], object]


class VideoService:
    """Takes videos on, keeps them durably, makes them in the order they came.

    A video that was being made when the process ended is made again, from the same seed, hence the same. While the
    cluster has no room, or the disk fails, videos wait.
    """

    def __init__(self, store: VideoStore, runner: Runner, model: ServedModel, limits: ServeConfig) -> None:
        self._store, self._runner = store, runner
        self._model, self._limits = model, limits
        self._progress: dict[str, Progress] = {}  # of videos in progress
        self._work = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to work, with what an earlier process left."""
        stranded = await asyncio.to_thread(self._store.recover)
        if stranded:
            log.info("%d videos were in progress when the last process ended and are made again", stranded)
        self._work.set()
        self._worker = asyncio.create_task(self._make_videos())

    async def close(self) -> None:
        """Stop working; what is unfinished stays in the store."""
        async with contextlib.AsyncExitStack() as ending:  # each of these, whatever another one raises
            ending.callback(self._store.close)
            ending.push_async_callback(self._runner.close)
            worker, self._worker = self._worker, None
            if worker is not None:
                worker.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await worker

    def check_health(self) -> None:
        """Raises RuntimeError when the work has ended for good: only another process can go on with it."""
        if self._worker is not None and self._worker.done():
            raise RuntimeError("no videos are made any more") from self._worker.exception()

    async def submit(self, asked: VideoRequest, image: bytes | None = None) -> Video:
        """Take a video on. Raises ApiError for what the model or this endpoint does not do."""
        record = self._accepted(asked, image)
        if await asyncio.to_thread(self._store.waiting) >= self._limits.waiting:
            raise ApiError(
                429, f"{self._limits.waiting} videos are waiting already: try again later", code="queue_full"
            )
        await asyncio.to_thread(self._store.add, record)
        self._work.set()
        return self._told(record)

    async def find(self, video_id: str) -> Video:
        """How a video is. Raises ApiError for an unknown id."""
        return self._told(await self._record(video_id))

    async def content(self, video_id: str) -> Path:
        """The file of a completed video. Raises ApiError for any other."""
        record = await self._record(video_id)
        if record.status == "failed":
            raise ApiError(409, f"the video {video_id} failed, there is nothing to download: {record.error}")
        if record.status != "completed":
            raise ApiError(409, f"the video {video_id} is not finished, its status is {record.status}: ask again later")
        return self._store.path_of(video_id)

    async def _record(self, video_id: str) -> VideoRecord:
        record = await asyncio.to_thread(self._store.get, video_id)
        if record is None:
            raise ApiError(404, f"there is no video {video_id[:60]!r}", code="not_found")
        return record

    def _accepted(self, asked: VideoRequest, image: bytes | None) -> VideoRecord:
        name, recipe = self._model.name, self._model.recipe
        if asked.model not in (None, name):
            raise ApiError(404, f"there is no model {asked.model[:60]!r} here, it is called {name}", param="model")
        if image is None and asked.input_reference is not None:
            image = asked.input_reference.image()
        height, width = parse_size(asked.size) if asked.size else (recipe.height, recipe.width)
        units = self._units(asked.seconds)
        request = GenerationRequest(
            prompt=asked.prompt,
            seed=secrets.randbelow(LARGEST_SEED) if asked.seed is None else asked.seed,
            units=units,
            height=height,
            width=width,
            policy=asked.search.policy,
            budget=self._budget(asked.search.budget),
            image=image,
        )
        try:
            self._model.check(request)
        except UserError as error:
            raise ApiError(400, str(error)) from None
        return VideoRecord(
            id=f"video_{uuid.uuid4().hex}",
            request=request,
            model=name,
            seconds=asked.seconds or f"{frames_of(units) / recipe.fps:g}",
            status="queued",
            created_at=time.time(),
        )

    def _budget(self, budget: str | None) -> float:
        wanted = parse_budget(budget or self._limits.budget)
        if wanted > parse_budget(self._limits.most_budget):
            sentence = f"a budget of {wanted:g}x is more than the {self._limits.most_budget} allowed"
            raise ApiError(400, sentence, param="search.budget")
        return wanted

    def _units(self, seconds: str | None) -> int:
        if seconds is None:
            return self._model.recipe.units
        try:
            return units_for(float(seconds), self._model.recipe.fps, self._limits.most_units)
        except UserError as error:
            raise ApiError(400, str(error), param="seconds") from None

    def _told(self, record: VideoRecord) -> Video:
        live = self._progress.get(record.id)
        done = 100 if record.status == "completed" else min(99, int(live.done * 100)) if live else 0
        return Video(
            id=record.id,
            model=record.model,
            prompt=record.request.prompt,
            status=record.status,
            progress=done,
            created_at=int(record.created_at),
            completed_at=int(record.completed_at) if record.status == "completed" and record.completed_at else None,
            seconds=record.seconds,
            size=f"{record.request.width}x{record.request.height}",
            seed=record.request.seed,
            search=Search(policy=record.request.policy, budget=f"{record.request.budget:g}x"),
            error=VideoError(code=record.error_code or "", message=record.error or "") if record.error else None,
        )

    async def _make_videos(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._warm_up())
            while True:
                await self._work.wait()
                self._work.clear()
                while (record := await _kept(self._store.first)) is not None:
                    await self._bring_up(record)
                    await _kept(self._store.begin, record.id)
                    await self._make(record)

    async def _warm_up(self) -> None:
        """Start what searches need before anybody asks: it takes a while."""
        try:
            await self._runner.start()
        except Exception:
            log.exception("the search could not be brought up; it is tried again with the first video")

    async def _bring_up(self, record: VideoRecord) -> None:
        """Return once the video can be made. It stays queued meanwhile."""
        judging = record.request.policy != "none"
        await _insist(f"the video {record.id} waits", lambda: self._runner.start(judging=judging), Exception)

    async def _make(self, record: VideoRecord) -> None:
        def on_progress(progress: Progress) -> None:
            self._progress[record.id] = progress

        try:
            result = await self._runner.run(record.request, on_progress)
            await _kept(self._store.complete, record.id, result)
        except UserError as error:
            await _kept(self._store.fail, record.id, "invalid_request", str(error))
        except Exception as error:  # one video's failure must not end the service; it is logged, and told to who asked
            log.exception("video %s failed", record.id)
            await _kept(self._store.fail, record.id, "server_error", _one_line(error))
            await self._runner.close()  # it may have given its actors up: the next video gets new ones
        finally:
            self._progress.pop(record.id, None)


async def _kept(change: Callable[..., Answer], *given: Any) -> Answer:
    """What a method of the store returns, as soon as the store can be used."""
    return await _insist("the videos' record fails", lambda: asyncio.to_thread(change, *given), *STORE_ERRORS)


async def _insist(what: str, attempt: Callable[[], Awaitable[Answer]], *passing: type[Exception]) -> Answer:
    """Attempt it until it succeeds, with longer and longer pauses after ``passing`` errors; the log tells why."""
    pauses = itertools.chain(PAUSES, itertools.repeat(PAUSES[-1]))
    while True:
        try:
            return await attempt()
        except passing:
            pause = next(pauses)
            log.exception("%s; trying again in %g s", what, pause)
            await asyncio.sleep(pause)


def _one_line(error: Exception) -> str:
    return f"the video could not be made: {' '.join(str(error).split())[:300] or type(error).__name__}"
