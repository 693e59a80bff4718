"""Configuration of the causal video VAE and of its training (no torch in here)."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from typing import Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from framegrove.config.base import Config

Flags = tuple[bool, ...]
Sizes = tuple[PositiveInt, ...]


class VaeConfig(Config):
    """Architecture, under the key names of the public checkpoints' ``config.json``; the defaults are their values.

    Blocks are listed in the order they run: the encoder's from fine to coarse, the decoder's channels from fine to
    coarse as well (as released), everything else of the decoder from coarse to fine.

    Three keys are this project's own, for small worlds, and change nothing when left out: ``patch_size`` folds
    patches of pixels into channels before the first convolution; ``encoder_time_kernels`` and
    ``decoder_time_kernels`` give the extent in time (1 or 3) of each block's convolutions.
    """

    encoder_in_channels: PositiveInt = 3
    encoder_out_channels: PositiveInt = 16
    encoder_layers_per_block: Sizes = (2, 2, 2, 2)
    encoder_block_out_channels: Sizes = (128, 256, 512, 512)
    encoder_spatial_down_sample: Flags = (True, True, True, False)
    encoder_temporal_down_sample: Flags = (True, True, True, False)
    encoder_norm_num_groups: PositiveInt = 32
    encoder_time_kernels: tuple[Literal[1, 3], ...] = (3, 3, 3, 3)
    decoder_in_channels: PositiveInt = 16
    decoder_out_channels: PositiveInt = 3
    decoder_layers_per_block: Sizes = (3, 3, 3, 3)
    decoder_block_out_channels: Sizes = (128, 256, 512, 512)
    decoder_spatial_up_sample: Flags = (True, True, True, False)
    decoder_temporal_up_sample: Flags = (True, True, True, False)
    decoder_norm_num_groups: PositiveInt = 32
    decoder_time_kernels: tuple[Literal[1, 3], ...] = (3, 3, 3, 3)
    patch_size: PositiveInt = 1

    @property
    def spatial_factor(self) -> int:
        """Pixels along one side of a latent cell."""
        return self.patch_size * 2 ** sum(self.encoder_spatial_down_sample)

    @property
    def temporal_factor(self) -> int:
        """Frames in every unit but the first, which holds one."""
        return 2 ** sum(self.encoder_temporal_down_sample)

    @model_validator(mode="before")
    @classmethod
    def _released_kernels(cls, data: Any) -> Any:
        """Public files do not name the extents in time: as many threes as there are blocks."""
        if not isinstance(data, Mapping):
            return data
        blocks = {half: data.get(f"{half}_block_out_channels", (1,) * 4) for half in ("encoder", "decoder")}
        kernels = {
            f"{half}_time_kernels": (3,) * len(given) for half, given in blocks.items() if isinstance(given, Sized)
        }
        return kernels | dict(data)

    @model_validator(mode="after")
    def _consistent(self) -> VaeConfig:
        for half, names in (
            ("encoder", ("layers_per_block", "spatial_down_sample", "temporal_down_sample", "time_kernels")),
            ("decoder", ("layers_per_block", "spatial_up_sample", "temporal_up_sample", "time_kernels")),
        ):
            channels = getattr(self, f"{half}_block_out_channels")
            for name in names:
                given = len(getattr(self, f"{half}_{name}"))
                if given != len(channels):
                    raise ValueError(f"{half}_{name} lists {given} blocks, {half}_block_out_channels {len(channels)}")
            groups = getattr(self, f"{half}_norm_num_groups")
            for width in channels:
                if width % groups:
                    raise ValueError(f"{half}_norm_num_groups {groups} does not divide the {width} channels of a block")
        if sum(self.encoder_spatial_down_sample) != sum(self.decoder_spatial_up_sample) or sum(
            self.encoder_temporal_down_sample
        ) != sum(self.decoder_temporal_up_sample):
            raise ValueError("encoder and decoder must halve and double equally often, in space and in time")
        if self.encoder_out_channels != self.decoder_in_channels:
            raise ValueError(
                f"encoder_out_channels {self.encoder_out_channels} must equal "
                f"decoder_in_channels {self.decoder_in_channels}"
            )
        return self


class VideoClipsConfig(Config):
    """Clips of video files: of each a stretch of its beginning, scaled and cut to one size."""

    videos: str = Field(description="list of videos (.csv, .jsonl, .parquet, as jobs.prepare reads) or their folder")
    height: PositiveInt = Field(256, description="in pixels")
    width: PositiveInt = Field(256, description="in pixels")
    units: PositiveInt = Field(3, description="units of a clip: 3 are 17 frames where a unit is 8")
    fps: float = Field(24.0, gt=0, description="frames a second at which videos are read")
    heldout: float = Field(0.05, gt=0, lt=1, description="share of the videos that are only measured on, one at least")


class VaeTrainingConfig(Config):
    """One training of the VAE; the defaults are for small bright objects on a dark ground, the digits world."""

    model: VaeConfig = VaeConfig()
    start: str | None = Field(None, description="folder of a VAE to continue from, in place of model")
    allow_pickle: bool = Field(False, description="read pickled weights of start and features")
    data: VideoClipsConfig | None = Field(None, description="clips of real videos; null: of the digits world")
    seed: int = 0
    steps: PositiveInt = 1000
    batch: PositiveInt = Field(12, description="clips per step on crops")
    full_batch: PositiveInt = Field(4, description="clips per step on whole frames")
    crop: PositiveInt = Field(32, description="side of the crops around an object, in pixels")
    pool: PositiveInt = Field(1024, description="clips in memory that batches are drawn from")
    full_share: float = Field(0.1, ge=0, le=1, description="share of steps on whole frames before the last part")
    full_from: float = Field(0.7, ge=0, le=1, description="share of the steps after which there are whole frames only")
    learning_rate: float = Field(1.5e-3, gt=0, description="peak learning rate of the weights that AdamW optimizes")
    warmup: PositiveInt = Field(50, description="steps over which the learning rates rise to their peaks")
    matrix_learning_rate: float = Field(0.02, gt=0, description="peak learning rate of the weights that Muon optimizes")
    gradient_clip: float = Field(1.0, gt=0, description="largest norm of a step's gradients")
    ema: float = Field(0.998, ge=0, lt=1, description="decay of the average of the weights, per step")
    l1: float = Field(1.0, ge=0, description="weight of the absolute error of pixels in [-1, 1]")
    mse: float = Field(6.0, ge=0, description="weight of the squared error")
    kl: float = Field(1e-4, ge=0, description="weight of the posterior's divergence from a standard normal one")
    perceptual: float = Field(0.0, ge=0, description="weight of the distance between features; 0: without")
    features: str | None = Field(
        None,
        description="whose features: a VAE's folder, or VGG16's weights in a safetensors file, with LPIPS' if they are "
        "in it",
    )
    adversarial: float = Field(
        0.0, ge=0, description="weight of what a discriminator of patches thinks, beside the reconstruction; 0: without"
    )
    adversarial_from: NonNegativeInt = Field(0, description="step from which there is a discriminator")
    discriminator_width: PositiveInt = Field(32, multiple_of=4, description="channels of its first layer")
    discriminator_learning_rate: float = Field(2e-4, gt=0, description="constant")
    foreground: float = Field(
        4.0, ge=1, description="weight of pixels on or beside what is bright; 1: all alike, crops are anywhere"
    )
    image: float = Field(2.0, ge=1, description="further weight of the first frame, which is a unit of its own")
    bfloat16: bool = Field(True, description="run forward and backward passes under bfloat16 autocast")
    log_every: PositiveInt = Field(20, description="steps between lines of the log")
    evaluate_every: PositiveInt = Field(200, description="steps between evaluations on held-out clips")
    evaluate_clips: PositiveInt = Field(16, description="held-out clips of each kind per evaluation")
    final_clips: PositiveInt = Field(128, description="held-out clips of each kind in the last evaluation")
    norm_clips: PositiveInt = Field(512, description="clips on which the normalisation of latents is measured")
    strip_every: PositiveInt = Field(
        200, description="steps between pictures of held-out clips and what became of them"
    )
    checkpoint_seconds: float = Field(60.0, gt=0, description="seconds between checkpoints")

    @model_validator(mode="after")
    def _whole_terms(self) -> VaeTrainingConfig:
        if (self.perceptual > 0) != (self.features is not None):
            raise ValueError("perceptual and features belong together: give both or neither")
        if self.start is not None and "model" in self.model_fields_set:
            raise ValueError("give start or model, not both: a VAE that is continued has its own shape")
        return self
