"""Configuration of the endpoint."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

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
    most_work: float = Field(
        default=64,
        gt=0,
        description="largest product of a request's budget, length and size, in samples of the model's own size and "
        "length",
    )
    most_units: int = Field(default=16, ge=1, description="longest video that a request may ask for, in units")

    @property
    def at_a_time(self) -> int:
        """How many videos are made at a time. More than generators would make each of them late and none early."""
        return self.searches or self.generators
