"""The video service: queues requests durably, makes the videos in order of arrival, and reports their progress."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import secrets
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from framegrove import logs
from framegrove.config.model import Recipe
from framegrove.config.request import frames_of, parse_size, units_for
from framegrove.config.search import parse_budget
from framegrove.config.serve import ServeConfig
from framegrove.errors import UserError
from framegrove.serving.api import LARGEST_SEED, ApiError, Model, ModelList, Search, Video, VideoError, VideoRequest
from framegrove.serving.store import STORE_ERRORS, QueueFull, VideoRecord, VideoStore
from framegrove.types import GenerationRequest, GenerationResult, Progress

log = logging.getLogger(__name__)

PAUSES = (1.0, 5.0, 20.0, 60.0)  # seconds between attempts; the last one is repeated
ATTEMPTS = 3  # runs of one video that end with passing errors; then the video fails

# Another name for a policy, as earlier versions of the API called it.
_OTHER_NAMES = {"none": "single"}

Answer = TypeVar("Answer")


class Runner(Protocol):
    """Makes videos.

    ``start`` brings up what searches need, with the verifiers only if ``judging``, and returns at once where
    everything is up. It is awaited before every run, and may be awaited again after ``close``. Several runs may go on
    at the same time; ``close`` is called when none does. What ``start`` raises is not the request's fault; a UserError
    from ``run`` is the request's mistake, unless it is one of the service's passing errors.
    """

    async def start(self, *, judging: bool = True) -> None: ...

    async def run(self, request: GenerationRequest, on_progress: Callable[[Progress], None]) -> GenerationResult: ...

    async def close(self) -> None: ...


@dataclass(frozen=True)
class ServedModel:
    """What the service offers.

    ``recipe`` says how the model is sampled, ``check`` raises UserError for a request that the model cannot fulfil.
    ``policies`` are the search policies on offer, names and one-sentence descriptions; ``judged`` says whether a policy
    asks verifiers.
    """

    name: str
    recipe: Recipe
    check: Callable[[GenerationRequest], object]
    policies: Mapping[str, str]
    judged: Callable[[str], bool]


class VideoService:
    """Accepts requests, keeps them durably, and makes the videos in the order in which they came, some at a time.

    A video that was in progress when the process ended is made again, from the same seed and hence the same.

    An error can be the passing state of the machines, the request's mistake, or anything else:

    - Errors of the types in ``passing``, which say that the cluster is out of reach, has no room now, or has lost an
      actor, are logged and retried. Bringing the cluster up is retried for as long as it takes, and the videos wait;
      a run is retried ``ATTEMPTS`` times in all, since the video itself may be what brings actors down.
    - Errors of the store while the disk fails (``STORE_ERRORS``) are logged and retried for as long as it takes.
    - A UserError from a run fails the video with the code "invalid_request" and the error's sentence.
    - Anything else is a defect, or a failure for good. It is logged with its traceback and fails the video with the
      code "server_error"; the sentence names the video's id and no details. The next video gets new actors.

    Where even that is impossible, because failures cannot be recorded or the actors cannot be closed, the service
    stops and ``check_health`` raises.

    ``on_queue`` is called with the number of waiting videos whenever it may have changed.
    """

    def __init__(
        self,
        store: VideoStore,
        runner: Runner,
        model: ServedModel,
        limits: ServeConfig,
        *,
        passing: tuple[type[Exception], ...] = (),
        on_queue: Callable[[int], None] = lambda waiting: None,
    ) -> None:
        self._store = store
        self._runner = runner
        self._model = model
        self._limits = limits
        self._passing = passing
        self._on_queue = on_queue
        self._counting = asyncio.Lock()
        self._progress: dict[str, Progress] = {}  # of videos in progress
        self._making: set[str] = set()  # ids of videos for which the runner is needed
        self._suspect = False  # whether nobody knows in what state its actors are
        self._next = asyncio.Event()  # there may be a video to begin, or room for one
        self._worker: asyncio.Task[None] | None = None

    @property
    def policies(self) -> Mapping[str, str]:
        """The search policies on offer: names and one-sentence descriptions."""
        return self._model.policies

    async def start(self) -> None:
        """Begin to make videos, first those that an earlier process left unfinished."""
        stranded = await asyncio.to_thread(self._store.recover)
        if stranded:
            log.warning("%d videos were in progress when the last process ended and are made again", stranded)
        await self._report_queue()
        self._next.set()
        self._worker = asyncio.create_task(self._work())

    async def close(self) -> None:
        """Stop. What is unfinished stays in the store."""
        async with contextlib.AsyncExitStack() as ending:  # every step is taken, even if another one raises
            ending.callback(self._store.close)
            ending.push_async_callback(self._runner.close)
            worker, self._worker = self._worker, None
            if worker is not None:
                worker.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await worker

    def check_health(self) -> None:
        """Raise RuntimeError if the service has stopped for good, so that only a new process can go on."""
        if self._worker is not None and self._worker.done():
            cause = None if self._worker.cancelled() else self._worker.exception()
            raise RuntimeError("the service has stopped making videos") from cause

    async def submit(self, asked: VideoRequest, image: bytes | None = None) -> Video:
        """Accept a request. Raises ApiError for what the model or this endpoint does not offer, or a full queue."""
        record = self._accepted(asked, image)
        with logs.about(request=record.id):
            try:
                await asyncio.to_thread(self._store.add, record, self._limits.waiting)
            except QueueFull:
                sentence = f"{self._limits.waiting} videos are waiting already: try again later"
                raise ApiError(429, sentence, code="queue_full") from None
            request = record.request
            log.info(
                "accepted: %d units of %dx%d pixels, policy %s, budget %gx",
                *(request.units, request.width, request.height, request.policy, request.budget),
            )
        self._next.set()
        await self._report_queue()
        return self._described(record)

    def models(self) -> ModelList:
        """What the endpoint offers: one model."""
        return ModelList(data=[Model(id=self._model.name, knows=self._model.recipe.knows)])

    async def find(self, video_id: str) -> Video:
        """The video's current state. Raises ApiError for an unknown id."""
        return self._described(await self._record(video_id))

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
        """The record of a request, defaults filled in. Raises ApiError."""
        name, recipe = self._model.name, self._model.recipe
        if asked.model not in (None, name):
            raise ApiError(404, f"there is no model {asked.model[:60]!r} here, it is called {name}", param="model")
        height, width = parse_size(asked.size) if asked.size else (recipe.height, recipe.width)
        units = self._units(asked.seconds)
        request = GenerationRequest(
            prompt=asked.prompt,
            seed=secrets.randbelow(LARGEST_SEED) if asked.seed is None else asked.seed,
            units=units,
            height=height,
            width=width,
            policy=self._policy(asked.search.policy),
            budget=self._budget(asked.search.budget),
            image=image,
            until=asked.search.until,
            within=asked.search.seconds,
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

    def _policy(self, asked: str) -> str:
        offered = self._model.policies
        name = asked if asked in offered else _OTHER_NAMES.get(asked, asked)
        if name not in offered:
            sentence = f"search.policy {asked[:60]!r} is unknown: choose one of {', '.join(offered)}"
            raise ApiError(400, sentence, param="search.policy")
        return name

    def _budget(self, asked: str | None) -> float:
        budget = parse_budget(asked or self._limits.budget)
        if budget > parse_budget(self._limits.most_budget):
            sentence = f"a budget of {budget:g}x is more than the {self._limits.most_budget} allowed"
            raise ApiError(400, sentence, param="search.budget")
        return budget

    def _units(self, seconds: str | None) -> int:
        if seconds is None:
            return self._model.recipe.units
        try:
            return units_for(float(seconds), self._model.recipe.fps, self._limits.most_units)
        except UserError as error:
            raise ApiError(400, str(error), param="seconds") from None

    def _described(self, record: VideoRecord) -> Video:
        """The record as the API shows it."""
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
            search=Search(
                policy=record.request.policy,
                budget=f"{record.request.budget:g}x",
                until=record.request.until,
                seconds=record.request.within,
            ),
            error=VideoError(code=record.error_code or "", message=record.error or "") if record.error else None,
        )

    async def _work(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._warm_up())
                while True:
                    await self._next.wait()
                    self._next.clear()
                    while self._has_room and (record := await _stored(self._store.first)) is not None:
                        self._making.add(record.id)
                        with logs.about(request=record.id):
                            await self._begin(record, group)
        except Exception:
            log.critical("the service stops making videos", exc_info=True)
            raise

    @property
    def _has_room(self) -> bool:
        return len(self._making) < self._limits.at_a_time and not self._suspect

    async def _warm_up(self) -> None:
        """Bring up what searches need before anybody asks: it takes a while."""
        try:
            await self._runner.start()
        except self._passing as error:
            log.warning("the cluster could not be made ready (%s); the first video tries again", _line(error))
        except Exception:
            log.exception("the cluster could not be made ready; the first video tries again")

    async def _begin(self, record: VideoRecord, group: asyncio.TaskGroup) -> None:
        """Begin to make a video once the cluster is ready for it. One after the other, hence in order of arrival."""
        begun = False
        async with self._failing(record):
            await self._bring_up(record)
            await _stored(self._store.begin, record.id)
            await self._report_queue()
            begun = True
        if begun:
            group.create_task(self._make(record))
        else:
            await self._ended(record)

    async def _make(self, record: VideoRecord) -> None:
        """Make a video, or fail it."""
        began = time.monotonic()
        async with self._failing(record):
            result = await self._run(record)
            await _stored(self._store.complete, record.id, result)
            log.info("completed after %.1f s", time.monotonic() - began)
        await self._ended(record)

    @contextlib.asynccontextmanager
    async def _failing(self, record: VideoRecord) -> AsyncIterator[None]:
        """What is raised inside fails the video."""
        began = time.monotonic()
        try:
            yield
        except ApiError as refusal:
            log.info("failed after %.1f s, as an invalid request", time.monotonic() - began)
            log.debug("invalid request: %s", refusal)  # the sentence may quote the prompt
            await _stored(self._store.fail, record.id, "invalid_request", str(refusal))
        except Exception:
            log.exception("failed after %.1f s", time.monotonic() - began)
            self._suspect = True
            await _stored(self._store.fail, record.id, "server_error", _internal_error(record.id))

    async def _ended(self, record: VideoRecord) -> None:
        """A video is finished or has failed: there is room for another one. The last one closes suspect actors."""
        self._progress.pop(record.id, None)
        self._making.discard(record.id)
        if self._suspect and not self._making:
            await self._runner.close()
            self._suspect = False
        self._next.set()
        await self._report_queue()

    async def _bring_up(self, record: VideoRecord) -> None:
        """Return once the cluster is ready for this video."""
        judging = self._model.judged(record.request.policy)
        await _insist("the video waits", lambda: self._runner.start(judging=judging), self._passing)

    async def _run(self, record: VideoRecord) -> GenerationResult:
        """Run the request, again after passing errors. Raises ApiError for the request's mistake."""

        def on_progress(progress: Progress) -> None:
            self._progress[record.id] = progress

        attempt = 1
        while True:
            try:
                return await self._run_once(record.request, on_progress)
            except self._passing as error:
                if attempt == ATTEMPTS:
                    raise
                pause = PAUSES[attempt - 1]
                log.warning("attempt %d failed (%s); trying again in %g s", attempt, _line(error), pause)
                await asyncio.sleep(pause)
            attempt += 1
            await self._bring_up(record)

    async def _run_once(self, request: GenerationRequest, on_progress: Callable[[Progress], None]) -> GenerationResult:
        try:
            return await self._runner.run(request, on_progress)
        except self._passing:
            raise
        except UserError as error:
            raise ApiError(400, str(error)) from error

    async def _report_queue(self) -> None:
        async with self._counting:  # so that no count overtakes a later one
            try:
                waiting = await asyncio.to_thread(self._store.waiting)
            except STORE_ERRORS as error:
                log.warning("the waiting videos could not be counted (%s)", _line(error))
            else:
                self._on_queue(waiting)


async def _stored(method: Callable[..., Answer], *given: Any) -> Answer:
    """Call a method of the store, again and again while the disk fails."""
    return await _insist("the store cannot be used", lambda: asyncio.to_thread(method, *given), STORE_ERRORS)


async def _insist(what: str, attempt: Callable[[], Awaitable[Answer]], passing: tuple[type[Exception], ...]) -> Answer:
    """Attempt it until no ``passing`` error comes, at longer and longer intervals; the log says why."""
    pauses = itertools.chain(PAUSES, itertools.repeat(PAUSES[-1]))
    while True:
        try:
            return await attempt()
        except passing as error:
            pause = next(pauses)
            log.warning("%s (%s); trying again in %g s", what, _line(error), pause)
            await asyncio.sleep(pause)


def _internal_error(video_id: str) -> str:
    return f"the video could not be made because of an internal error: the endpoint's log has the details of {video_id}"


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
