"""Configuration of the endpoint."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from framegrove.config.base import Config
from framegrove.config.model import ModelSource
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
    folder: NamedPath = Field(default=Path("runs/serve"), description="where requests and videos are kept")
    keys: NamedPath | None = Field(
        default=None, description="file of API keys, without one of which nobody is let in; none: everybody is"
    )
    open: bool = Field(
        default=False, description="let everybody in who reaches the address, although it is not loopback"
    )
    waiting: int = Field(default=32, ge=1, description="how many videos may wait; more are refused")
    budget: Budget = Field(
        default="4x",
        description="search budget of a request that names none, such as 4x",
    )
    most_budget: Budget = Field(default="64x", description="largest search budget that a request may name")
    most_units: int = Field(default=16, ge=1, description="longest video that a request may ask for, in units")

    @field_validator("budget", "most_budget")
    @classmethod
    def _is_budget(cls, text: str, info: ValidationInfo) -> str:
        try:
            parse_budget(text)
        except UserError as error:
            raise ValueError(
                f"{info.field_name}: {error}"
            ) from None  # "budget" is in the sentence anyway, but is no name there
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
        return self.searches or self.generators
