"""Configuration of a verifier that is served elsewhere: any endpoint in the shape of OpenAI's chat completions."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, field_validator

from framegrove.config.base import Config

# What a request says itself; the rest of a provider's body is for `extra`.
_OWN = {"model", "messages", "n", "logprobs", "top_logprobs", "temperature", "response_format", "stream"}


class EndpointConfig(Config):
    """Where a served model is, how it is asked, and what a call counts.

    vLLM, SGLang and commercial providers speak this API. Frames go as PNG pictures or as one mp4, in data URLs, before
    the question. With ``logprobs`` a score is read from the ``top_logprobs`` likeliest tokens at temperature 0; without
    (where the provider keeps them to itself) from how often each of ``samples`` answers at temperature 1 says it.
    """

    url: str  # up to and with /v1, as in http://localhost:8000/v1
    model: str = Field(min_length=1)
    key: str | None = None  # the name of the environment variable that holds the key; None: the server wants none
    media: Literal["images", "video"] = "images"
    fps: float = Field(2.0, gt=0)  # at which the frames of a video part are played
    max_frames: int = Field(8, ge=2)  # shown at a time
    logprobs: bool = True
    top_logprobs: int = Field(20, ge=2, le=20)
    samples: int = Field(8, ge=1, le=128)
    at_a_time: int = Field(8, ge=1)  # calls
    timeout: float = Field(60.0, gt=0)  # seconds until a call is given up and tried again
    # How often a call is tried again after 408, 409, 429, 5xx or a lost connection: after what Retry-After says (up to
    # 2 minutes), or after 0.5 s and then twice as long each time, up to 8 s.
    retries: int = Field(5, ge=0)
    price: float = Field(
        0.0, ge=0, allow_inf_nan=False
    )  # FLOPs that a call counts in a search's budget, as each sample
    instruction: str = " Answer with yes or no only."  # what follows every yes/no question
    yes_words: tuple[str, ...] = Field(("Yes", "yes"), min_length=1)
    no_words: tuple[str, ...] = Field(("No", "no"), min_length=1)
    extra: dict[str, Any] = Field(default={})  # further keys of the request, of one provider or another

    @field_validator("url")
    @classmethod
    def _is_an_address(cls, url: str) -> str:
        if re.fullmatch(r"https?://[^\s/@?#]+(/[^\s?#]*)?", url) is None:
            raise ValueError("an endpoint's url must be of the form https://host/v1, without user, query or key")
        return url

    @field_validator("key")
    @classmethod
    def _names_a_variable(cls, key: str | None) -> str | None:
        if key is not None and re.fullmatch(r"[A-Z_][A-Z0-9_]*", key) is None:
            raise ValueError(
                "key must be the name of an environment variable such as OPENAI_API_KEY, not the key itself"
            )
        return key

    @field_validator("extra")
    @classmethod
    def _adds(cls, extra: dict[str, Any]) -> dict[str, Any]:
        if said := sorted(_OWN & extra.keys()):
            raise ValueError(f"extra must not hold {', '.join(said)}: the verifier says that itself")
        return extra
