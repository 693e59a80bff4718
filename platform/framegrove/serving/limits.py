"""Limits on requests: their methods; how large a body is, how long it may take, how many arrive at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http import HTTPMethod

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from framegrove.serving.answers import refusal
from framegrove.serving.api import ApiError

SAFE_METHODS = ("GET", "HEAD", "OPTIONS")  # they change nothing, and no route reads a body that comes with them


class KnownMethods:
    """Middleware that takes all methods that HTTP does not define for one, ``OTHER``, which no route answers (405).

    Requests are counted by their method, for ever: a client may not make up as many as it likes.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        known = scope["type"] != "http" or scope["method"] in HTTPMethod.__members__
        await self._app(scope if known else {**scope, "method": "OTHER"}, receive, send)


class Places:
    """A fixed number of places for work that takes memory. Whoever finds them all taken is turned away, with ``why``.

    >>> places = Places(1, "pictures are being read already: try again in a moment")
    >>> with places.taken():
    ...     read(picture)
    """

    def __init__(self, most: int, why: str) -> None:
        self._free = most
        self._why = why

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Hold a place. Raises ApiError (503) where none is free."""
        if not self._free:
            raise ApiError(503, self._why, code="busy")
        self._free -= 1
        try:
            yield
        finally:
            self._free += 1


class Bodies:
    """Middleware that reads a request's body whole before the application sees the request.

    It refuses a body of more than ``most`` bytes (for the paths in ``larger``: more than are named there) as soon as so
    many are announced or have arrived (413), one that is not there after ``seconds`` (408), and one that arrives while
    ``at_a_time`` others do (503). The application is not called for these, nor for a body that was cut off because its
    connection broke.

    Bodies take at most the largest of these limits * ``at_a_time`` bytes of memory while they arrive. A refused
    connection is closed: otherwise a client could go on sending a body for which nobody waits.
    """

    def __init__(
        self, app: ASGIApp, *, most: int, larger: Mapping[str, int] | None = None, seconds: float, at_a_time: int
    ) -> None:
        self._app = app
        self._most = most
        self._larger = larger or {}
        self._seconds = seconds
        self._places = Places(at_a_time, f"{at_a_time} requests are being read already: try again in a moment")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in SAFE_METHODS or not _has_body(scope):
            await self._app(scope, receive, send)
            return
        try:
            body = await self._read(scope, receive)
        except ApiError as error:
            await refusal(error, close=True)(scope, receive, send)
        except ClientDisconnect:
            pass  # nobody is left to be answered
        else:
            await self._app(scope, _replayed(body, receive), send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes:
        most = self._larger.get(scope["path"], self._most)
        announced = Headers(scope=scope).get("content-length", "")
        if announced.isdecimal() and float(announced) > most:  # unlike int, float takes any number of digits
            raise _too_large(most)
        with self._places.taken():
            try:
                async with asyncio.timeout(self._seconds):
                    return await _received(receive, most)
            except TimeoutError:
                sentence = f"the body was not there after {self._seconds:g} seconds: send it faster, or a smaller file"
                raise ApiError(408, sentence) from None


async def _received(receive: Receive, most: int) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += message.get("body", b"")
        if len(body) > most:
            raise _too_large(most)
        if not message.get("more_body", False):
            return bytes(body)


def _too_large(most: int) -> ApiError:
    return ApiError(413, f"the body is larger than {most // 2**20} MiB: send a smaller file")


def _has_body(scope: Scope) -> bool:
    """Whether a body follows the headers: one is announced by its length, or sent in chunks (RFC 9112, section 6.3)."""
    headers = Headers(scope=scope)
    return "transfer-encoding" in headers or headers.get("content-length", "0").strip("0") != ""


def _replayed(body: bytes, receive: Receive) -> Receive:
    """``receive`` for the application: the whole body in one message, then what else the server has to say."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return waiting.pop() if waiting else await receive()

    return replay
