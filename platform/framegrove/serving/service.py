"""The video service: what the endpoint's routes ask for, on top of a durable store and a maker of videos."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import math
import re
import sqlite3
import time
import uuid
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeVar

from framegrove import logs
from framegrove.config.serve import ServeConfig
from framegrove.media.extending import ClipForm
from framegrove.serving.api import (
    LATENTS,
    POLL_AFTER_MS,
    VARIANTS,
    ApiError,
    DeletedVideo,
    ExtensionRequest,
    Model,
    ModelList,
    PolicyOffer,
    RemixRequest,
    Search,
    Status,
    Video,
    VideoError,
    VideoList,
    VideoRequest,
)
from framegrove.serving.decode_clip import CheckedClip
from framegrove.serving.intake import Intake
from framegrove.serving.live import Event
from framegrove.serving.making import Keep, Maker, Runner, line, stored
from framegrove.serving.offers import Offer, ServedModel, offer_of
from framegrove.serving.quotas import Quotas
from framegrove.serving.records import FINISHED, StoredFile, VideoRecord
from framegrove.serving.store import STORE_ERRORS, FileGone, VideoStore
from framegrove.types import GenerationRequest

log = logging.getLogger(__name__)

_ID = re.compile(r"video_[0-9a-f]{32}")
MOST_STREAMS = 128  # of one owner: the replica holds as many requests as actors/ingress.py says, for all

_SETTLING_S = 10.0
_READY_S = 2.0  # for which a look at the storage holds

Answer = TypeVar("Answer")

_NO_SOURCE = (
    'the field video is missing: send a clip as a file, or name what to go on from, such as {"id": "video_..."} or '
    '{"video_url": "data:video/mp4;base64,..."}'
)


class VideoService:
    """Accepts requests, keeps them durably, and makes the videos, some at a time.

    Each of ``models`` comes with what makes its videos; requests that name no model get the first one's.
    Callers are told apart by ``owner``, the name of their key: each sees its own videos only. A video counts in its
    owner's ``quotas`` as the FLOPs that its budget allows, unless it is given up while it waits. ``on_queue`` is
    called with the number of waiting videos whenever it may have changed. Errors of types in ``passing`` are retried,
    see making.py. Every method that takes an id raises ApiError (404) for an unknown one.
    """

    def __init__(
        self,
        store: VideoStore,
        models: Sequence[tuple[ServedModel, Runner]],
        limits: ServeConfig,
        *,
        passing: tuple[type[Exception], ...] = (),
        on_queue: Callable[[int], None] = lambda waiting: None,
        quotas: Quotas | None = None,
    ) -> None:
        self._store = store
        self._offers = {model.name: Offer(model, limits) for model, _ in models}
        self._limits = limits
        self._on_queue = on_queue
        self._intake = Intake(
            store, quotas, limits.waiting, lambda record: self._offers[record.model].flops(record.request)
        )
        self._changes = set[asyncio.Future[Any]]()  # that are under way
        self._ready_until = -math.inf
        self._streams = Counter[str]()  # of events, by owner
        self._counting = asyncio.Lock()
        self.waiting = 0  # videos, when they were last counted
        self._maker = Maker(
            store,
            {model.name: runner for model, runner in models},
            at_a_time=limits.at_a_time,
            judged=lambda record: self._offers[record.model].model.judged(record.request.policy),
            passing=passing,
            on_change=self._changed,
            keep=Keep(
                limits.keep_days and 86_400 * limits.keep_days, int(1e9 * limits.keep_gb) if limits.keep_gb else None
            ),
        )

    @property
    def in_progress(self) -> int:
        """How many videos are being made."""
        return self._maker.in_progress

    @property
    def poll_after_ms(self) -> int:
        """How soon it is worth asking again for a video that is not finished, in milliseconds."""
        return POLL_AFTER_MS

    @property
    def policies(self) -> Mapping[str, PolicyOffer]:
        """The search policies on offer."""
        return offer_of(self._offers, None).model.policies

    async def start(self) -> None:
        """Begin to make videos, first those that an earlier process left unfinished."""
        await self.models()  # to count the FLOPs of a sample takes seconds, once: let no client wait for that
        await self._maker.start()
        await self._count()

    async def close(self) -> None:
        """Stop. What is unfinished stays in the store."""
        async with contextlib.AsyncExitStack() as ending:
            ending.callback(self._store.close)
            ending.push_async_callback(self._settle)
            ending.push_async_callback(self._maker.close)

    async def _settle(self) -> None:
        """Wait for changes that are under way; a store that hangs is not waited for."""
        if self._changes:
            await asyncio.wait(self._changes, timeout=_SETTLING_S)

    def leave(self) -> None:
        """Another process is about to take this one's place: begin no more videos, and keep nobody waiting."""
        self._maker.leave()

    def check_health(self) -> None:
        """Raise RuntimeError if the service has stopped for good, so that only a new process can go on."""
        self._maker.check()

    async def check_ready(self) -> None:
        """Raise ApiError (503) while no video could be made or kept."""
        try:
            self._maker.check()
            if time.monotonic() >= self._ready_until:  # anybody may ask, as often as they like
                await asyncio.to_thread(self._store.check)
                self._ready_until = time.monotonic() + _READY_S
        except (RuntimeError, *STORE_ERRORS) as error:
            raise ApiError(503, f"no videos can be made now: {line(error)}", code="not_ready") from None

    async def models(self) -> ModelList:
        """What the endpoint offers; the first model is that of requests which name none."""
        return ModelList(data=[await asyncio.to_thread(offer.described) for offer in self._offers.values()])

    async def model(self, name: str) -> Model:
        """The model of this name. Raises ApiError."""
        return await asyncio.to_thread(offer_of(self._offers, name).described)

    async def submit(
        self, asked: VideoRequest, image: bytes | None = None, *, owner: str = "", key: str | None = None
    ) -> Video:
        """Accept a request; one that comes again with the same idempotency ``key`` is answered with the same video.

        A request for ``n`` videos becomes ``n`` of them, with seeds that follow each other, and the answer is the first
        with the ids of all. They are accepted together or not at all. Of other servers of this API, SGLang has one
        video with several files for ``n``, and vLLM-Omni has no ``n``; here each is searched for by itself, has a tree,
        costs and scores of its own, and can be watched, cancelled and deleted, and is made again alone by its seed.

        Raises ApiError for what the model or this endpoint does not offer, or a full queue.
        """
        offer = offer_of(self._offers, asked.model)
        # Off the event loop: of a size that comes for the first time, FLOPs are counted.
        requests = await asyncio.to_thread(offer.accepted, asked, image)
        asks = {**asked.model_dump(mode="json"), "image": hashlib.sha256(image or b"").hexdigest()}
        kept = {"user": asked.user, "metadata": asked.metadata}
        records = [self._queued(offer, request, owner, asked.seconds, kept) for request in requests]
        if len(records) > 1:
            ids = tuple(record.id for record in records)
            records = [replace(record, batch=ids) for record in records]
        return await self._add(records, key, asks)

    async def remix(self, video_id: str, asked: RemixRequest, *, owner: str = "", key: str | None = None) -> Video:
        """Ask for an earlier video with another prompt, from the same seed. Raises ApiError."""
        earlier = await self._record(video_id, owner)
        offer = offer_of(self._offers, earlier.model)
        request = await asyncio.to_thread(offer.remixed, await self._with_clip(earlier), asked.prompt)
        if earlier.extends is not None:  # the remix goes on from the same video
            await self._completed(earlier.extends, owner)
        asks = {"remix": video_id, "prompt": asked.prompt}
        kept = {"user": earlier.user, "metadata": earlier.metadata, "remixed_from": video_id}
        record = self._queued(offer, request, owner, earlier.seconds, {**kept, "extends": earlier.extends})
        return await self._add([record], key, asks)

    def clip_form(self, asked: ExtensionRequest) -> ClipForm:
        """What an uploaded clip is to become before ``extend``. Raises ApiError where it could not be gone on from."""
        return offer_of(self._offers, asked.model).clip_form(asked)

    async def extend(
        self, asked: ExtensionRequest, clip: CheckedClip | None = None, *, owner: str = "", key: str | None = None
    ) -> Video:
        """Ask for an earlier video, or for an uploaded clip, to go on.

        Raises ApiError, also where the video is not completed.
        """
        asks: dict[str, Any] = asked.model_dump(mode="json", exclude={"video"})
        if clip is not None:
            offer = offer_of(self._offers, asked.model)
            request = await asyncio.to_thread(offer.extended, offer.of_clip(clip.video, clip.units), asked)
            asks["clip"] = hashlib.sha256(clip.video).hexdigest()
            return await self._add([self._queued(offer, request, owner, None, {})], key, asks)
        source = asked.video.id if asked.video is not None else None
        if source is None:
            raise ApiError(400, _NO_SOURCE, param="video")
        earlier = await self._completed(source, owner)
        offer = offer_of(self._offers, earlier.model)
        if asked.model not in (None, earlier.model):
            sentence = f"{source} is gone on from by the model that made it, {earlier.model}: leave model out"
            raise ApiError(400, sentence, param="model")
        request = await asyncio.to_thread(offer.extended, earlier.request, asked)
        _file(earlier, LATENTS)
        asks["video"] = {"id": source}
        kept = {"user": earlier.user, "metadata": earlier.metadata, "extends": earlier.id}
        return await self._add([self._queued(offer, request, owner, None, kept)], key, asks)

    async def find(self, video_id: str, owner: str = "") -> Video:
        """The video's current state."""
        record = await self._record(video_id, owner)
        position = await asyncio.to_thread(self._position, record) if record.status == "queued" else None
        return self._described(record, position)

    async def page(
        self,
        owner: str = "",
        after: str | None = None,
        limit: int = 20,
        order: Literal["asc", "desc"] = "desc",
        status: Status | None = None,
    ) -> VideoList:
        """Videos, newest or oldest first, from the one after ``after``. Raises ApiError where that is unknown."""
        try:
            if after is not None and not _ID.fullmatch(after):
                raise KeyError(after)
            records, more = await asyncio.to_thread(self._store.page, owner, after, limit, order, status)
        except KeyError:
            raise ApiError(
                400, f"there is no video {(after or '')[:60]!r} to go on after", param="after", code="not_found"
            ) from None
        videos = [self._described(record) for record in records]
        return VideoList(
            data=videos,
            first_id=videos[0].id if videos else None,
            last_id=videos[-1].id if videos else None,
            has_more=more,
        )

    async def cancel(self, video_id: str, owner: str = "") -> Video:
        """Give a video up; what is sampled for it ends within a denoising step. Raises ApiError if it is finished."""
        await self._record(video_id, owner)
        if not await self._whole(self._give_up(video_id, owner)):
            record = await self._record(video_id, owner)
            raise ApiError(409, f"the video {video_id} cannot be cancelled any more, it is {record.status}")
        return await self.find(video_id, owner)

    async def delete(self, video_id: str, owner: str = "") -> DeletedVideo:
        """Remove a video and its files; one that waits or is being made is cancelled first."""

        async def change() -> None:
            await self._give_up(video_id, owner)
            await asyncio.to_thread(self._store.delete, video_id)

        await self._record(video_id, owner)
        await self._whole(change())
        return DeletedVideo(id=video_id)

    async def file(self, video_id: str, name: str, owner: str = "") -> StoredFile:
        """What is known of a file of a completed video. Raises ApiError for any other video, and for no such file."""
        return _file(await self._completed(video_id, owner), name)

    async def contents(self, video_id: str, name: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """A part of a file that ``file`` has found, from byte ``start`` to before ``end``. Raises ApiError if gone."""
        try:
            opened = await asyncio.to_thread(self._store.open_file, video_id, name, start, end)
        except (FileGone, KeyError):  # the latter: it was deleted meanwhile
            raise ApiError(
                410,
                f"the file of {video_id} is gone from the endpoint's storage: ask for it again",
                code="file_missing",
            ) from None
        return _pieces(opened.chunks)

    async def report(self, video_id: str, owner: str = "") -> Mapping[str, Any]:
        """What report.json says of a completed video."""
        return (await self._completed(video_id, owner)).report or {}

    async def tree(self, video_id: str, owner: str = "") -> Mapping[str, Any]:
        """The tree of a search: as it stands, or as it has ended."""
        record = await self._record(video_id, owner)
        live = self._maker.live(video_id)
        if live is not None:
            tree = live.look()
            return {"branches": tree.branches, "summary": tree.summary, "winner": tree.summary.get("winner")}
        if record.status in ("queued", "in_progress"):
            return {"branches": {}, "winner": None}
        await self.file(video_id, "tree.json", owner)
        whole = b"".join([piece async for piece in await self.contents(video_id, "tree.json")])
        found: dict[str, Any] = json.loads(whole)
        return found

    async def preview(self, video_id: str, branch: str, owner: str = "") -> bytes:
        """A strip of a branch's newest unit while its search goes on. Raises ApiError."""
        await self._record(video_id, owner)
        live = self._maker.live(video_id)
        try:
            strip = await live.preview(branch) if live is not None else None
        except ValueError:
            strip = None
        if strip is None:
            raise ApiError(404, f"there is no preview of branch {branch[:60]!r} now", code="not_found")
        return strip

    async def events(
        self, video_id: str, owner: str = "", last: str | None = None, patience: float = math.inf
    ) -> AsyncIterator[list[Event]]:
        """What happens to a video, from the event after the one with the id ``last``, to its end (EventLog.after).

        Raises ApiError, also where the owner follows too many videos already.
        """
        news = await self._news(video_id, owner, last, patience)
        self._come(owner)

        async def followed() -> AsyncIterator[list[Event]]:
            try:
                async for events in news:
                    yield events
            finally:
                leave()

        stream = followed()
        leave = weakref.finalize(stream, self._go, owner)  # an answer that nobody begins to read ends nowhere else
        leave.atexit = False
        return stream

    async def _news(
        self, video_id: str, owner: str, last: str | None = None, patience: float = math.inf
    ) -> AsyncIterator[list[Event]]:
        record = await self._record(video_id, owner)
        log_ = self._maker.events(video_id)
        if record.status in FINISHED and not log_.ended:  # by an earlier process: there is nothing to tell but that
            log_.add("status", self._described(record).model_dump(mode="json"))
        return log_.after(log_.number_of(last), patience)

    def _come(self, owner: str) -> None:
        """One more follows videos. Raises ApiError where the owner has as many as one may have."""
        if self._streams[owner] >= MOST_STREAMS:
            sentence = (
                f"{MOST_STREAMS} event streams and waiting requests are open already: close some, or ask for a video's "
                "state"
            )
            raise ApiError(429, sentence, code="too_many_streams")
        self._streams[owner] += 1

    def _go(self, owner: str) -> None:
        self._streams[owner] -= 1

    @contextlib.contextmanager
    def following(self, owner: str = "") -> Iterator[None]:
        """A request that will ``wait_for`` a video, counted as an event stream is. Raises ApiError."""
        self._come(owner)
        try:
            yield
        finally:
            self._go(owner)

    async def wait_for(self, video_id: str, owner: str = "") -> None:
        """Return once a video is finished. Raises ApiError (503) where another process is about to continue it."""
        async for _ in await self._news(video_id, owner):
            pass
        if self._maker.leaving and (await self._record(video_id, owner)).status not in FINISHED:
            sentence = f"the endpoint is being restarted, and will continue {video_id}: ask for that video in a moment"
            raise ApiError(503, sentence, code="restarting")

    async def _give_up(self, video_id: str, owner: str) -> bool:
        """Cancel a video. False where it was finished already."""
        given_up = await self._maker.cancel(video_id)
        if given_up:
            try:
                await self._intake.give_back(video_id, owner)
            except (*STORE_ERRORS, sqlite3.OperationalError) as error:  # it stays given up
                log.warning("%s stays counted in its owner's quota (%s)", video_id, line(error))
        return given_up

    async def _with_clip(self, record: VideoRecord) -> GenerationRequest:
        """What a video was asked for, with the clip that it goes on from, if any. Raises ApiError where it is lost."""
        if record.clip is None:
            return record.request
        try:
            return replace(record.request, clip=await asyncio.to_thread(self._store.clip, record.id))
        except (FileGone, KeyError):
            sentence = f"the clip from which {record.id} went on is gone from the endpoint's storage: send it again"
            raise ApiError(410, sentence, code="file_missing") from None

    def _queued(
        self, offer: Offer, request: GenerationRequest, owner: str, seconds: str | None, kept: Mapping[str, Any]
    ) -> VideoRecord:
        """The record of a new video; ``kept`` are further fields of it."""
        return VideoRecord(
            id=f"video_{uuid.uuid4().hex}",
            request=request,
            model=offer.model.name,
            seconds=seconds or _seconds(offer, request),
            status="queued",
            created_at=time.time(),
            owner=owner,
            price=offer.price(request),
            **kept,
        )

    async def _add(self, records: Sequence[VideoRecord], key: str | None, asks: Mapping[str, Any]) -> Video:
        """Accept the videos of a request, and describe the first; or that of an earlier request with the same key.

        ``asks`` tells this request from any other that comes with the key. Raises ApiError.
        """

        async def change() -> VideoRecord:
            kept = await self._intake.take(records, key, asks)
            if kept.id == records[0].id:
                for record in records:
                    _log_accepted(record)
                    self._tell(record)
                self._maker.wake()
                await self._count()
            return kept

        return self._described(await self._whole(change()))

    async def _whole(self, change: Coroutine[Any, Any, Answer]) -> Answer:
        """The answer of a change that goes on to its end even where its caller hangs up.

        A half of one would be a video that is kept and not made, or one that is cancelled and goes on being made.
        """
        task = asyncio.ensure_future(change)
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(_told)
            raise

    async def _record(self, video_id: str, owner: str) -> VideoRecord:
        # Some databases refuse texts that are no ids, such as one with a zero byte.
        record = await asyncio.to_thread(self._store.get, video_id, owner) if _ID.fullmatch(video_id) else None
        if record is None:
            raise ApiError(404, f"there is no video {video_id[:60]!r}", code="not_found")
        return record

    async def _completed(self, video_id: str, owner: str) -> VideoRecord:
        """The record of a completed video. Raises ApiError for any other."""
        record = await self._record(video_id, owner)
        if record.status == "failed":
            raise ApiError(409, f"the video {video_id} failed, there is nothing to download: {record.error}")
        if record.status == "cancelled":
            raise ApiError(409, f"the video {video_id} was cancelled, there is nothing to download")
        if record.status != "completed":
            raise ApiError(409, f"the video {video_id} is not finished, its status is {record.status}: ask again later")
        return record

    def _position(self, record: VideoRecord) -> int:
        """How many videos of its model have waited for longer."""
        return sum(each.created_at < record.created_at for each in self._store.queued() if each.model == record.model)

    def _described(self, record: VideoRecord, position: int | None = None) -> Video:
        """The record as the API shows it."""
        request = record.request
        done = 100 if record.status == "completed" else 0
        if record.status == "in_progress":
            done = min(99, int(self._maker.progress(record.id) * 100))
        return Video(
            id=record.id,
            model=record.model,
            prompt=request.prompt,
            status=record.status,
            progress=done,
            created_at=int(record.created_at),
            completed_at=int(record.completed_at) if record.status == "completed" and record.completed_at else None,
            expires_at=int(record.expires_at) if record.expires_at else None,
            seconds=record.seconds,
            size=f"{request.width}x{request.height}",
            seed=request.seed,
            search=Search(
                policy=request.policy,
                budget=f"{request.budget:g}x",
                until=request.until,
                seconds=request.within,
                speculation=request.speculate,
                options=request.options,
                verifiers=request.verifiers,
            ),
            user=record.user,
            metadata=dict(record.metadata),
            remixed_from_video_id=record.remixed_from,
            extended_from_video_id=record.extends,
            batch=list(record.batch),
            queue_position=position,
            warnings=self._warnings(record),
            error=VideoError(code=record.error_code or "", message=record.error or "") if record.error else None,
        )

    def _warnings(self, record: VideoRecord) -> list[str]:
        """Of the prompt, and of a finished search."""
        offer = self._offers.get(record.model)
        outside = offer.model.recipe.outside(record.request.prompt) if offer is not None else None
        return [*([outside] if outside else []), *(record.report or {}).get("warnings", [])]

    async def _changed(self, video_id: str) -> None:
        """A video's status has changed: viewers are told, however long the disk fails, and the queue is counted."""
        record = await stored(self._store.get, video_id)
        if record is not None:
            self._tell(record)
        await self._count()

    def _tell(self, record: VideoRecord) -> None:
        self._maker.events(record.id).add("status", self._described(record).model_dump(mode="json"))

    async def _count(self) -> None:
        async with self._counting:  # so that no count overtakes a later one
            try:
                waiting = len(await asyncio.to_thread(self._store.queued))
            except STORE_ERRORS as error:
                log.warning("the waiting videos could not be counted (%s)", line(error))
            else:
                self.waiting = waiting
                self._on_queue(waiting)


def _told(task: asyncio.Future[Any]) -> None:
    """Nobody is left to whom a change's failure could be told but the log."""
    failure = None if task.cancelled() else task.exception()
    if failure is not None and not isinstance(failure, ApiError):
        log.warning("a change whose caller had hung up failed", exc_info=failure)


async def _pieces(chunks: Iterator[bytes]) -> AsyncIterator[bytes]:
    while (piece := await asyncio.to_thread(next, chunks, None)) is not None:
        yield piece


def content_name(variant: str) -> str:
    """The file of a variant. Raises ApiError for an unknown one."""
    if variant not in VARIANTS:
        raise ApiError(
            400, f"there is no variant {variant[:40]!r}: choose one of {', '.join(VARIANTS)}", param="variant"
        )
    return VARIANTS[variant]


def _seconds(offer: Offer, request: GenerationRequest) -> str:
    frames = request.frames or offer.model.recipe.frames_of(request.units)
    return f"{frames / (request.fps or offer.model.recipe.fps):g}"


def _file(record: VideoRecord, name: str) -> StoredFile:
    """What is known of a file of a completed video. Raises ApiError where it has none of this name."""
    found = next((file for file in record.files if file.name == name), None)
    if found is None:
        raise ApiError(404, f"the video {record.id} has no {name}, it was made before there was one")
    return found


def _log_accepted(record: VideoRecord) -> None:
    request = record.request
    with logs.about(request=record.id):
        log.info(
            "accepted: %d units of %dx%d pixels, policy %s, budget %gx",
            *(request.units, request.width, request.height, request.policy, request.budget),
        )
