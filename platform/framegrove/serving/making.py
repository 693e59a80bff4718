"""Makes the videos that wait in the store: some at a time, in a fair order, and lets others watch and cancel.

Each model has a runner of its own, so that no model's videos wait for another's actors; owners take turns over all of
them. Videos of a model that is not served any more wait until it is.

A video that was in progress when the process ended is made again, from the same seed and hence the same.

An error can be the passing state of the machines, the request's mistake, or anything else:

- Errors of the types in ``passing``, which say that the cluster is out of reach, has no room now, or has lost an
  actor, are logged and retried. Bringing the cluster up is retried for as long as it takes, and the videos wait;
  a run is retried ``ATTEMPTS`` times in all, since the video itself may be what brings actors down.
- Errors of the store while the disk fails (``STORE_ERRORS``) are logged and retried for as long as it takes.
- A UserError from a run fails the video with the code "invalid_request" and the error's sentence.
- Anything else is a defect, or a failure for good. It is logged with its traceback and fails the video with the
  code "server_error"; the sentence names the video's id and no details. The model's next video gets new actors.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections import Counter, OrderedDict, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from framegrove import logs
from framegrove.errors import UserError
from framegrove.serving.api import LATENTS, ApiError
from framegrove.serving.live import EventLog, Live, OnLive, Watch
from framegrove.serving.queueing import next_of
from framegrove.serving.records import VideoRecord
from framegrove.serving.store import STORE_ERRORS, FileGone, VideoStore
from framegrove.types import GenerationRequest, GenerationResult, Progress

log = logging.getLogger(__name__)

PAUSES = (1.0, 5.0, 20.0, 60.0)  # seconds between attempts; the last one is repeated
ATTEMPTS = 3  # runs of one video that end with passing errors; then the video fails
LOOK_EVERY = 0.4  # seconds between two looks at a running search that somebody watches
LOOKING = 0.04  # the share of the event loop's time that looking at one search may take: a large tree is looked at less
TIDY_EVERY = 60.0  # seconds between two looks for videos that need not be kept any longer
_LOGS = 256  # event logs of finished videos that are kept for viewers that come back

Answer = TypeVar("Answer")


class Runner(Protocol):
    """Makes videos.

    ``start`` brings up what searches need, with the verifiers only if ``judging``, and returns at once where
    everything is up. It is awaited before every run, and may be awaited again after ``close``. Several runs may go on
    at the same time; ``close`` is called when none does. What ``start`` raises is not the request's fault; a UserError
    from ``run`` is the request's mistake, unless it is one of the passing errors. A run that is cancelled gives its
    work up within a denoising step. ``on_live`` gets what there is to watch whenever a search begins.
    """

    async def start(self, *, judging: bool = True) -> None: ...

    async def run(
        self, request: GenerationRequest, on_progress: Callable[[Progress], None], on_live: OnLive
    ) -> GenerationResult: ...

    async def close(self) -> None: ...


@dataclass(frozen=True)
class Keep:
    """For how long finished videos are kept, s, and how many bytes of the newest; None: for ever, all of them."""

    age: float | None = None
    bytes: int | None = None


class Maker:
    """Makes the videos of a ``store``, of each model at most ``at_a_time`` at a time by the model's runner.

    ``judged`` says whether a video's policy asks verifiers; ``on_change`` is awaited whenever a video's status has
    changed, with its id. Where errors cannot even be recorded, or the actors cannot be closed, it stops, and ``check``
    raises.
    """

    def __init__(
        self,
        store: VideoStore,
        runners: Mapping[str, Runner],
        *,
        at_a_time: int,
        judged: Callable[[VideoRecord], bool],
        passing: tuple[type[Exception], ...] = (),
        on_change: Callable[[str], Awaitable[None]],
        keep: Keep = Keep(),
    ) -> None:
        self._store = store
        self._runners = runners
        self._at_a_time = at_a_time
        self._judged = judged
        self._passing = passing
        self._on_change = on_change
        self._keep = keep
        self._progress: dict[str, Progress] = {}  # of videos in progress
        self._lives: dict[str, Live] = {}  # of running searches
        self._logs: OrderedDict[str, EventLog] = OrderedDict()
        self._making: dict[str, tuple[VideoRecord, asyncio.Task[None]]] = {}
        self._begun: dict[str, float] = {}  # when each owner's last video was begun
        self._suspects: set[str] = set()  # models of which nobody knows in what state the runner's actors are
        self._next = {model: asyncio.Event() for model in runners}  # there may be a video to begin, or room for one
        self._worker: asyncio.Task[None] | None = None
        self.leaving = False
        """Whether another process is about to take this one's place."""

    async def start(self) -> None:
        """Begin, first with those videos that an earlier process left unfinished."""
        stranded = await asyncio.to_thread(self._store.recover)
        if stranded:
            log.warning("%d videos were in progress when the last process ended and are made again", stranded)
        others = Counter(each.model for each in await stored(self._store.queued) if each.model not in self._runners)
        for model, count in others.items():
            log.warning("%d videos wait for the model %s: serve it again, or delete them", count, model)
        self.wake()
        self._worker = asyncio.create_task(self._work())

    async def close(self) -> None:
        """Stop. What is unfinished stays in the store."""
        async with contextlib.AsyncExitStack() as ending:  # every step is taken, even if another one raises
            for runner in self._runners.values():
                ending.push_async_callback(runner.close)
            worker, self._worker = self._worker, None
            if worker is not None:
                worker.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await worker

    def leave(self) -> None:
        """Begin no more videos, and let viewers go: another process is about to take this one's place."""
        self.leaving = True
        for log_ in self._logs.values():
            log_.close()

    def check(self) -> None:
        """Raise RuntimeError if it has stopped for good, so that only a new process can go on."""
        if self._worker is not None and self._worker.done():
            cause = None if self._worker.cancelled() else self._worker.exception()
            raise RuntimeError("the service has stopped making videos") from cause

    def wake(self) -> None:
        """There may be something to begin."""
        for event in self._next.values():
            event.set()

    @property
    def in_progress(self) -> int:
        """How many videos are being made."""
        return len(self._making)

    def progress(self, video_id: str) -> float:
        """How far a video is, from 0 to 1."""
        progress = self._progress.get(video_id)
        return progress.done if progress else 0.0

    def live(self, video_id: str) -> Live | None:
        """The running search for a video, if there is one."""
        return self._lives.get(video_id)

    def events(self, video_id: str) -> EventLog:
        """What happens to a video, for viewers; begun when somebody first asks for it, or something happens."""
        if video_id not in self._logs:
            self._logs[video_id] = EventLog(f"{int(time.time() * 1000):x}")
            if self.leaving:
                self._logs[video_id].close()
            while len(self._logs) > _LOGS:
                oldest = next(iter(self._logs))
                if oldest in self._making or not self._logs[oldest].ended:
                    self._logs.move_to_end(oldest)
                    break
                del self._logs[oldest]
        return self._logs[video_id]

    async def cancel(self, video_id: str) -> bool:
        """Give a video up, whether it waits or is being made. False where it was finished already.

        Raises STORE_ERRORS while the disk fails: then it goes on.
        """
        cancelled = await asyncio.to_thread(self._store.cancel, video_id)
        if cancelled:
            record, task = self._making.get(video_id, (None, None))
            if record is not None and task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.shield(_ended(task))
                if video_id in self._making:  # cancelled before its first step, a task does not even clean up
                    await self._forget(record)
            await self._on_change(video_id)
        return cancelled

    async def _work(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._tidy())
                for model, runner in self._runners.items():
                    group.create_task(self._warm_up(runner))
                    group.create_task(self._begin_all(model, group))
        except Exception:
            log.critical("the service stops making videos", exc_info=True)
            raise

    async def _begin_all(self, model: str, group: asyncio.TaskGroup) -> None:
        """Begin a model's videos one after the other, hence in the order chosen."""
        while True:
            await self._next[model].wait()
            self._next[model].clear()
            while self._has_room(model) and (record := await self._choose(model)) is not None:
                await self._begin(record, group)

    def _has_room(self, model: str) -> bool:
        return self._made_of(model) < self._at_a_time and model not in self._suspects and not self.leaving

    def _made_of(self, model: str) -> int:
        """How many videos of a model are being made."""
        return sum(record.model == model for record, _ in self._making.values())

    async def _choose(self, model: str) -> VideoRecord | None:
        busy: dict[str, float] = defaultdict(float)
        for record, _ in self._making.values():
            busy[record.owner] += record.price
        waiting = [each for each in await stored(self._store.queued) if each.model == model]
        chosen = next_of(waiting, busy, self._begun, time.time())
        if chosen is None:
            return None
        self._begun[chosen.owner] = time.time()
        return await stored(self._store.get, chosen.id)

    async def _warm_up(self, runner: Runner) -> None:
        """Bring up what searches need before anybody asks: it takes a while."""
        try:
            await runner.start()
        except self._passing as error:
            log.warning("the cluster could not be made ready (%s); the first video tries again", line(error))
        except Exception:
            log.exception("the cluster could not be made ready; the first video tries again")

    async def _tidy(self) -> None:
        """Delete what need not be kept, now and then."""
        while self._keep.age or self._keep.bytes:
            for gone in await stored(self._store.expire, time.time(), self._keep.age, self._keep.bytes):
                log.info("%s was deleted: it had been kept for long enough", gone)
                self._logs.pop(gone, None)
            await asyncio.sleep(TIDY_EVERY)

    async def _begin(self, record: VideoRecord, group: asyncio.TaskGroup) -> None:
        """Begin to make a video once the cluster is ready for it."""
        with logs.about(request=record.id):
            async with self._failing(record):
                await self._bring_up(record)
                if await stored(self._store.begin, record.id):  # else it was cancelled while it waited for the cluster
                    self._making[record.id] = record, group.create_task(self._make(record))
            await self._on_change(record.id)
            await self._close_suspects(record.model)

    async def _make(self, record: VideoRecord) -> None:
        """Make a video, or fail it."""
        began = time.monotonic()
        try:
            async with self._failing(record):
                result = await self._run(await self._begun_with(record))
                expires = time.time() + self._keep.age if self._keep.age else None
                await stored(self._store.complete, record.id, result, expires)
                log.info("completed after %.1f s", time.monotonic() - began)
        except asyncio.CancelledError:
            if self._worker is None:  # the service is closed: the video is made when it starts again
                raise
            log.info("cancelled after %.1f s", time.monotonic() - began)
        await self._forget(record)

    @contextlib.asynccontextmanager
    async def _failing(self, record: VideoRecord) -> AsyncIterator[None]:
        """What is raised inside fails the video."""
        began = time.monotonic()
        try:
            yield
        except ApiError as refusal:
            log.info("failed after %.1f s, as an invalid request", time.monotonic() - began)
            log.debug("invalid request: %s", refusal)  # the sentence may quote the prompt
            await stored(self._store.fail, record.id, "invalid_request", str(refusal))
        except Exception:
            log.exception("failed after %.1f s", time.monotonic() - began)
            self._suspects.add(record.model)
            await stored(self._store.fail, record.id, "server_error", _internal_error(record.id))

    async def _forget(self, record: VideoRecord) -> None:
        """A video is finished, has failed or was cancelled: there is room for another one."""
        self._progress.pop(record.id, None)
        self._making.pop(record.id, None)
        await self._close_suspects(record.model)
        self.wake()
        await self._on_change(record.id)

    async def _close_suspects(self, model: str) -> None:
        """Once nobody uses them: actors that a defect has left in an unknown state are replaced."""
        if model in self._suspects and not self._made_of(model):
            await self._runners[model].close()
            self._suspects.discard(model)

    async def _begun_with(self, record: VideoRecord) -> VideoRecord:
        """The record with what its video begins with, where it goes on from a clip or from another video."""
        if record.clip is not None:
            try:
                clip = await stored(self._store.clip, record.id)
            except (KeyError, FileGone):
                raise ApiError(400, "the clip that it goes on from is gone: send it again") from None
            return replace(record, request=replace(record.request, clip=clip))
        if record.extends is None:
            return record

        def read() -> bytes:
            return b"".join(self._store.open_file(record.extends or "", LATENTS).chunks)

        try:
            start = await stored(read)
        except (KeyError, FileGone):
            raise ApiError(400, f"the video {record.extends}, which it goes on from, is gone") from None
        return replace(record, request=replace(record.request, start=start))

    async def _bring_up(self, record: VideoRecord) -> None:
        """Return once the cluster is ready for this video."""
        runner, judging = self._runners[record.model], self._judged(record)
        await insist("the video waits", lambda: runner.start(judging=judging), self._passing)

    async def _run(self, record: VideoRecord) -> GenerationResult:
        """Run the request, again after passing errors. Raises ApiError for the request's mistake."""
        attempt = 1
        while True:
            try:
                async with self._watched(record) as (on_progress, on_live):
                    return await self._run_once(record, on_progress, on_live)
            except self._passing as error:
                if attempt == ATTEMPTS:
                    raise
                pause = PAUSES[attempt - 1]
                log.warning("attempt %d failed (%s); trying again in %g s", attempt, line(error), pause)
                await asyncio.sleep(pause)
            attempt += 1
            await self._bring_up(record)

    async def _run_once(
        self, record: VideoRecord, on_progress: Callable[[Progress], None], on_live: OnLive
    ) -> GenerationResult:
        try:
            return await self._runners[record.model].run(record.request, on_progress, on_live)
        except self._passing:
            raise
        except UserError as error:
            raise ApiError(400, str(error)) from error

    @contextlib.asynccontextmanager
    async def _watched(self, record: VideoRecord) -> AsyncIterator[tuple[Callable[[Progress], None], OnLive]]:
        """What a run is to call with its progress and its searches, which become events as long as the block lasts."""
        events = self.events(record.id)
        watches: list[Watch] = []

        def on_progress(progress: Progress) -> None:
            before = self._progress.get(record.id)
            self._progress[record.id] = progress
            if before is None or int(100 * before.done) != int(100 * progress.done):
                events.add("progress", {"progress": int(100 * progress.done), "note": progress.note})

        def on_live(live: Live) -> None:
            self._lives[record.id] = live
            events.begin()
            watches[:] = [Watch(live, events)]

        async def look() -> None:
            pause = LOOK_EVERY
            while True:
                await asyncio.sleep(pause)
                if events.viewers:  # whoever comes later needs no more than how things stand then
                    began = time.thread_time()
                    for watch in watches:
                        watch.look()
                    pause = max(LOOK_EVERY, (time.thread_time() - began) / LOOKING)

        looking = asyncio.create_task(look())
        try:
            yield on_progress, on_live
        finally:
            looking.cancel()
            for watch in watches:
                watch.look()  # how it ended
            self._lives.pop(record.id, None)


async def _ended(task: asyncio.Task[None]) -> None:
    """Wait for a task, however it ends."""
    await asyncio.wait([task])


async def stored(method: Callable[..., Answer], *given: object) -> Answer:
    """Call a method of the store, again and again while the disk fails."""
    return await insist("the store cannot be used", lambda: asyncio.to_thread(method, *given), STORE_ERRORS)


async def insist(what: str, attempt: Callable[[], Awaitable[Answer]], passing: tuple[type[Exception], ...]) -> Answer:
    """Attempt it until no ``passing`` error comes, at longer and longer intervals; the log says why."""
    pauses = itertools.chain(PAUSES, itertools.repeat(PAUSES[-1]))
    while True:
        try:
            return await attempt()
        except passing as error:
            pause = next(pauses)
            log.warning("%s (%s); trying again in %g s", what, line(error), pause)
            await asyncio.sleep(pause)


def _internal_error(video_id: str) -> str:
    return f"the video could not be made because of an internal error: the endpoint's log has the details of {video_id}"


def line(error: Exception) -> str:
    """An error on one line of the log."""
    return " ".join(str(error).split())[:300] or type(error).__name__
