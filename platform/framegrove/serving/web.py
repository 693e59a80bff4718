"""The HTTP routes of the video service, as a FastAPI application."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from prometheus_client import CollectorRegistry, Gauge
from prometheus_fastapi_instrumentator import Instrumentator
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

from framegrove.config.serve import ServeConfig
from framegrove.serving.answers import Contained, refusal
from framegrove.serving.api import MOST_CLIP_BYTES, MOST_IMAGE_BYTES, ApiError
from framegrove.serving.auth import KeyAuth
from framegrove.serving.decoding import Decoders
from framegrove.serving.keys import KeyRing
from framegrove.serving.limits import Bodies, KnownMethods
from framegrove.serving.making import line
from framegrove.serving.openapi import ERROR_ANSWERS, document_requests
from framegrove.serving.origins import CrossSite, ForeignHosts, allowed_hosts
from framegrove.serving.routes import EXTENSIONS, routes_of
from framegrove.serving.service import VideoService
from framegrove.serving.store import STORE_ERRORS

log = logging.getLogger(__name__)

MOST_BODY_BYTES = 2 * MOST_IMAGE_BYTES
LARGER_BODIES = {EXTENSIONS: MOST_CLIP_BYTES * 4 // 3 + 2**20}  # a clip in base64, and the fields beside it

PAGE = Path(__file__).parent / "page"


def page_headers(scripts: Sequence[str]) -> dict[str, str]:
    """What browsers are told of the page: it loads nothing from elsewhere, and no other page may show it.

    Pictures and videos come by blob: addresses, since they are fetched with a key. The finished tree is shown in a
    frame of its own, with its script inside, which is allowed by its hash, one of ``scripts``.
    """
    policy = {
        "default-src": "'self'",
        "img-src": "'self' blob: data:",
        "media-src": "blob:",
        "script-src": " ".join(["'self'", *scripts]),
        "style-src": "'self' 'unsafe-inline'",
        "frame-ancestors": "'none'",
        "base-uri": "'none'",
        "form-action": "'self'",
    }
    return {
        "Content-Security-Policy": "; ".join(f"{name} {allowed}" for name, allowed in policy.items()),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }


class PageFiles(StaticFiles):
    """The page's files, which browsers ask for anew after an upgrade."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        super().__init__(directory=PAGE)
        self._headers = headers

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers.update(self._headers)
        return response


def build_app(
    service: VideoService,
    config: ServeConfig,
    *,
    scripts: Sequence[str] = (),
    ending: Callable[[], Awaitable[None]] | None = None,
) -> FastAPI:
    """An application that starts the service when it starts, and closes it when it ends.

    Of ``config``, it takes what protects it from its clients. ``scripts`` are hashes of scripts that the page may run
    inside the finished tree. ``ending`` returns when this process is told to end, before its last requests are done.
    """
    decoders = Decoders(config.reading)

    async def leave() -> None:
        if ending is not None:
            await ending()
            service.leave()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.start()
        leaving = asyncio.create_task(leave()) if ending is not None else None
        yield
        if leaving is not None:
            leaving.cancel()
        await decoders.close()
        await service.close()

    app = FastAPI(title="Framegrove", lifespan=lifespan, responses=ERROR_ANSWERS)
    protect(app, config)

    app.include_router(routes_of(service, decoders))
    headers = page_headers(scripts)
    app.mount("/page", PageFiles(headers))

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(PAGE / "index.html", headers=headers)

    @app.exception_handler(ApiError)
    async def refused(_: Request, error: ApiError) -> JSONResponse:
        return refusal(error)

    async def not_kept(request: Request, error: Exception) -> JSONResponse:
        log.error("%s %.80r failed: %s", request.method, request.scope["path"], line(error), exc_info=error)
        return refusal(ApiError(503, "the endpoint cannot keep or read videos now: try again later", code="storage"))

    for kind in (*STORE_ERRORS, sqlite3.OperationalError):  # the latter: of quotas
        app.add_exception_handler(kind, not_kept)

    @app.exception_handler(HTTPException)
    async def not_understood(request: Request, error: HTTPException) -> JSONResponse:
        message = f"the request could not be read: {error.detail}"
        if error.status_code in (404, 405):
            message = f"{request.method} {request.scope['path'][:80]} is not served here: /docs lists what is"
        return JSONResponse(ApiError(error.status_code, message).body(), error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def not_allowed(_: Request, error: RequestValidationError) -> JSONResponse:
        """Of a query or a header; bodies are read by the routes themselves."""
        first = error.errors()[0]
        name = str(first["loc"][-1])
        return refusal(ApiError(400, f"{name}: {first['msg'][0].lower()}{first['msg'][1:]}", param=name))

    count(app, service)
    document_requests(app, service.policies)
    return app


def count(app: FastAPI, service: VideoService) -> None:
    """Count requests, their times and sizes, and waiting videos: GET /metrics shows them to Prometheus."""
    registry = CollectorRegistry()
    Gauge("framegrove_videos_waiting", "Videos that wait.", registry=registry).set_function(lambda: service.waiting)
    Gauge("framegrove_videos_in_progress", "Videos that are being made.", registry=registry).set_function(
        lambda: service.in_progress
    )
    Instrumentator(registry=registry, excluded_handlers=["/metrics", "/healthz", "/readyz"]).instrument(app).expose(
        app, include_in_schema=False
    )
    app.add_middleware(KnownMethods)


def protect(app: FastAPI, config: ServeConfig) -> None:
    """Put the middlewares around the routes. The last one added is the outermost: it sees a request first."""
    app.add_middleware(
        Bodies, most=MOST_BODY_BYTES, larger=LARGER_BODIES, seconds=config.body_seconds, at_a_time=config.reading
    )
    if config.keys is not None:  # before any body is read: who is not let in takes up no place
        app.add_middleware(KeyAuth, keys=KeyRing(config.keys))
    app.add_middleware(CrossSite, origins=config.origins)
    if config.origins:  # for all other sites, browsers keep the answers from the pages that asked for them
        app.add_middleware(CORSMiddleware, allow_origins=config.origins, allow_methods=["*"], allow_headers=["*"])
    hosts = allowed_hosts(config.host, config.hosts)
    if hosts is not None:
        app.add_middleware(ForeignHosts, hosts=hosts)
    app.add_middleware(Contained)
