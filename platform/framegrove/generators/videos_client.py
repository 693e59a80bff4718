"""A client of servers in the shape of the OpenAI Videos API: one video from the request to its file.

vLLM-Omni and SGLang's diffusion server are such servers, and so is this project's endpoint. A request is sent as a
form, which all of them take. What fails on the way is sent again, with growing pauses or as late as the server asks
(``Retry-After``), and the request itself always under the same Idempotency-Key: a server that knows this header, as
ours does, makes nothing twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple, NoReturn
from urllib.parse import quote

import httpx

from framegrove.errors import UserError

_AGAIN = {408, 425, 429, 500, 502, 503, 504}  # statuses of a server that may answer later
_FAILED = {"failed", "cancelled", "canceled", "expired", "error"}
_PAUSES = (0.5, 15.0)  # seconds before a second attempt, and the longest ones before later attempts
_POLL = (0.1, 2.0, 30.0)  # seconds between two looks at a video: the shortest, the usual and the longest pause
_TIMEOUT = httpx.Timeout(60.0, connect=10.0)  # seconds without a byte
_WORDS = 200  # characters of a server's sentence that are passed on
_CHECK = 0.2  # seconds between two looks at whether a video is still wanted

Stopped = Callable[[], bool]


class NotWanted(Exception):
    """The video was given up, here and on the server."""


class Unreachable(Exception):
    """The server has not answered for as long as the client is patient. The message is one sentence."""


class VideoFailed(UserError):
    """The server did not make the video. The message is one sentence."""


class VideoLost(VideoFailed):
    """The server does not know the video any more."""


class Answer(NamedTuple):
    """What a server has answered."""

    status: int
    headers: httpx.Headers
    body: bytes


class VideosClient:
    """One server. ``key`` is its API key; ``patience`` is in seconds, ``most_bytes`` what an answer may have."""

    def __init__(self, url: str, key: str | None, patience: float, most_bytes: int) -> None:
        self.name = f"the video server at {url}"
        self._patience, self._most_bytes = patience, most_bytes
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.AsyncClient(base_url=url, headers=headers, timeout=_TIMEOUT, follow_redirects=True)

    async def __aenter__(self) -> VideosClient:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._http.aclose()

    async def video(self, form: Mapping[str, Any], key: str, stopped: Stopped) -> bytes:
        """The file of the video that is asked for by ``form``, in httpx's terms, under this Idempotency-Key.

        Raises VideoFailed, Unreachable, UserError for what the server refuses, and NotWanted as soon as ``stopped``
        says so; the server is then told to give the video up and to delete it.
        """
        answer = await self._ask(stopped, "POST", "/v1/videos", files=form, headers={"Idempotency-Key": key})
        if answer.status == httpx.codes.NOT_FOUND:
            self._refused(answer)
        video = self._video(answer)
        name = quote(video["id"], safe="")
        try:
            while video["status"] != "completed":
                if video["status"] in _FAILED:
                    raise VideoFailed(f"{self.name} did not make the video: {_reason(video)}")
                await _pause(_poll_after(answer), stopped)
                answer = await self._ask(stopped, "GET", f"/v1/videos/{name}")
                video = self._video(answer)
            answer = await self._ask(stopped, "GET", f"/v1/videos/{name}/content")
            if answer.status != httpx.codes.OK:
                self._refused(answer)
            return answer.body
        except NotWanted:
            await self._give_up(name)
            raise

    async def _give_up(self, name: str) -> None:
        """Cancel a video, which not every server can, and delete it. What goes wrong does not matter any more."""
        for method, path in (("POST", f"/v1/videos/{name}/cancel"), ("DELETE", f"/v1/videos/{name}")):
            with contextlib.suppress(httpx.HTTPError):
                await self._http.request(method, path)

    async def _ask(self, stopped: Stopped, method: str, path: str, **what: Any) -> Answer:
        """An answer other than that the server may answer later. Raises Unreachable if that is all it says."""
        failing_since: float | None = None
        for attempt in itertools.count():
            if stopped():
                raise NotWanted
            pause = min(_PAUSES[0] * 2**attempt, _PAUSES[1])
            try:
                answer = await self._sent(method, path, **what)
            except httpx.TransportError as error:
                reason = str(error) or type(error).__name__
            else:
                if answer.status not in _AGAIN:
                    return answer
                reason = f"status {answer.status}: {_said(answer)}"
                pause = _seconds(answer.headers.get("retry-after"), pause)
            now = time.monotonic()
            failing_since = now if failing_since is None else failing_since
            if now + pause - failing_since > self._patience:
                raise Unreachable(f"{self.name} has not answered for {self._patience:g} seconds ({reason[:_WORDS]})")
            await _pause(pause, stopped)
        raise AssertionError("unreachable")

    async def _sent(self, method: str, path: str, **what: Any) -> Answer:
        async with self._http.stream(method, path, **what) as response:
            body = bytearray()
            async for part in response.aiter_bytes():
                body += part
                if len(body) > self._most_bytes:
                    raise UserError(f"{self.name} sends more than {self._most_bytes:,} bytes: raise options.most_mb")
            return Answer(response.status_code, response.headers, bytes(body))

    def _video(self, answer: Answer) -> dict[str, Any]:
        """What is said of a video. Raises UserError where it is something else."""
        if answer.status == httpx.codes.NOT_FOUND:
            raise VideoLost(f"{self.name} does not know the video any more ({_said(answer)})")
        if answer.status not in (200, 201, 202):
            self._refused(answer)
        try:
            found = json.loads(answer.body)
            str(found["id"]), str(found["status"])
        except (ValueError, KeyError, TypeError):
            raise UserError(
                f"{self.name} does not answer in the shape of the OpenAI Videos API: {_said(answer)}"
            ) from None
        return {**found, "id": str(found["id"]), "status": str(found["status"])}

    def _refused(self, answer: Answer) -> NoReturn:
        raise UserError(f"{self.name} refuses the request, with status {answer.status}: {_said(answer)}")


async def _pause(seconds: float, stopped: Stopped) -> None:
    """Sleep. Raises NotWanted as soon as ``stopped`` says so."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if stopped():
            raise NotWanted
        await asyncio.sleep(min(left, _CHECK))


def _poll_after(answer: Answer) -> float:
    """Seconds after which the server wants to be asked again."""
    shortest, usual, longest = _POLL
    milliseconds = answer.headers.get("openai-poll-after-ms", "")
    asked = float(milliseconds) / 1000 if milliseconds.isdecimal() else None
    if asked is None:
        asked = _seconds(answer.headers.get("retry-after"), usual)
    return min(max(asked, shortest), longest)


def _seconds(retry_after: str | None, otherwise: float) -> float:
    """What the header Retry-After says, a number of seconds or a date."""
    if retry_after is None:
        return otherwise
    if retry_after.strip().isdecimal():
        return float(retry_after)
    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    except ValueError:
        return otherwise


def _reason(video: Mapping[str, Any]) -> str:
    error = video.get("error")
    message = error.get("message") if isinstance(error, dict) else error
    return _one_line(str(message)) if message else f"it is {video['status']}, and it is not said why"


def _said(answer: Answer) -> str:
    """The sentence in an answer, wherever it stands."""
    text = answer.body.decode("utf-8", "replace")
    with contextlib.suppress(ValueError, AttributeError):
        found = json.loads(text)
        error = found.get("error", found.get("detail", found.get("message", text)))
        text = str(error.get("message", error)) if isinstance(error, dict) else str(error)
    return _one_line(text) or "nothing else"


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _WORDS else line[:_WORDS] + ".."
