"""The HTTP routes of the API: from requests to the service, and back."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Annotated, Literal

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from framegrove.serving.api import (
    ApiError,
    DeletedVideo,
    Model,
    ModelList,
    RemixRequest,
    Status,
    Video,
    VideoList,
)
from framegrove.serving.clips import checked_clip
from framegrove.serving.decoding import Decoders
from framegrove.serving.live import Event
from framegrove.serving.openapi import EXTENSION_BODY, REMIX_BODY, VIDEO_REQUEST_BODY
from framegrove.serving.reading import read_extension, read_json, read_request
from framegrove.serving.records import StoredFile
from framegrove.serving.service import VideoService, content_name

EXTENSIONS = "/v1/videos/extensions"

_KINDS = {"mp4": "video/mp4", "webp": "image/webp", "png": "image/png", "html": "text/html", "json": "application/json"}
_PAGES = {"Content-Security-Policy": "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline'; "
          "style-src 'unsafe-inline'; img-src data:"}  # fmt: skip
_STILL_HERE = 15.0  # seconds of silence after which a viewer is told that the stream goes on
_KEY = re.compile(r"[\x21-\x7e]{1,255}")

IdempotencyKey = Annotated[
    str | None,
    Header(description="the same request with the same key is accepted once, and answered with the same video again"),
]


def routes_of(service: VideoService, decoders: Decoders) -> APIRouter:
    """All routes of the API."""
    router = APIRouter()
    for add in (_asking, _managing, _watching, _models, _health):
        add(router, service, decoders)
    return router


def _asking(router: APIRouter, service: VideoService, decoders: Decoders) -> None:
    @router.post(
        "/v1/videos",
        openapi_extra={"requestBody": VIDEO_REQUEST_BODY},
    )
    async def create(request: Request, idempotency_key: IdempotencyKey = None) -> Video:
        """Ask for a video: it is queued, and the answer names its id; of ``n`` videos, those of all in ``batch``."""
        asked, image = await read_request(request, decoders)
        return await service.submit(asked, image, owner=_owner(request), key=_key(idempotency_key))

    @router.post(
        "/v1/videos/sync",
        openapi_extra={"requestBody": VIDEO_REQUEST_BODY},
        response_class=Response,
        responses={
            200: {"content": {"video/mp4": {}}, "description": "the mp4 file; X-Video-Id names the video"},
        },
    )
    async def create_and_wait(request: Request, idempotency_key: IdempotencyKey = None) -> Response:
        """Ask for a video and wait for its file. Who stops waiting can still ask for it by its id."""
        asked, image = await read_request(request, decoders)
        if asked.n > 1:
            raise ApiError(400, f"n is {asked.n}: one video at a time can be waited for, use /v1/videos", param="n")
        owner = _owner(request)
        with service.following(owner):
            video = await service.submit(asked, image, owner=owner, key=_key(idempotency_key))
            await service.wait_for(video.id, owner)
        answer = await _file(service, request, video.id, content_name("video"), owner)
        answer.headers["X-Video-Id"] = video.id
        return answer

    @router.post("/v1/videos/{video_id}/remix", openapi_extra={"requestBody": REMIX_BODY})
    async def remix(video_id: str, request: Request, idempotency_key: IdempotencyKey = None) -> Video:
        """Ask for an earlier video with another prompt, from the same seed."""
        asked = await read_json(request, RemixRequest)
        return await service.remix(video_id, asked, owner=_owner(request), key=_key(idempotency_key))

    @router.post(EXTENSIONS, openapi_extra={"requestBody": EXTENSION_BODY})
    async def extend(request: Request, idempotency_key: IdempotencyKey = None) -> Video:
        """Ask for an earlier video, or for a clip of your own, to go on: a new video that begins with all of it."""
        asked, sent = await read_extension(request)
        clip = await checked_clip(sent, service.clip_form(asked), decoders) if sent is not None else None
        return await service.extend(asked, clip, owner=_owner(request), key=_key(idempotency_key))


def _managing(router: APIRouter, service: VideoService, decoders: Decoders) -> None:
    @router.get("/v1/videos")
    async def page(
        request: Request,
        after: Annotated[str | None, Query(max_length=64, description="the id to go on after")] = None,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        order: Literal["asc", "desc"] = "desc",
        status: Status | None = None,
    ) -> VideoList:
        """Videos, the newest first unless ``order`` is asc."""
        return await service.page(_owner(request), after, limit, order, status)

    @router.get("/v1/videos/{video_id}")
    async def retrieve(video_id: str, request: Request, response: Response) -> Video:
        """The status and progress of a video. The header openai-poll-after-ms says how soon to ask again."""
        video = await service.find(video_id, _owner(request))
        if video.status in ("queued", "in_progress"):
            response.headers["openai-poll-after-ms"] = str(service.poll_after_ms)
        return video

    @router.delete("/v1/videos/{video_id}")
    async def delete(video_id: str, request: Request) -> DeletedVideo:
        """Remove a video and its files; one that waits or is being made is given up."""
        return await service.delete(video_id, _owner(request))

    @router.post("/v1/videos/{video_id}/cancel")
    async def cancel(video_id: str, request: Request) -> Video:
        """Give a video up. What is being sampled for it ends within a denoising step."""
        return await service.cancel(video_id, _owner(request))

    @router.head("/v1/videos/{video_id}/content", include_in_schema=False)
    @router.get(
        "/v1/videos/{video_id}/content",
        response_class=Response,
        responses={
            200: {
                "content": {kind: {} for kind in ("video/mp4", "image/webp", "image/png")},
                "description": "the file",
            },
            206: {"description": "the part of the file that the header Range asks for"},
            304: {"description": "the file is the one whose ETag was given in If-None-Match"},
        },
    )
    async def content(video_id: str, request: Request, variant: str = "video") -> Response:
        """A file of a completed video: video, thumbnail, spritesheet or tree. Takes Range and If-None-Match."""
        return await _file(service, request, video_id, content_name(variant), _owner(request))


def _watching(router: APIRouter, service: VideoService, decoders: Decoders) -> None:
    @router.get(
        "/v1/videos/{video_id}/events",
        response_class=Response,
        responses={200: {"content": {"text/event-stream": {}}, "description": "server-sent events"}},
    )
    async def events(
        video_id: str, request: Request, last_event_id: Annotated[str | None, Header()] = None
    ) -> StreamingResponse:
        """What happens to a video, as server-sent events: status, started, branch, works, summary, progress.

        A branch's event holds all that is known of it, so that the latest of each branch is the tree. The stream ends
        once the video is finished; Last-Event-ID goes on after an event.
        """
        news = await service.events(video_id, _owner(request), last_event_id, _STILL_HERE)
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # the latter: proxies pass it on as it comes
        return StreamingResponse(_sent(news), headers=headers, media_type="text/event-stream")

    @router.get("/v1/videos/{video_id}/tree", response_class=JSONResponse)
    async def tree(video_id: str, request: Request) -> JSONResponse:
        """The tree of a search, as it stands or as it has ended: branches by id, with their scores."""
        return JSONResponse(await service.tree(video_id, _owner(request)))

    @router.get("/v1/videos/{video_id}/tree.html", response_class=Response)
    async def tree_page(video_id: str, request: Request) -> Response:
        """The finished tree as a page of its own."""
        return await _file(service, request, video_id, "tree.html", _owner(request), _PAGES)

    @router.get("/v1/videos/{video_id}/report", response_class=JSONResponse)
    async def report(video_id: str, request: Request) -> JSONResponse:
        """The report of a completed video: costs, scores, every branch, who worked when."""
        return JSONResponse(await service.report(video_id, _owner(request)))

    @router.get(
        "/v1/videos/{video_id}/branches/{branch}/preview",
        response_class=Response,
        responses={200: {"content": {"image/webp": {}}, "description": "four frames side by side"}},
    )
    async def preview(video_id: str, branch: str, request: Request) -> Response:
        """What a branch's newest unit looks like, while its search goes on."""
        strip = await service.preview(video_id, branch, _owner(request))
        return Response(strip, media_type="image/webp", headers={"Cache-Control": "private, no-store"})


