"""How jobs.generate is to make a video, as a file: what a study's winner is written as."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from framegrove.config.search import SearchConfig


class GenerateConfig(SearchConfig):
    """The settings of a search, of its sampling, and with which models; what is absent is as without a file."""

    guidance: float | None = Field(default=None, ge=0, description="guidance scale of all units; null: the model's own")
    steps: int | None = Field(
        default=None, ge=1, description="denoising steps at every stage of every unit; null: the model's own"
    )
    panel: tuple[str, ...] | None = Field(
        default=None, min_length=1, description="names of the verifiers that judge, of those there are; null: all"
    )
    units: int | None = Field(default=None, ge=1, description="as --units")
    model: str | None = Field(default=None, description="as --model")
    variant: str | None = Field(default=None, description="as --variant")
    dtype: Literal["float32", "bfloat16"] = Field(default="float32", description="as --dtype")
    allow_pickle: bool = Field(default=False, description="as --allow-pickle")
    verifier: str | None = Field(default=None, description="as --verifier")
