"""Options of the generator kind ``diffusers``: a pipeline of the diffusers library, searched along its schedule."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveInt, field_validator, model_validator

from framegrove.config.base import Config, ConfigError

# Frames a second, which no file of a pipeline says, are those on the model cards.
PIPELINES = {
    "CogVideoXPipeline": 8,
    "CogVideoXImageToVideoPipeline": 8,
    "WanPipeline": 16,
    "WanImageToVideoPipeline": 16,
    "LTXPipeline": 25,
    "LTXImageToVideoPipeline": 25,
    "HunyuanVideoPipeline": 24,
    "MochiPipeline": 30,
}
SHARES = (0.2, 0.3, 0.5)  # of the schedule, where segments are not given: 10, 15 and 25 of 50 steps


class DiffusionOptions(Config):
    """How a pipeline is used. What is absent is as the pipeline has it."""

    pipeline: str | None = Field(default=None, description="class in diffusers; absent: the one in model_index.json")
    steps: PositiveInt | None = Field(default=None, description="denoising steps of a video")
    segments: PositiveInt | tuple[PositiveInt, ...] | None = Field(
        default=None,
        description="stages of the search: steps of each, as in [10, 15, 25], or how many there are, of about as many "
        "steps each; absent: a fifth, three tenths and half of the steps",
    )
    guidance_scale: NonNegativeFloat | None = Field(default=None, description="of classifier-free guidance")
    negative_prompt: str = Field(default="", description="what guidance leads away from")
    frames: PositiveInt | None = Field(default=None, description="frames of the longest video, and of one by default")
    height: PositiveInt | None = Field(default=None, description="pixels, where a request does not say")
    width: PositiveInt | None = Field(default=None, description="pixels, where a request does not say")
    fps: PositiveInt | None = Field(default=None, description="frames a second; absent: those of the model card")
    max_sequence_length: PositiveInt | None = Field(default=None, description="tokens of a prompt")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(default="bfloat16", description="of all weights")
    offload: Literal["none", "model", "sequential"] = Field(
        default="none", description="what waits in the CPU's memory, where there is a GPU: all but one model, or layer"
    )
    vae_tiling: bool = Field(default=False, description="decode tile by tile, with less memory")
    batch: PositiveInt = Field(
        default=1,
        description="most branches that are denoised together, of one work, or of several where generators pack works; "
        "their last bits depend on it",
    )
    scheduler: str | None = Field(default=None, description="class in diffusers, in the place of the pipeline's own")
    scheduler_config: dict[str, Any] = Field(default={}, description="of the scheduler, as in {flow_shift: 3.0}")
    call: dict[str, Any] = Field(
        default={}, description="further arguments of the pipeline's call, as in {use_dynamic_cfg: true}"
    )

    @field_validator("pipeline")
    @classmethod
    def _is_supported(cls, given: str | None) -> str | None:
        if given is not None and given not in PIPELINES:
            raise ValueError(f"pipeline {given!r} cannot be searched: choose one of {', '.join(PIPELINES)}")
        return given

    @model_validator(mode="after")
    def _segments_are_the_schedule(self) -> Self:
        given = self.segments
        if isinstance(given, tuple) and (not given or (self.steps is not None and sum(given) != self.steps)):
            raise ValueError(f"segments are {list(given)}, which must add up to the {self.steps or 'number of'} steps")
        return self

    @property
    def stages(self) -> int:
        """How many segments there are."""
        if self.segments is None:
            return len(SHARES)
        return self.segments if isinstance(self.segments, int) else len(self.segments)

    def ends(self, steps: int) -> tuple[int, ...]:
        """Steps done at the end of each segment of a schedule of ``steps``. Raises ConfigError if these are too few."""
        if steps < self.stages:
            raise ConfigError(f"{steps} steps cannot be cut into {self.stages} segments: ask for more steps")
        given = self.segments
        if given is None:
            weights: tuple[float, ...] = SHARES
        else:
            weights = (1,) * given if isinstance(given, int) else given
        ends: list[int] = []
        done = 0.0
        for number, weight in enumerate(weights):
            done += weight
            most = steps - (len(weights) - 1 - number)  # one step for each that follows
            ends.append(min(most, max(number + 1, (ends[-1] + 1) if ends else 1, round(steps * done / sum(weights)))))
        return tuple(ends)
