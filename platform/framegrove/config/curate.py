"""Configuration of preparation: from footage to clips, stage by stage. A stage that is not named is left out.

The descriptions of the keys are what ``python -m jobs.prepare --help`` prints.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, field_validator, model_validator

from framegrove.config.base import Config

Share = Annotated[float, Field(ge=0, le=1)]
_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


class ShotsConfig(Config):
    """Splitting at hard cuts, by PySceneDetect's ContentDetector."""

    threshold: PositiveFloat = Field(
        27.0, description="a cut is where hue, saturation and brightness change by this much on average, of 255"
    )
    least: NonNegativeFloat = Field(0.5, description="seconds between two cuts at least")


class MotionConfig(Config):
    """Dense optical flow between frames: how far pixels move, in lengths of the picture's longer side a second."""

    least: NonNegativeFloat = Field(0.01, description="clips that move less are too still")
    most: PositiveFloat = Field(2.0, description="clips that move more are too wild")


class PictureConfig(Config):
    """What is wrong with the pictures themselves."""

    sharpness: NonNegativeFloat = Field(
        20.0, description="variance of the Laplacian at 256 pixels, in grey levels squared, at least; 0 keeps all"
    )
    brightness: NonNegativeFloat = Field(16.0, description="mean grey level of 255 at least: darker clips are black")
    bars: Share = Field(0.1, description="share of the height or width that black bars may take; 1 keeps all")


class DuplicatesConfig(Config):
    """Clips that look like an earlier one of the whole set, told by a perceptual hash of three of their frames."""

    bits: int = Field(18, ge=0, le=64, description="of 192 that may differ between two hashes of the same scene")


class CaptionsConfig(Config):
    """Captions by a vision-language model, for clips that have none from the list or a file beside them."""

    model: str | None = Field(
        None, description="verifier to ask: a YAML file, folder or hub id, as --verifier of jobs.generate; null: none"
    )
    prompt: str = Field("Describe this video in one or two sentences.", description="what the model is asked to do")
    max_tokens: PositiveInt = Field(128, description="of a caption")
    frames: PositiveInt = Field(6, description="that the model sees of a clip, spread evenly")
    actors: PositiveInt = Field(1, description="how many actors describe clips")
    required: bool = Field(True, description="reject clips without a caption; false: train on them without one")


class TextConfig(Config):
    """Embeddings of captions, made once and stored, so that no worker holds the text encoders while it trains."""

    model: str = Field(description="model folder whose text encoders are used; shipped: the embedded one")
    allow_pickle: bool = Field(False, description="read pickled weights where there are no safetensors")


class CurateConfig(Config):
    """Everything that decides which clips come of some footage, and what they look like."""

    sizes: tuple[tuple[PositiveInt, PositiveInt], ...] = Field(
        ((384, 640),),
        min_length=1,
        description="buckets, height and width in pixels; a clip goes to the one with the closest aspect ratio",
    )
    units: PositiveInt = Field(4, description="longest clip; the first unit is one frame, each later one 8 frames")
    fps: PositiveFloat = Field(24.0, description="frames a second of the clips; the footage's own may differ")
    least_units: PositiveInt = Field(1, description="shortest clip of a video that is kept")
    shots: ShotsConfig | None = Field(None, description="split videos at cuts; null: they are taken for one shot")
    stride: PositiveFloat | None = Field(
        None, description="seconds between the beginnings of clips in a shot; null: one clip, from its beginning"
    )
    motion: MotionConfig | None = Field(None, description="reject clips by how much moves")
    picture: PictureConfig | None = Field(None, description="reject clips that are blurred, black or have bars")
    stages: tuple[str, ...] = Field(
        (), description="stages of your own, as module:function: from a clip to a clip or a Rejection"
    )
    duplicates: DuplicatesConfig | None = Field(None, description="reject clips that look like an earlier one")
    captions: CaptionsConfig | None = Field(None, description="describe clips that have no caption")
    text: TextConfig | None = Field(None, description="store embeddings of the captions; null: none")
    heldout: Share = Field(0.0, description="share of the sources whose clips are held out of training")
    decoders: PositiveInt | None = Field(None, description="tasks that decode at a time; null: one a CPU")
    encoders: PositiveInt | None = Field(None, description="actors that encode; null: one a GPU, or one")

    @field_validator("sizes", mode="before")
    @classmethod
    def _pairs(cls, sizes: Any) -> Any:
        if isinstance(sizes, list | tuple) and sizes and all(isinstance(side, int) for side in sizes):
            raise ValueError("sizes must be a list of pairs, as in [[384, 640]]")
        return sizes

    @field_validator("stages")
    @classmethod
    def _dotted(cls, stages: tuple[str, ...]) -> tuple[str, ...]:
        for stage in stages:
            if _DOTTED.fullmatch(stage) is None:
                raise ValueError(f"a stage must be of the form module:function, not {stage!r}")
        return stages

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.least_units > self.units:
            raise ValueError(f"least_units must be at most units, {self.units}, not {self.least_units}")
        if self.motion is not None and self.motion.least >= self.motion.most:
            raise ValueError(f"motion.least must be below motion.most, {self.motion.most:g}")
        return self

    def deciding(self) -> dict[str, Any]:
        """What decides which clips come out, for comparing two runs: everything but how many work at a time."""
        facts = self.model_dump(mode="json", exclude={"decoders", "encoders"})
        if facts["captions"]:
            facts["captions"].pop("actors")
        return facts
