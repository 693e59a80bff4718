"""Configuration of the endpoint."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from framegrove.config.base import Config
from framegrove.config.generator import AnySource
from framegrove.config.model import ModelSource
from framegrove.config.pool import PoolSize, Workers
from framegrove.config.search import parse_budget
from framegrove.config.verifier import PanelConfig
from framegrove.errors import UserError


def _named(path: Any) -> Any:
    """Refuse an empty path, which would silently be the working directory."""
    if path == "":
        raise ValueError("a path must not be empty: leave it out for the default, or give . for the working directory")
    return path


def _as_text(given: Any) -> Any:
    """``budget=4`` means ``budget=4x``."""
    return f"{given:g}" if isinstance(given, int | float) and not isinstance(given, bool) else given


Budget = Annotated[str, BeforeValidator(_as_text)]
NamedPath = Annotated[Path, BeforeValidator(_named)]


class ServeConfig(Config):
    """Where the endpoint listens, what it serves, and which requests it accepts."""

    host: str = Field(default="127.0.0.1", description="address to listen on")
    port: int = Field(default=8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    models: tuple[AnySource, ...] = Field(
        default=(ModelSource(),),
        min_length=1,
        description="what is served, by the names of their folders; each has generators and verifiers of its own, and "
        "requests that name no model get the first",
    )
    verifier: PanelConfig = PanelConfig()
    generators: Workers = Field(
        default=PoolSize(2, 2),
        description='number of generator actors of each model, or "least:most": more are started while work waits, and '
        "idle ones are let go",
    )
    searches: int | None = Field(
        default=None,
        ge=1,
        description="how many videos of a model are made at a time, sharing its actors; default: as many as it has "
        "generators",
    )
    pack: int = Field(
        default=1,
        ge=1,
        description="units of several videos that a generator samples together, for throughput: raise searches too",
    )
    folder: NamedPath = Field(default=Path("runs/serve"), description="where requests and videos are kept")
    keys: NamedPath | None = Field(
        default=None, description="file of API keys, without one of which nobody is let in; none: everybody is"
    )
    open: bool = Field(
        default=False, description="let everybody in who reaches the address, although it is not loopback"
    )
    waiting: int = Field(default=32, ge=1, description="how many videos may wait; more are refused")
    most_videos: int = Field(
        default=8, ge=1, description="how many videos one request may ask for; never more than may wait"
    )
    budget: Budget = Field(
        default="4x",
        description="search budget of a request that names none, such as 4x",
    )
    most_budget: Budget = Field(default="64x", description="largest search budget that a request may name")
    database: str = Field(
        default="", description="postgresql://USER@HOST/NAME for the records of videos; empty: SQLite in the folder"
    )
    storage: str = Field(
        default="",
        description="where the files of videos are: a folder or a URL such as s3://bucket/videos; empty: in the folder",
    )
    keep_days: float | None = Field(
        default=None, gt=0, le=36_500, description="how long a finished video is kept, in days; null: for ever"
    )
    keep_gb: float | None = Field(
        default=None, gt=0, le=1e9, description="how many gigabytes of finished videos are kept, the newest; null: any"
    )
    most_work: float = Field(
        default=64,
        gt=0,
        description="largest product of a request's budget, length and size, in samples of the model's own size and "
        "length",
    )
    most_units: int = Field(default=16, ge=1, description="longest video that a request may ask for, in units")

    body_seconds: float = Field(
        default=30, gt=0, le=86_400, description="how long a request's body may take to arrive, in seconds"
    )
    reading: int = Field(
        default=32, ge=1, description="how many requests with bodies are read at a time; more are told to try again"
    )
    origins: tuple[str, ...] = Field(
        default=(),
        description="web sites, such as https://example.org, whose pages may use the endpoint from a browser, besides "
        "those that it serves itself",
    )
    hosts: tuple[str, ...] = Field(
        default=(),
        description="further names, such as example.org, under which an endpoint on a loopback address is reached, by "
        "way of a proxy for example",
    )

    @field_validator("origins")
    @classmethod
    def _origins_are_sites(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        for origin in given:
            if not re.fullmatch(r"https?://[^/\s*]+", origin):
                raise ValueError(
                    f"the origin {origin!r} is not of the form https://example.org, without a path or stars"
                )
        return given

    @field_validator("hosts")
    @classmethod
    def _hosts_are_names(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        for host in given:
            if not re.fullmatch(r"[\w.-]+|\[[0-9a-fA-F:.]+\]", host):
                raise ValueError(f"the host {host!r} is not a name such as example.org, without a scheme or a port")
        return given

    @field_validator("budget", "most_budget")
    @classmethod
    def _is_budget(cls, text: str, info: ValidationInfo) -> str:
        try:
            parse_budget(text)
        except UserError as error:
            raise ValueError(f"{info.field_name}: {error}") from None  # which of the two it is
        return text

    @model_validator(mode="after")
    def _checked(self) -> Self:
        if parse_budget(self.budget) > parse_budget(self.most_budget):
            raise ValueError(
                f"budget is {self.budget}, more than most_budget, which is {self.most_budget}: lower the one or raise "
                "the other"
            )
        if self.exposed and self.keys is None and not self.open:
            raise ValueError(
                f"host {self.host} can be reached from other machines, and without keys everybody there could use the "
                "endpoint: name a file of keys with --keys (see `python -m jobs.serve keys add --help`), listen on "
                "127.0.0.1, or let everybody in with --set open=true"
            )
        return self

    @property
    def exposed(self) -> bool:
        """Whether the endpoint listens on more than the loopback interface. A name is taken to be more, if unknown."""
        try:
            return not ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host != "localhost"

    @property
    def at_a_time(self) -> int:
        """How many videos are made at a time. More than generators would make each of them late and none early."""
        return self.searches or self.generators.most
