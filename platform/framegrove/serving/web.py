"""The HTTP routes over a service, as a FastAPI application."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from framegrove.serving.api import MOST_IMAGE_BYTES, ApiError, Video, parse_request
from framegrove.serving.service import VideoService

MOST_BODY_BYTES = 2 * MOST_IMAGE_BYTES


def build_app(service: VideoService) -> FastAPI:
    """An application that starts and closes the service with itself."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.close()

    app = FastAPI(title="Framegrove", lifespan=lifespan)

    @app.post("/v1/videos")
    async def create(request: Request) -> Video:
        body, image = await _read(request)
        return await service.submit(parse_request(body), image)

    @app.get("/v1/videos/{video_id}")
    async def retrieve(video_id: str) -> Video:
        return await service.find(video_id)

    @app.get("/v1/videos/{video_id}/content")
    async def content(video_id: str) -> FileResponse:
        return FileResponse(await service.content(video_id), media_type="video/mp4", filename=f"{video_id}.mp4")

    @app.exception_handler(ApiError)
    async def turned_away(_: Request, error: ApiError) -> JSONResponse:
        headers = {"Retry-After": "10"} if error.status == 429 else None
        return JSONResponse(error.body(), error.status, headers)

    @app.exception_handler(HTTPException)
    async def not_routed(request: Request, error: HTTPException) -> JSONResponse:
        known = "POST /v1/videos, GET /v1/videos/{id} and GET /v1/videos/{id}/content"
        message = f"{request.method} {request.url.path[:80]} is not served here, {known} are"
        return JSONResponse(ApiError(error.status_code, message).body(), error.status_code, error.headers)

    return app


async def _read(request: Request) -> tuple[Any, bytes | None]:
    """The body as decoded JSON and an uploaded image: clients send JSON, or a form when a file may go along."""
    _check_length(int(request.headers.get("content-length") or 0))
    if request.headers.get("content-type", "").startswith("multipart/form-data"):
        return await _read_form(request)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        _check_length(len(body))
    try:
        return json.loads(body), None
    except (ValueError, RecursionError):
        raise ApiError(400, "the body is not valid JSON") from None


def _check_length(length: int) -> None:
    if length > MOST_BODY_BYTES:
        raise ApiError(413, f"the body is larger than {MOST_BODY_BYTES // 2**20} MiB")


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
    """Forms write a nested field as ``search[budget]``."""
    section, bracket, field = name.partition("[")
    if bracket and field.endswith("]"):
        inner = body.setdefault(section, {})
        if not isinstance(inner, dict):
            raise ApiError(400, f"the field {section[:60]} is given both as a value and as a section", param=section)
        inner[field[:-1]] = value
    else:
        body[name] = int(value) if name == "seed" and value.isdecimal() else value
