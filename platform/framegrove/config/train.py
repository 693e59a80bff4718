"""Configuration of a training run: what is trained, on which data, through which phases. Numbers only, no torch."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from framegrove.config.base import Config
from framegrove.config.flow import ObjectiveConfig
from framegrove.config.model import (
    AnyTransformerConfig,
    FluxConfig,
    ModelSource,
    Recipe,
    TextConfig,
    TransformerConfig,
)

SHIPPED = "shipped"

# What a run's folder holds beside its loss curve; the last one is Ray Train's own.
MODEL, CHECKPOINTS, RAY_STATE = "model", "checkpoints", "ray"


class ModelConfig(Config):
    """The model at the first step.

    ``start`` is a model folder (or ``shipped``, the embedded one) to continue from; with ``fresh`` the shape of its
    transformer is kept and its weights are not. Where ``start`` is absent, a new transformer (an MM-DiT, or FLUX-style)
    and a new text encoder are made in the shape below, and ``vae`` is the folder of the data's VAE (or ``shipped``).
    """

    start: str | None = SHIPPED
    variant: str | None = Field(None, description="of a public start: 384p, 768p, image; absent: the largest")
    allow_pickle: bool = Field(False, description="read pickled weights of start where there are no safetensors")
    fresh: bool = Field(False, description="begin with an untrained transformer, beside the VAE and text of start")
    vae: str | None = None
    transformer: TransformerConfig = TransformerConfig()
    flux: FluxConfig | None = Field(None, description="a FLUX-style transformer of this shape instead")
    text: TextConfig = TextConfig()
    phrases: tuple[str, ...] = Field((), description="runs of words that a new text encoder reads as one token")
    recipe: Recipe = Recipe()
    train_text: bool = Field(True, description="train the text encoder, too; public checkpoints keep theirs frozen")

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if self.start is None and self.vae is None:
            raise ValueError("name a model folder to continue from (start), or the VAE of a new model (vae)")
        if self.flux is not None and "transformer" in self.model_fields_set:
            raise ValueError("give the shape of an MM-DiT (transformer) or of a FLUX-style one (flux), not both")
        for key in ("joint_attention_dim", "pooled_projection_dim"):
            reads = getattr(self.shape, key)
            if self.start is None and reads != self.text.width:
                raise ValueError(
                    f"the transformer reads text of width {reads} ({key}), the text encoder writes {self.text.width} "
                    "(text.width); make them equal"
                )
        return self

    @property
    def source(self) -> ModelSource:
        """The model to continue from, where there is one."""
        name = None if self.start == SHIPPED else self.start
        return ModelSource(name=name, variant=self.variant, allow_pickle=self.allow_pickle)

    @property
    def shape(self) -> AnyTransformerConfig:
        """Of a new transformer."""
        return self.flux or self.transformer


class PhaseConfig(Config):
    """One phase of the curriculum (PFM appendix B, three-stage training).

    ``sizes`` are the (height, width) buckets in pixels that it trains on, ``units`` the longest clip. A step draws
    ``batch`` stage-samples over all workers together; each worker packs its share into as few forward passes of at
    most ``pack_tokens`` tokens as it takes (Patch n' Pack). ``images`` is the share of stage-samples that are first
    units; the others are spread over the later units by ``objective.unit_weights``.

    The learning rates rise linearly over ``warmup`` steps, are constant, and fall linearly to zero over the last
    ``decay`` share of the phase.
    """

    name: str = Field(min_length=1, pattern=r"^[a-z0-9-]+$")
    sizes: tuple[tuple[PositiveInt, PositiveInt], ...] = Field(min_length=1)
    units: PositiveInt = 1
    steps: PositiveInt
    batch: PositiveInt = Field(description="stage-samples in a step, all workers together")
    pack_tokens: PositiveInt | None = Field(None, description="most tokens in one forward pass; absent: no limit")
    images: float = Field(0.125, ge=0, le=1)
    objective: ObjectiveConfig = ObjectiveConfig(stage_weights=(1, 2, 1))
    learning_rate: PositiveFloat = 1e-4
    matrix_learning_rate: PositiveFloat | None = Field(
        None,
        description="train the blocks' matrices by Muon at this rate (plain engine only); absent: AdamW alone",
    )
    warmup: NonNegativeInt = 1000
    decay: float = Field(0.0, ge=0, le=1)
    betas: tuple[float, float] = (0.9, 0.95)
    eps: PositiveFloat = 1e-6
    weight_decay: NonNegativeFloat = 1e-4
    clip: PositiveFloat = Field(1.0, description="largest norm of the gradient")
    ema: float = Field(0.999, ge=0, lt=1)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must lie in [0, 1), not {list(self.betas)}")
        if self.warmup + self.decay * self.steps > self.steps:
            raise ValueError(
                f"phase {self.name}: {self.warmup} warm-up steps and a decay over the last {self.decay:g} of "
                f"{self.steps} steps overlap; lower one of them"
            )
        weights = self.objective.unit_weights
        if weights is not None and len(weights) != self.units:
            raise ValueError(f"phase {self.name}: {len(weights)} unit_weights for clips of {self.units} units")
        return self

    def pace(self, step: int) -> float:
        """The share of the learning rates that applies at a step of this phase, counted from 0."""
        rising = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        falling = min(1.0, (self.steps - step) / (self.decay * self.steps)) if self.decay else 1.0
        return min(rising, falling)

    def drawn(self) -> ObjectiveConfig:
        """The objective with the weight of every unit filled in."""
        if self.units == 1:
            return self.objective.model_copy(update={"unit_weights": (1.0,)})
        given = self.objective.unit_weights or (1.0,) * self.units
        later = sum(given[1:])
        weights = (self.images, *((1 - self.images) * weight / later if later else 0.0 for weight in given[1:]))
        return ObjectiveConfig.model_validate(self.objective.model_dump() | {"unit_weights": weights})


class PoolConfig(Config):
    """The rolling pool of clips that samples are drawn from.

    A worker holds ``clips`` clips in memory and every step replaces the oldest ``refresh`` of them by the next ones in
    the data set's order; where all of a worker's clips fit, they are held for good.
    """

    clips: PositiveInt = 4096
    refresh: NonNegativeInt = 16


class TrainConfig(Config):
    """A whole training run."""

    seed: NonNegativeInt = 0
    data: str = Field(description="folder of parquet files made by jobs.prepare")
    model: ModelConfig = ModelConfig()
    phases: tuple[PhaseConfig, ...] = Field(min_length=1)
    pool: PoolConfig = PoolConfig()
    precision: Literal["bf16", "fp32"] = "bf16"
    save_as: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="precision of the saved weights")
    zero: Literal[1, 2, 3] = Field(1, description="ZeRO stage of the DeepSpeed engine")
    recompute: bool = Field(False, description="keep no activations inside blocks: less memory, a third more time")
    checkpoint_every: PositiveInt = Field(200, description="steps between checkpoints")
    log_every: PositiveInt = Field(10, description="steps between points of the loss curve")

    @model_validator(mode="after")
    def _phases_fit_together(self) -> Self:
        names = [phase.name for phase in self.phases]
        if len(set(names)) < len(names):
            raise ValueError(f"phases must have different names, not {names}")
        if len({phase.matrix_learning_rate is None for phase in self.phases}) > 1:
            raise ValueError("give a matrix_learning_rate to every phase or to none: one optimizer serves them all")
        return self

    @property
    def steps(self) -> int:
        """Steps of all phases together."""
        return sum(phase.steps for phase in self.phases)
