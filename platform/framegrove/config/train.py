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
from framegrove.config.tune import TuneConfig
from framegrove.config.watch import SamplesConfig, TrackingConfig

SHIPPED = "shipped"

# Folders in a run's folder.
MODEL = "model"
START = "start"  # the model that it began with, where that was a state of another run
CHECKPOINTS = "checkpoints"
RAY_STATE = ".ray"  # Ray Train's own notes on a session; the run does not need them


class ModelConfig(Config):
    """The model at the first step.

    Either an existing model is continued (``start``), or a new transformer (an MM-DiT, or FLUX-style) and a new text
    encoder are made in the shape given here, for the latents of an existing VAE (``vae``).
    """

    start: str | None = Field(
        SHIPPED,
        description="model to continue from: a folder, a hub id, a run's folder (its newest checkpoint), SD3 Medium's "
        "folder or file (see vae and encoders); shipped: the embedded model; null: a new model",
    )
    variant: str | None = Field(None, description="of a public start: 384p, 768p or image; null: the largest")
    allow_pickle: bool = Field(False, description="read pickled weights of start where there are no safetensors")
    fresh: bool = Field(
        False, description="begin with an untrained transformer of start's shape, beside start's VAE and text encoder"
    )
    vae: str | None = Field(
        None,
        description="of a new model, or where start is SD3 Medium: folder of the VAE that encoded the data; shipped: "
        "the embedded one",
    )
    encoders: str | None = Field(
        None, description="where start is a single file: folder with text_encoder*/ and tokenizer*/"
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
        True,
        description="where all is trained: the text encoder as well; those of public checkpoints must stay frozen "
        "(false). Frozen ones are not even loaded where the clips hold embeddings that they made of all captions",
    )
    tune: TuneConfig = Field(TuneConfig(), description="what is trained of start: all of it, an adapter, or parts")

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if self.start is None and self.vae is None:
            raise ValueError("name a model folder to continue from (start), or the VAE of a new model (vae)")
        if not self.tune.all and (self.start is None or self.fresh):
            raise ValueError("tune: an adapter or parts of an untrained transformer cannot be trained alone: remove it")
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
    def trains_text(self) -> bool:
        """Whether any of the text encoder is trained."""
        return self.train_text if self.tune.all else self.tune.trains_text

    @property
    def source(self) -> ModelSource:
        """The model to continue from, where there is one."""
        name = None if self.start == SHIPPED else self.start
        return ModelSource(
            name=name,
            variant=self.variant,
            allow_pickle=self.allow_pickle,
            vae=self.vae,
            encoders=self.encoders,
        )

    @property
    def shape(self) -> AnyTransformerConfig:
        """The shape of a new transformer."""
        return self.flux or self.transformer


