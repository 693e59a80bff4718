"""Who is let in: middleware that asks for an API key and limits how often its owner may come."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import math
import time

from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import MovingWindowRateLimiter
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from framegrove.serving.api import ApiError
from framegrove.serving.keys import UNREADABLE, Key, KeyRing, KeysUnreadable

FAILURES_PER_MINUTE = 20  # failed authentications from one client address
_LONGEST_SECRET = 256  # characters; anything longer is no secret of ours, and is not hashed

# For probes and for the page, which asks its visitor for a key. What the page then calls is not open.
_OPEN = ("/", "/healthz", "/readyz")
_OPEN_BELOW = "/page/"

log = logging.getLogger(__name__)


class KeyAuth:
    """ASGI middleware: ``Authorization: Bearer SECRET`` or 401; the key's name is then ``request.state.owner``.

    Open are GET and HEAD of ``/``, ``/healthz``, ``/readyz`` and what is below ``/page/``. Each key has its own limit
    of requests per minute, counted over a moving window; failed authentications are limited by client address, and
    never shut out a valid key from the same address. Counts are kept in memory: they begin anew with the process.
    """

    def __init__(self, app: ASGIApp, keys: KeyRing) -> None:
        self._app = app
        self._keys = keys
        self._limiter = MovingWindowRateLimiter(MemoryStorage())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or _is_open(scope):
            await self._app(scope, receive, send)
            return
        try:
            key = await self._admitted(scope)
        except Refused as refused:
            await _answer(refused)(scope, receive, send)
            return
        state = {**scope.get("state", {}), "owner": key.name}
        await self._app({**scope, "state": state}, receive, send)

    async def _admitted(self, scope: Scope) -> Key:
        """The key that this request comes with. Raises Refused."""
        try:
            key = await self._key(_secret(scope))
        except KeysUnreadable as error:
            log.error("every request is refused: %s", error)
            raise Refused(503, UNREADABLE) from error
        if key is None:
            await self._count_failure(scope)
            raise Refused(
                401,
                "no valid API key was given: send the header `Authorization: Bearer KEY`, with a key from whoever runs "
                "this endpoint",
                code="invalid_api_key",
            )
        await self._count_request(key)
        return key

    async def _key(self, secret: str) -> Key | None:
        if not secret or len(secret) > _LONGEST_SECRET:
            return None
        key = self._keys.recall(secret)
        # In a thread, since the first check of a secret is slow on purpose.
        return key if key is not None else await asyncio.to_thread(self._keys.check, secret)

    async def _count_request(self, key: Key) -> None:
        most = key.limits.requests_per_minute
        wait = await self._hit(most, "key", key.name)
        if wait:
            sentence = f"the key {key.name} may send {most} requests per minute: try again in {wait} s"
            raise Refused(429, sentence, code="rate_limit_exceeded", retry_after=wait)

    async def _count_failure(self, scope: Scope) -> None:
        address = _network(scope)
        wait = await self._hit(FAILURES_PER_MINUTE, "failed", address)
        if wait:
            sentence = f"too many requests without a valid API key came from {address}: try again in {wait} s"
            raise Refused(429, sentence, code="rate_limit_exceeded", retry_after=wait)

    async def _hit(self, most: int, *whose: str) -> int:
        """Count one more; 0 if that is within the limit, otherwise the seconds until there is room again."""
        limit = RateLimitItemPerMinute(most)
        if await self._limiter.hit(limit, *whose):
            return 0
        stats = await self._limiter.get_window_stats(limit, *whose)
        return max(1, math.ceil(stats.reset_time - time.time()))


class Refused(ApiError):
    """A request that is not let in; ``retry_after`` in seconds, where waiting helps."""

    def __init__(self, status: int, message: str, *, code: str | None = None, retry_after: int | None = None) -> None:
        super().__init__(status, message, code=code)
        self.retry_after = retry_after


def _is_open(scope: Scope) -> bool:
    if scope["type"] != "http" or scope["method"] not in ("GET", "HEAD"):
        return False
    path = scope["path"]
    return path in _OPEN or (path.startswith(_OPEN_BELOW) and ".." not in path.split("/"))


def _secret(scope: Scope) -> str:
    """What was sent as a bearer token; empty if nothing was."""
    scheme, _, secret = Headers(scope=scope).get("authorization", "").partition(" ")
    return secret.strip() if scheme.lower() == "bearer" else ""


def _network(scope: Scope) -> str:
    """The client's address; of IPv6 the /64, all of which a single client may have."""
    host = (scope.get("client") or ("an unknown address",))[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return str(host)
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)


def _answer(refused: Refused) -> JSONResponse:
    headers = {}
    if refused.status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="framegrove"'
    if refused.retry_after is not None:
        headers["Retry-After"] = str(refused.retry_after)
    return JSONResponse(refused.body(), refused.status, headers)
