"""Configuration of the endpoint."""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import Field, field_validator

from framegrove.config.base import Config
from framegrove.config.model import ModelSource
from framegrove.config.verifier import PanelConfig


class ServeConfig(Config):
    """Where the endpoint listens, what it serves, and which requests it accepts."""

    host: str = Field(default="127.0.0.1", description="address to listen on")
    port: int = Field(default=8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    model: ModelSource = ModelSource()
    verifier: PanelConfig = PanelConfig()
    generators: int = Field(default=2, ge=1, description="number of generator actors")
    searches: int | None = Field(
        default=None,
        ge=1,
        description="how many videos are made at a time, sharing the actors; default: as many as there are generators",
    )
    pack: int = Field(
        default=1,
        ge=1,
        description="units of several videos that a generator samples together, for throughput: raise searches too",
    )
    folder: Path = Field(default=Path("runs/serve"), description="where requests and videos are kept")
    waiting: int = Field(default=32, ge=1, description="how many videos may wait; more are refused")
    budget: str = Field(
        default="4x",
        description="search budget of a request that names none, such as 4x",
    )
    most_budget: str = Field(default="64x", description="largest search budget that a request may name")
    database: str = Field(
        default="", description="postgresql://USER@HOST/NAME for the records of videos; empty: SQLite in the folder"
    )
    storage: str = Field(
        default="",
        description="where the files of videos are: a folder or a URL such as s3://bucket/videos; empty: in the folder",
    )
    keep_days: float | None = Field(
        default=None, gt=0, description="how long a finished video is kept, in days; null: for ever"
    )
    keep_gb: float | None = Field(
        default=None, gt=0, description="how many gigabytes of finished videos are kept, the newest; null: any"
    )
    most_work: float = Field(
        default=64,
        gt=0,
        description="largest product of a request's budget, length and size, in samples of the model's own size and "
        "length",
    )
    most_units: int = Field(default=16, ge=1, description="longest video that a request may ask for, in units")

    body_seconds: float = Field(
        default=30, gt=0, description="how long a request's body may take to arrive, in seconds"
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

    @property
    def at_a_time(self) -> int:
        """How many videos are made at a time. More than generators would make each of them late and none early."""
        return self.searches or self.generators
