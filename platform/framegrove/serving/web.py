"""The HTTP routes of the video service, as a FastAPI application."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse
from starlette.datastructures import Headers, UploadFile
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from framegrove.serving.api import MOST_IMAGE_BYTES, ApiError, Video, parse_request
from framegrove.serving.openapi import VIDEO_REQUEST_BODY, document_requests
from framegrove.serving.service import VideoService

MOST_BODY_BYTES = 2 * MOST_IMAGE_BYTES


def build_app(service: VideoService) -> FastAPI:
    """An application that starts the service when it starts, and closes it when it ends."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.close()

    app = FastAPI(title="Framegrove", lifespan=lifespan)
    app.add_middleware(BodyLimit, most=MOST_BODY_BYTES)

    @app.post("/v1/videos", openapi_extra={"requestBody": VIDEO_REQUEST_BODY})
    async def create(request: Request) -> Video:
        """Ask for a video: it is queued, and the answer names its id."""
        body, image = await _read(request)
        return await service.submit(parse_request(body), image)

    @app.get("/v1/videos/{video_id}")
    async def retrieve(video_id: str) -> Video:
        """The status and progress of a video."""
        return await service.find(video_id)

    @app.get("/v1/videos/{video_id}/content")
    async def content(video_id: str) -> FileResponse:
        """The mp4 file of a completed video."""
        return FileResponse(await service.content(video_id), media_type="video/mp4", filename=f"{video_id}.mp4")

    @app.exception_handler(ApiError)
    async def refused(_: Request, error: ApiError) -> JSONResponse:
        headers = {"Retry-After": "10"} if error.status == 429 else None
        return JSONResponse(error.body(), error.status, headers)

    @app.exception_handler(HTTPException)
    async def not_understood(request: Request, error: HTTPException) -> JSONResponse:
        message = f"the request could not be read: {error.detail}"
        if error.status_code in (404, 405):
            known = "POST /v1/videos, GET /v1/videos/{id} and GET /v1/videos/{id}/content"
            message = f"{request.method} {request.url.path[:80]} is not served here, only {known} are"
        return JSONResponse(ApiError(error.status_code, message).body(), error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> JSONResponse:
        """The server logs the exception with its traceback; the caller gets neither."""
        message = "the request could not be answered because of an internal error: the endpoint's log has the details"
        return JSONResponse(ApiError(500, message).body(), 500)

    document_requests(app, service.policies)
    return app


class BodyLimit:
    """Middleware that refuses a request body as soon as more than ``most`` bytes are announced or have arrived.

    A body without a Content-Length, which is sent in chunks, is counted as it streams in. The routes' readers get the
    ApiError (413) in place of the next chunk, so that nothing beyond the limit is kept in memory or in a file.
    """

    def __init__(self, app: ASGIApp, most: int) -> None:
        self._app = app
        self._most = most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "")
        length = int(announced) if announced.isdecimal() else 0
        arrived = 0

        async def receive_within_limit() -> Message:
            nonlocal arrived
            if length > self._most:
                raise self._too_large()
            message = await receive()
            arrived += len(message.get("body", b""))
            if arrived > self._most:
                raise self._too_large()
            return message

        await self._app(scope, receive_within_limit, send)

    def _too_large(self) -> ApiError:
        return ApiError(413, f"the body is larger than {self._most // 2**20} MiB: send a smaller image")


async def _read(request: Request) -> tuple[Any, bytes | None]:
    """The body as decoded JSON, and an uploaded image: clients send JSON, or a form if it carries a file."""
    if request.headers.get("content-type", "").startswith("multipart/form-data"):
        return await _read_form(request)
    body = await request.body()
    try:
        return json.loads(body), None
    except (ValueError, RecursionError):
        raise ApiError(400, "the body is not valid JSON") from None


async def _read_form(request: Request) -> tuple[dict[str, Any], bytes | None]:
    body: dict[str, Any] = {}
    image = None
    async with request.form() as form:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                if name != "input_reference":
                    raise ApiError(400, f"the file {name[:60]!r} is not expected, only input_reference is", param=name)
                image = await value.read(MOST_IMAGE_BYTES + 1)
                if len(image) > MOST_IMAGE_BYTES:
                    raise ApiError(413, f"the image is larger than {MOST_IMAGE_BYTES // 2**20} MiB", param=name)
            else:
                _put(body, name, value)
    return body, image


def _put(body: dict[str, Any], name: str, value: str) -> None:
    """Set a field of a form, where a nested one is written as ``search[budget]``."""
    section, bracket, field = name.partition("[")
    if bracket and field.endswith("]"):
        inner = body.setdefault(section, {})
        if not isinstance(inner, dict):
            raise ApiError(400, f"the field {section[:60]} is given both as a value and as a section", param=section)
        inner[field[:-1]] = value
    else:
        body[name] = int(value) if name == "seed" and value.isdecimal() else value
