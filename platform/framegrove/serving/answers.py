"""Refusals and failures as the answers that a caller gets; a failure's traceback goes into the log and no further."""

from __future__ import annotations

import logging

from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from framegrove.serving.api import ApiError

log = logging.getLogger(__name__)

_RETRY_AFTER = {429: "10", 503: "1"}  # seconds: a queue moves slowly, a place to read a request is free again soon
_FAILED = "the request could not be answered because of an internal error: the endpoint's log has the details"


def refusal(error: ApiError, *, close: bool = False) -> JSONResponse:
    """The answer to a refused request; with ``close``, the server also closes the connection."""
    headers = {"Retry-After": _RETRY_AFTER[error.status]} if error.status in _RETRY_AFTER else {}
    if close:
        headers["Connection"] = "close"
    return JSONResponse(error.body(), error.status, headers)


class Contained:
    """Middleware, the outermost: whatever is raised inside is logged with its traceback and answered with a 500.

    It is not raised any further: Ray Serve would write the traceback into an answer that has not begun. An answer that
    has begun is left unfinished, so that the server closes the connection and the caller notices.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = False

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception:
            log.exception("%s %.80r failed", scope["method"], scope["path"])
            if not begun:
                await JSONResponse(ApiError(500, _FAILED).body(), 500)(scope, receive, send)
