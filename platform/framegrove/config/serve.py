"""Configuration of the endpoint."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from framegrove.config.base import Config
from framegrove.config.model import ModelSource
from framegrove.config.verifier import PanelConfig


class ServeConfig(Config):
    """Where the endpoint listens, what it serves, and how much it takes on."""

    host: str = Field(default="127.0.0.1", description="address to listen on")
    port: int = Field(default=8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    model: ModelSource = ModelSource()
    verifier: PanelConfig = PanelConfig()
    generators: int = Field(default=2, ge=1, description="generator actors of a search")
    folder: Path = Field(default=Path("runs/serve"), description="keeps the videos and what is known of them")
    waiting: int = Field(default=32, ge=1, description="videos that may wait; more are turned away")
    budget: str = Field(default="4x", description="search budget of a request that names none")
    most_budget: str = Field(default="64x", description="largest search budget a request may name")
    most_units: int = Field(default=16, ge=1, description="longest video a request may ask for")