class PhaseConfig(Config):
    """One phase of the curriculum (PFM appendix B, three-stage training).

    A stage-sample is one unit of one clip at one stage of the pyramid. A step draws ``batch`` of them for all workers
    together, or as many as fit into ``batch_tokens``. They are packed into forward passes of at most ``pack_tokens``
    tokens (Patch n' Pack), of which all workers make the same number, and about as many tokens. A share ``images`` of
    the stage-samples are first units, of pictures and videos alike; the rest are later units of videos, by
    ``objective.unit_weights``.

    The learning rates rise linearly from 0 over ``warmup`` steps, stay constant, and fall linearly to 0 over the last
    ``decay`` share of the phase's steps.
    """

    name: str = Field(
        min_length=1, pattern=r"^[a-z0-9-]+$", description="lower-case letters, digits and hyphens; unique in the run"
    )
    sizes: tuple[tuple[PositiveInt, PositiveInt], ...] | None = Field(
        min_length=1,
        description="[height, width] in pixels of the clips to train on, as in [[384, 640], [768, 1280]]; null: all",
    )
    units: PositiveInt = Field(1, description="units (latent frames) of the longest clip; longer clips are cut")
    steps: PositiveInt = Field(description="optimizer steps")
    batch: PositiveInt | None = Field(None, description="stage-samples in a step, all workers together")
    batch_tokens: PositiveInt | None = Field(
        None, description="in place of batch: tokens in a step, all workers together, a multiple of pack_tokens"
    )
    pack_tokens: PositiveInt | None = Field(None, description="most tokens in one forward pass; null: no limit")
    recompute: bool | None = Field(None, description="recompute activations in this phase; null: as the run says")
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
        if (self.batch is None) == (self.batch_tokens is None):
            raise ValueError(f"phase {self.name}: give batch (stage-samples) or batch_tokens, one of them")
        if self.batch_tokens is not None and self.batch_tokens % (self.pack_tokens or self.batch_tokens + 1):
            raise ValueError(
                f"phase {self.name}: batch_tokens {self.batch_tokens} must be a multiple of pack_tokens, "
                f"not {self.pack_tokens}"
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

    @property
    def first_units(self) -> float:
        """The share of the stage-samples that are first units: all of them where clips have no others."""
        return self.images if self.units > 1 else 1.0

    @property
    def unit_shares(self) -> tuple[float, ...]:
        """The share of the stage-samples that each unit has, where all videos are as long as they may be."""
        first, later = self.first_units, self.later_weights(self.units)
        return (first, *((1 - first) * weight / (sum(later) or 1.0) for weight in later[1:]))

    def later_weights(self, units: int) -> tuple[float, ...]:
        """The weights of a clip's units where a later one is drawn; a clip of that many ``units`` may be longer."""
        weights = self.objective.unit_weights or (1.0,) * self.units
        return (0.0, *weights[1 : min(units, self.units)])


class DataConfig(Config):
    """One of several data sets."""

    path: str = Field(description="folder of parquet files made by jobs.prepare")
    weight: PositiveFloat | None = Field(
        None, description="its share of the samples beside the others' weights; null: the number of its clips"
    )


class TrainConfig(Config):
    """A whole training run."""

    seed: NonNegativeInt = Field(0, description="of every random draw: the same seed gives the same run")
    data: str | tuple[DataConfig, ...] = Field(
        min_length=1,
        description="folder of parquet files made by jobs.prepare, or a list of {path, weight} to draw from several",
    )
    model: ModelConfig = Field(ModelConfig(), description="the model at the first step")
    phases: tuple[PhaseConfig, ...] = Field(min_length=1, description="the phases, in order")
    cache_gib: PositiveFloat = Field(
        4.0, description="GiB of encoded clips that a worker keeps in memory; where all fit, each is read once"
    )
    precision: Literal["bf16", "fp32"] = Field("bf16", description="of forward and backward; masters are always fp32")
    save_as: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="precision of the saved weights")
    zero: Literal[1, 2, 3] = Field(1, description="ZeRO stage of the deepspeed engine")
    sequence_parallel: PositiveInt = Field(
        1,
        description="workers that share each pack of tokens (deepspeed engine); must divide their number and the heads",
    )
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
    validate_every: PositiveInt | None = Field(
        None,
        description="steps between measurements of the loss on held-out clips, if there are any; null: at every "
        "checkpoint; only checkpoints with one compete for being the best",
    )
    validate_on: PositiveInt = Field(
        128, description="stage-samples of held-out clips that it is measured on, the same ones every time"
    )
    samples: SamplesConfig = Field(SamplesConfig(), description="videos that show what has been learned so far")
    tracking: TrackingConfig = Field(TrackingConfig(), description="where figures and pictures go besides OUT")

    @model_validator(mode="after")
    def _phases_fit_together(self) -> Self:
        if len({given.weight is None for given in self.data_sets}) > 1:
            raise ValueError("give every data set a weight or none: without, each counts as many as it has clips")
        names = [phase.name for phase in self.phases]
        if len(set(names)) < len(names):
            raise ValueError(f"phases must have different names, not {names}")
        if not self.model.tune.all and any(phase.matrix_learning_rate for phase in self.phases):
            raise ValueError("matrix_learning_rate is for a model that is trained whole: remove it, or model.tune")
        if len({phase.matrix_learning_rate is None for phase in self.phases}) > 1:
            raise ValueError("give a matrix_learning_rate to every phase or to none: one optimizer serves them all")
        return self

    def recomputes(self, phase: PhaseConfig) -> bool:
        """Whether activations are recomputed in a phase."""
        return self.recompute if phase.recompute is None else phase.recompute

    def validates(self, done: int) -> bool:
        """Whether the held-out loss is measured after so many steps."""
        return done % (self.validate_every or self.checkpoint_every) == 0 or done == self.steps

    def watches(self, done: int) -> bool:
        """Whether a point of the loss curve is due after so many steps for what else is looked at there."""
        return self.validates(done) or self.samples_due(done)

    def samples_due(self, done: int) -> bool:
        """Whether samples are made after so many steps."""
        due = done % (self.samples.every or self.checkpoint_every) == 0 or done == self.steps
        return due and bool(self.samples.prompts)

    @property
    def data_sets(self) -> tuple[DataConfig, ...]:
        """The data sets that samples are drawn from."""
        return (DataConfig(path=self.data),) if isinstance(self.data, str) else self.data

    @property
    def units(self) -> int:
        """Units of the longest clips of any phase."""
        return max(phase.units for phase in self.phases)

    @property
    def steps(self) -> int:
        """Steps of all phases together."""
        return sum(phase.steps for phase in self.phases)
