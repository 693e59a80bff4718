"""Configuration of generators that are not pyramidal models of our own: other systems, each behind an adapter."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from framegrove.config.base import Config, ConfigError, absolute, read_yaml, validated
from framegrove.config.model import ModelSource, Native

PYRAMID = "pyramid"
_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_YAML = (".yaml", ".yml")


class AdaptedSource(Config):
    """Which other system is used, and how."""

    kind: Literal["callable", "causal", "diffusers", "nova", "remote"] = Field(
        description="callable: a class of your own; the others: what framegrove.generators has an adapter for"
    )
    where: str = Field(min_length=1, description="callable: module:Class; remote: a URL; others: a folder or a hub id")
    name: str = Field(default="", description="what it is called; absent: the last part of where")
    options: dict[str, Any] = Field(default={}, description="the adapter's own, see its documentation")

    @property
    def called(self) -> str:
        """What it is called where its place does not matter."""
        last = self.where.rstrip("/").removesuffix("/v1").rpartition("/")[2]
        return self.name or (last.rpartition(":")[2] if self.kind == "callable" else last)

    @model_validator(mode="after")
    def _can_be_found(self) -> Self:
        if self.kind == "callable" and not _DOTTED.fullmatch(self.where):
            raise ValueError(f"where is {self.where!r}, and must be module:Class, as in my_package.video:Generator")
        return self


AnySource = ModelSource | AdaptedSource


class Form(Native):
    """What an adapted system's videos are like: the grid that a search moves on, and what may be asked for.

    A video has ``units`` units, of ``first_frames`` frames the first and ``later_frames`` each of the others; each is
    sampled in ``stages`` stages, after any of which a search may look at it. A diffusion model makes videos of one unit
    whose stages are segments of its schedule; a chunk-wise model has chunks as units, and one stage.
    """

    units: int = Field(default=1, ge=1, description="units of a native clip")
    stages: PositiveInt = Field(default=1, description="of a unit, after each of which it can be looked at")
    most_units: PositiveInt = Field(default=1, description="of the longest video")
    first_frames: PositiveInt = Field(default=1, description="frames of the first unit")
    later_frames: PositiveInt = Field(default=8, description="frames of each later unit")
    multiple: PositiveInt = Field(default=8, description="pixels that sides are multiples of")
    takes_image: bool = Field(default=False, description="whether a video may begin with a picture")
    needs_image: bool = Field(default=False, description="whether a video has to")

    @property
    def unit_frames(self) -> tuple[int, int]:
        """Frames of the first unit, and of each later one."""
        return self.first_frames, self.later_frames


def is_file(name: str | None) -> bool:
    """Whether a model's name is that of a YAML file which says what it is."""
    return name is not None and name.endswith(_YAML)


def read_source(path: str) -> AnySource:
    """The model that a YAML file describes: its ``kind``, and what that kind needs. Raises ConfigError."""
    given = dict(read_yaml(Path(path)))
    if given.get("kind", PYRAMID) == PYRAMID:
        given.pop("kind", None)
        return validated(ModelSource, {**given, "name": absolute(given.get("name"))}, path)
    found = validated(AdaptedSource, given, path)
    return found.model_copy(update={"where": absolute(found.where)})


def as_adapted(source: AnySource, what: str) -> None:
    """Raise ConfigError where ``what`` works with pyramidal models alone and the source is another one."""
    if isinstance(source, AdaptedSource):
        raise ConfigError(f"{what} works with pyramidal models alone, and {source.called} is of kind {source.kind}")
