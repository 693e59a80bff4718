"""Configuration of a training run: what is trained, on which data, through which phases. No torch in here.

The descriptions of the keys are what ``python -m jobs.train --help`` prints.
"""

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

# Folders in a run's folder.
MODEL = "model"
CHECKPOINTS = "checkpoints"
RAY_STATE = ".ray"  # Ray Train's own notes on a session; the run does not need them


class ModelConfig(Config):
    """The model at the first step.

    Either an existing model is continued (``start``), or a new transformer (an MM-DiT, or FLUX-style) and a new text
    encoder are made in the shape given here, for the latents of an existing VAE (``vae``).
    """

    start: str | None = Field(
        SHIPPED, description="model folder or hub id to continue from; shipped: the embedded model; null: a new model"
    )
    variant: str | None = Field(None, description="of a public start: 384p, 768p or image; null: the largest")
    allow_pickle: bool = Field(False, description="read pickled weights of start where there are no safetensors")
    fresh: bool = Field(
        False, description="begin with an untrained transformer of start's shape, beside start's VAE and text encoder"
    )
    vae: str | None = Field(
        None, description="of a new model: folder of the VAE that encoded the data; shipped: the embedded one"
    )
    transformer: TransformerConfig = Field(
        default=TransformerConfig(), description="of a new model: shape of its MM-DiT transformer"
    )
    flux: FluxConfig | None = Field(
        None, description="of a new model: shape of a FLUX-style transformer, in place of transformer"
    )
    text: TextConfig = Field(TextConfig(), description="of a new model: shape of its text encoder")
    phrases: tuple[str, ...] = Field(
        (), description="of a new model: phrases that its text encoder reads as a single token each"
    )
    recipe: Recipe = Field(default=Recipe(), description="of a new model: how it is sampled")
    train_text: bool = Field(
        True, description="train the text encoder as well; the encoders of public checkpoints must stay frozen (false)"
    )

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
        """The shape of a new transformer."""
        return self.flux or self.transformer


class PhaseConfig(Config):
    """One phase of the curriculum (PFM appendix B, three-stage training).

    A stage-sample is one unit of one clip at one stage of the pyramid. A step draws ``batch`` of them over all workers
    together; each worker packs its share into as few forward passes of at most ``pack_tokens`` tokens as it can
    (Patch n' Pack). A share ``images`` of the stage-samples are first units; the rest is spread over the later units
    by ``objective.unit_weights``.

    The learning rates rise linearly from 0 over ``warmup`` steps, stay constant, and fall linearly to 0 over the last
    ``decay`` share of the phase's steps.
    """

    name: str = Field(
        min_length=1, pattern=r"^[a-z0-9-]+$", description="lower-case letters, digits and hyphens; unique in the run"
    )
    sizes: tuple[tuple[PositiveInt, PositiveInt], ...] = Field(
        min_length=1, description="[height, width] in pixels of the clips to train on, as in [[384, 640], [768, 1280]]"
    )
    units: PositiveInt = Field(1, description="units (latent frames) of the longest clip; longer clips are cut")
    steps: PositiveInt = Field(description="optimizer steps")
    batch: PositiveInt = Field(description="stage-samples in a step, all workers together")
    pack_tokens: PositiveInt | None = Field(None, description="most tokens in one forward pass; null: no limit")
    images: float = Field(0.125, ge=0, le=1, description="share of the stage-samples that are first units, 0 to 1")
    objective: ObjectiveConfig = Field(
        ObjectiveConfig(stage_weights=(1, 2, 1)),
        description="stage_weights (coarsest first), unit_weights, text_dropout and corruption",
    )
    learning_rate: PositiveFloat = Field(1e-4, description="peak learning rate of AdamW, per step")
    matrix_learning_rate: PositiveFloat | None = Field(
        None,
        description="peak learning rate of Muon for the blocks' matrices (plain engine only); null: AdamW for all",
    )
    warmup: NonNegativeInt = Field(1000, description="steps over which the learning rates rise from 0")
    decay: float = Field(0.0, ge=0, le=1, description="share of the phase, at its end, over which they fall to 0")
    betas: tuple[float, float] = Field((0.9, 0.95), description="AdamW's decay rates of both moments, each in [0, 1)")
    eps: PositiveFloat = Field(1e-6, description="AdamW's epsilon")
    weight_decay: NonNegativeFloat = Field(1e-4, description="AdamW's decoupled weight decay")
    clip: PositiveFloat = Field(1.0, description="largest norm of the gradient; larger ones are scaled down")
    ema: float = Field(
        0.999, ge=0, lt=1, description="decay per step of the averaged weights, which are what the model folder holds"
    )

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

    def learning_rate_scale(self, step: int) -> float:
        """What the learning rates are multiplied by at the zero-based ``step`` within this phase, in (0, 1]."""
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

    Where all of a worker's clips fit into its pool, none is ever replaced.
    """

    clips: PositiveInt = Field(4096, description="clips that a worker holds in memory")
    refresh: NonNegativeInt = Field(16, description="clips that are replaced by the data set's next ones in every step")


class TrainConfig(Config):
    """A whole training run."""

    seed: NonNegativeInt = Field(0, description="of every random draw: the same seed gives the same run")
    data: str = Field(description="folder of parquet files made by jobs.prepare")
    model: ModelConfig = Field(ModelConfig(), description="the model at the first step")
    phases: tuple[PhaseConfig, ...] = Field(min_length=1, description="the phases, in order")
    pool: PoolConfig = Field(PoolConfig(), description="the clips that samples are drawn from")
    precision: Literal["bf16", "fp32"] = Field("bf16", description="of forward and backward; masters are always fp32")
    save_as: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="precision of the saved weights")
    zero: Literal[1, 2, 3] = Field(1, description="ZeRO stage of the deepspeed engine")
    recompute: bool = Field(False, description="recompute activations inside blocks: less memory, a third more time")
    checkpoint_every: PositiveInt = Field(200, description="steps between checkpoints")
    keep_last: PositiveInt = Field(2, description="checkpoints that are kept, the newest ones")
    keep_best: NonNegativeInt = Field(
        1,
        description="checkpoints that are kept besides: those of the phase with the lowest loss, held-out if measured",
    )
    most_skipped: NonNegativeInt = Field(
        10, description="steps in a row that may be skipped because a loss or gradient is infinite or no number"
    )
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