def _models(router: APIRouter, service: VideoService, decoders: Decoders) -> None:
    @router.get("/v1/models")
    async def models() -> ModelList:
        """The models on offer: sizes, lengths, search policies with their options, and the price of a sample."""
        return await service.models()

    @router.get("/v1/models/{name}")
    async def model(name: str) -> Model:
        """The same of one model."""
        return await service.model(name)


def _health(router: APIRouter, service: VideoService, decoders: Decoders) -> None:
    @router.get("/healthz")
    async def health() -> dict[str, str]:
        """Whether the process answers."""
        return {"status": "ok"}

    @router.get("/readyz")
    async def ready() -> dict[str, str]:
        """Whether videos can be made and kept."""
        await service.check_ready()
        return {"status": "ok"}


async def _sent(news: AsyncIterator[list[Event]]) -> AsyncIterator[bytes]:
    async for events in news:
        yield b"".join(event.sent for event in events) or b": still here\n\n"


def _owner(request: Request) -> str:
    """The name of the key that a request came with, empty where the endpoint has no keys."""
    return str(request.scope.get("state", {}).get("owner", ""))


def _key(given: str | None) -> str | None:
    if given is not None and not _KEY.fullmatch(given):
        raise ApiError(400, "Idempotency-Key has 1 to 255 visible ASCII characters", param="Idempotency-Key")
    return given


async def _file(
    service: VideoService,
    request: Request,
    video_id: str,
    name: str,
    owner: str,
    more: dict[str, str] | None = None,
) -> Response:
    """A file, or the part of it that is asked for, or that it has not changed."""
    file = await service.file(video_id, name, owner)
    suffix = name.rpartition(".")[2]
    etag = f'"{file.etag}"'
    headers = {"ETag": etag, "Accept-Ranges": "bytes", "Cache-Control": "private, max-age=0, must-revalidate"}
    headers |= {"Content-Disposition": f'inline; filename="{video_id}.{suffix}"', **(more or {})}
    if etag in request.headers.get("if-none-match", "").replace("W/", "").split(", "):
        return Response(status_code=304, headers=headers)
    start, end = _range(request.headers.get("range") if request.method == "GET" else None, file)
    status = 200
    if (start, end) != (0, file.size):
        status, headers["Content-Range"] = 206, f"bytes {start}-{end - 1}/{file.size}"
    headers["Content-Length"] = str(end - start)
    if request.method == "HEAD":
        return Response(status_code=200, headers=headers, media_type=_KINDS[suffix])
    contents = await service.contents(video_id, name, start, end)
    return StreamingResponse(contents, status, headers, _KINDS[suffix])


def _range(asked: str | None, file: StoredFile) -> tuple[int, int]:
    """The first byte and the one after the last of a Range header; of several ranges, or one in other units, all.

    Raises ApiError (416) for a part that the file does not have.
    """
    match = re.fullmatch(r"bytes=(\d{0,18})-(\d{0,18})", asked or "")
    if match is None or match.group() == "bytes=-":
        return 0, file.size
    first, last = match.groups()
    if first:
        start, end = int(first), min(int(last) + 1, file.size) if last else file.size
    else:
        start, end = max(0, file.size - int(last)), file.size
    if start >= end:
        raise ApiError(416, f"the file has {file.size:,} bytes: ask for a range within them")
    return start, end
