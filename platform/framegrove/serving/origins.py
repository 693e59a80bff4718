"""Requests that a foreign web page makes a visitor's browser send: refused by their origin and by their host."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Iterable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from framegrove.serving.answers import refusal
from framegrove.serving.api import ApiError
from framegrove.serving.limits import SAFE_METHODS

_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[\w.-]+)(?::\d*)?")


class CrossSite:
    """Middleware that refuses what a page of another site sends, unless its origin is one of ``origins`` (403).

    A browser sends a plain HTML form anywhere without asking, multipart ones included. But it says where the request
    comes from, in Origin or Sec-Fetch-Site, and no page can change that. Other clients send neither, and pass. The
    rules are those of Go's http.CrossOriginProtection (https://words.filippo.io/csrf).
    """

    def __init__(self, app: ASGIApp, *, origins: Collection[str]) -> None:
        self._app = app
        self._origins = frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] not in SAFE_METHODS and self._is_foreign(Headers(scope=scope)):
            sentence = (
                "this request comes from a page of another site, which may not send it: add that site to the "
                "endpoint's origins (--set origins=[https://example.org]) if it is to be trusted"
            )
            await refusal(ApiError(403, sentence), close=True)(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _is_foreign(self, headers: Headers) -> bool:
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        if origin in self._origins:
            return False
        if site is not None:
            return site not in ("same-origin", "none")
        # The scheme does not count: behind a proxy that ends TLS, this server does not know its own.
        return origin is not None and origin.partition("://")[2] != headers.get("host")


class ForeignHosts:
    """Middleware that refuses requests to a host that is not one of ``hosts`` (403).

    An attacker's site can give its own name the address 127.0.0.1 (DNS rebinding): to a visitor's browser, this
    endpoint is then a part of that site, whose pages may read all of it. The name stays in the Host header. Clients
    that send no such header are no browsers, and pass.
    """

    def __init__(self, app: ASGIApp, *, hosts: Collection[str]) -> None:
        self._app = app
        self._hosts = frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        host = Headers(scope=scope).get("host") if scope["type"] == "http" else None
        if host is None or _name(host) in self._hosts:
            await self._app(scope, receive, send)
            return
        sentence = (
            f"the host {host[:60]!r} is not served here: use http://localhost, or add the name to the endpoint's hosts "
            "(--set hosts=[example.org])"
        )
        await refusal(ApiError(403, sentence), close=True)(scope, receive, send)


def allowed_hosts(listening: str, also: Iterable[str]) -> frozenset[str] | None:
    """The hosts that requests may name where the endpoint listens on a loopback address; None, any, elsewhere.

    An address that other machines reach is known under names that this endpoint cannot know.
    """
    if not _is_loopback(listening):
        return None
    own = f"[{listening}]" if ":" in listening else listening
    return frozenset(host.lower() for host in (*_LOOPBACK_NAMES, own, *also))


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _name(host: str) -> str:
    """A Host header without its port and in lower case; empty for what is no host."""
    match = _HOST.fullmatch(host)
    return match[1].lower() if match else ""
