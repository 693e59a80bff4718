"""The HTTP routes of the video service, as a FastAPI application."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from framegrove.config.serve import ServeConfig
from framegrove.serving.answers import Contained, refusal
from framegrove.serving.api import MOST_IMAGE_BYTES, ApiError, ModelList, Video
from framegrove.serving.limits import Bodies
from framegrove.serving.openapi import ERROR_ANSWERS, VIDEO_FILE, VIDEO_REQUEST_BODY, document_requests
from framegrove.serving.origins import CrossSite, ForeignHosts, allowed_hosts
from framegrove.serving.pictures import PictureReader
from framegrove.serving.reading import read_request
from framegrove.serving.service import VideoService

MOST_BODY_BYTES = 2 * MOST_IMAGE_BYTES


def build_app(service: VideoService, config: ServeConfig) -> FastAPI:
    """An application that starts the service when it starts, and closes it when it ends.

    Of ``config``, it takes what protects it from its clients.
    """
    pictures = PictureReader(config.reading)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.start()
        yield
        pictures.close()
        await service.close()

    app = FastAPI(title="Framegrove", lifespan=lifespan, responses=ERROR_ANSWERS)
    protect(app, config)

    @app.post("/v1/videos", openapi_extra={"requestBody": VIDEO_REQUEST_BODY})
    async def create(request: Request) -> Video:
        """Ask for a video: it is queued, and the answer names its id."""
        return await service.submit(*await read_request(request, pictures))

    @app.get("/v1/models")
    async def models() -> ModelList:
        """The model on offer, and what it was trained on."""
        return service.models()

    @app.get("/v1/videos/{video_id}")
    async def retrieve(video_id: str) -> Video:
        """The status and progress of a video."""
        return await service.find(video_id)

    @app.get("/v1/videos/{video_id}/content", response_class=FileResponse, responses=VIDEO_FILE)
    async def content(video_id: str) -> FileResponse:
        """The mp4 file of a completed video."""
        return FileResponse(await service.content(video_id), media_type="video/mp4", filename=f"{video_id}.mp4")

    @app.exception_handler(ApiError)
    async def refused(_: Request, error: ApiError) -> JSONResponse:
        return refusal(error)

    @app.exception_handler(HTTPException)
    async def not_understood(request: Request, error: HTTPException) -> JSONResponse:
        message = f"the request could not be read: {error.detail}"
        if error.status_code in (404, 405):
            known = "GET /v1/models, POST /v1/videos, GET /v1/videos/{id} and GET /v1/videos/{id}/content"
            message = f"{request.method} {request.scope['path'][:80]!r} is not served here, only {known} are"
        return JSONResponse(ApiError(error.status_code, message).body(), error.status_code, error.headers)

    document_requests(app, service.policies)
    return app


def protect(app: FastAPI, config: ServeConfig) -> None:
    """Put the middlewares around the routes. The last one added is the outermost: it sees a request first."""
    app.add_middleware(Bodies, most=MOST_BODY_BYTES, seconds=config.body_seconds, at_a_time=config.reading)
    app.add_middleware(CrossSite, origins=config.origins)
    if config.origins:  # for all other sites, browsers keep the answers from the pages that asked for them
        app.add_middleware(CORSMiddleware, allow_origins=config.origins, allow_methods=["*"], allow_headers=["*"])
    hosts = allowed_hosts(config.host, config.hosts)
    if hosts is not None:
        app.add_middleware(ForeignHosts, hosts=hosts)
    app.add_middleware(Contained)
