"""Asking a served vision-language model about pictures, in the shape of OpenAI's chat completions.

Retries, their delays (Retry-After included) and time limits are those of the openai package.
"""

from __future__ import annotations

import asyncio
import base64
import io
import math
import os
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from framegrove.config.endpoint import EndpointConfig
from framegrove.config.scores import Digits, Generated, Json, Score
from framegrove.errors import UserError
from framegrove.media.writing import encode_mp4
from framegrove.verification.clips import Frames
from framegrove.verification.readings import Token
from framegrove.verification.verdicts import AGAIN

if TYPE_CHECKING:
    from openai import AsyncOpenAI, OpenAIError
    from openai.types.chat import ChatCompletion

_SHORT = 16  # tokens of a sampled answer of one word, which may begin with others
_LONGEST_REASON = 200  # characters of what a server says that are repeated


class Chat:
    """Calls of one verifier, ``who``, to its endpoint, at most ``config.at_a_time`` at a time."""

    def __init__(self, who: str, config: EndpointConfig, score: Score) -> None:
        """Raises UserError, in one sentence, where the variable of the key is not set."""
        self._who, self._config, self._score = who, config, score
        self._client = _client(who, config)
        self._turns = asyncio.Semaphore(config.at_a_time)

    async def tokens(self, shown: Sequence[dict[str, Any]], text: str, seed: int = 0) -> list[Token]:
        """What the model writes about parts that show something: the likeliest answer, or with a seed another one.

        JSON comes as one token.

        Raises UserError, which names the verifier, for what the server refuses and where it gives no log-probabilities.
        """
        how: dict[str, Any] = {"temperature": AGAIN, "seed": seed} if seed else {"temperature": 0.0}
        if isinstance(self._score, Json):
            (choice,) = (await self._call(shown, text, **how)).choices[:1]
            return [Token(choice.message.content or "", {})]
        how |= {"logprobs": True, "top_logprobs": self._config.top_logprobs}
        (choice,) = (await self._call(shown, text, **how)).choices[:1]
        if choice.logprobs is None or choice.logprobs.content is None:
            raise UserError(
                f"{self._who}: {self._config.url} gives no log-probabilities: set endpoint.logprobs to false, and its "
                "scores are read from endpoint.samples answers"
            )
        return [_token(entry) for entry in choice.logprobs.content]

    async def texts(self, shown: Sequence[dict[str, Any]], text: str) -> list[str]:
        """So many sampled answers as the configuration says. A server that gives fewer at a time is asked again."""
        found: list[str] = []
        while (missing := self._config.samples - len(found)) > 0:
            several = {} if missing == 1 else {"n": missing}
            choices = (await self._call(shown, text, temperature=1.0, **several)).choices
            found += [choice.message.content or "" for choice in choices[:missing]]
        return found

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def _call(self, shown: Sequence[dict[str, Any]], text: str, **given: Any) -> ChatCompletion:
        from openai import OpenAIError

        messages: list[Any] = [{"role": "user", "content": [*shown, {"type": "text", "text": text}]}]
        extra: dict[str, Any] = {}
        if isinstance(self._score, Digits) and self._score.answer:  # vLLM's and SGLang's way to begin an answer
            messages.append({"role": "assistant", "content": self._score.answer})
            extra |= {"continue_final_message": True, "add_generation_prompt": False}
        extra |= self._config.extra
        if not {"max_tokens", "max_completion_tokens"} & extra.keys():
            given["max_tokens"] = self._longest()
        if isinstance(self._score, Json):
            schema = {"name": "scores", "schema": self._score.json_schema, "strict": True}
            given["response_format"] = {"type": "json_schema", "json_schema": schema}
        async with self._turns:
            try:
                answer = await self._client.chat.completions.create(
                    model=self._config.model, messages=messages, extra_body=extra, **given
                )
            except OpenAIError as error:
                raise UserError(self._failure(error)) from error
        if not answer.choices:
            raise UserError(f"{self._who}: {self._config.url} answered without a choice")
        return answer

    def _longest(self) -> int:
        if isinstance(self._score, Generated | Json):
            return self._score.max_tokens
        return 1 if self._config.logprobs else _SHORT

    def _failure(self, error: OpenAIError) -> str:
        """What went wrong, in one sentence."""
        from openai import APIConnectionError, APIStatusError, APITimeoutError

        config = self._config
        tries = "after one try" if not config.retries else f"after {config.retries + 1} tries"
        where = f"{self._who}: {config.url}"
        match error:
            case APITimeoutError():
                return f"{where} did not answer within endpoint.timeout, {config.timeout:g} s, {tries}"
            case APIConnectionError():
                return f"{where} cannot be reached, {tries} ({_reason(error.__cause__ or error)})"
            case APIStatusError(status_code=401 | 403):
                key = f"the key in {config.key}" if config.key else "calls without a key (endpoint.key)"
                return f"{where} refuses {key} ({error.status_code}: {_reason(error)})"
            case APIStatusError(status_code=429) | APIStatusError(status_code=500 | 502 | 503 | 504):
                return f"{where} still answers {error.status_code} {tries} ({_reason(error)})"
            case APIStatusError():
                return f"{where} refuses to answer for {config.model} ({error.status_code}: {_reason(error)})"
            case _:
                return f"{where} cannot be understood ({_reason(error)})"


def shown_as(config: EndpointConfig, frames: Sequence[Frames]) -> list[dict[str, Any]]:
    """Frames, uint8 (H, W, 3), as the parts of a message: a PNG each, or one mp4."""
    if config.media == "video":
        data = base64.b64encode(encode_mp4(np.stack(frames), config.fps)).decode()
        return [{"type": "video_url", "video_url": {"url": f"data:video/mp4;base64,{data}"}}]
    return [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{_png(frame)}"}} for frame in frames]


def _png(frame: Frames) -> str:
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "PNG", compress_level=1)
    return base64.b64encode(file.getvalue()).decode()


def _client(who: str, config: EndpointConfig) -> AsyncOpenAI:
    from openai import AsyncOpenAI

    key = os.environ.get(config.key, "") if config.key else "none"
    if not key:
        raise UserError(
            f"{who} needs a key, and the environment variable {config.key} is not set on {socket.gethostname()}: set "
            "it there, or name another one as endpoint.key"
        )
    return AsyncOpenAI(base_url=config.url, api_key=key, timeout=config.timeout, max_retries=config.retries)


def _token(entry: Any) -> Token:
    """A token that a server lists neither is likelier than those that it lists, nor has more than they leave over.

    A server may list fewer than it is asked for, and two tokens by one text: parts of a character each.
    """
    top = list(entry.top_logprobs)
    listed = {each.token: each.logprob for each in reversed(top)}  # of two of one text the likelier one stays
    told = [each.logprob for each in top] + ([] if entry.token in listed else [entry.logprob])
    left = 1.0 - math.fsum(map(math.exp, told))
    least = min((each.logprob for each in top), default=0.0)
    unlisted = min(least, math.log(left)) if left > 0 else -math.inf
    return Token(entry.token, {entry.token: entry.logprob} | listed, unlisted)


def _reason(error: BaseException) -> str:
    body = getattr(error, "body", None)
    said = body.get("message") if isinstance(body, dict) else None
    text = " ".join(str(said or error).split()) or type(error).__name__
    return text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]}..."
