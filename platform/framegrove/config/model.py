"""What a model is made of: the transformer's shape and the recipe it is sampled with. No torch in here."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from framegrove.config.base import Config
from framegrove.config.flow import GuidanceConfig, PyramidConfig, StepsConfig
from framegrove.config.request import FRAMES_PER_UNIT
from framegrove.types import Sampling

# Keys of public config.json files that choose an implementation and change no number.
_IMPLEMENTATION_KEYS = ("use_flash_attn", "use_gradient_checkpointing", "gradient_checkpointing_ratio", "use_t5_mask")
_FLUX_CLASS = "PyramidFluxTransformer"
_HUB_ID = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")


def hub_id(name: str) -> tuple[str, str | None] | None:
    """The repository and the revision, if any, of "owner/name" or "owner/name@revision"; None for what is a path.

    Where "runs" is a folder here, "runs/mine" is a path, whether it is there or not.
    """
    match = _HUB_ID.fullmatch(name)
    here = Path(name).exists() or Path(name).parent.is_dir()
    return (match[1], match[2]) if match is not None and not here else None


class TransformerConfig(Config):
    """Shape of an MM-DiT, under the key names of the public ``diffusion_transformer_*`` folders (PFM appendix B)."""

    patch_size: int = Field(default=2, ge=1)
    in_channels: int = Field(default=16, ge=1)
    num_layers: int = Field(default=24, ge=1)
    attention_head_dim: int = Field(default=64, ge=2, multiple_of=2)
    num_attention_heads: int = Field(default=24, ge=1)
    caption_projection_dim: int = 1536
    pooled_projection_dim: int = Field(default=2048, ge=1)
    joint_attention_dim: int = Field(default=4096, ge=1)
    sample_size: int = Field(default=128, ge=1)
    pos_embed_max_size: int = Field(default=192, ge=1)
    max_num_frames: int = Field(default=200, ge=1)
    pos_embed_type: Literal["sincos"] = "sincos"
    temp_pos_embed_type: Literal["rope"] = "rope"
    add_temp_pos_embed: bool = True
    interp_condition_pos: bool = True
    use_temporal_causal: bool = True
    qk_norm: Literal["rms_norm"] = "rms_norm"

    @property
    def width(self) -> int:
        """Channels of a token: heads times head size."""
        return self.num_attention_heads * self.attention_head_dim

    @model_validator(mode="after")
    def _widths_agree(self) -> TransformerConfig:
        if self.caption_projection_dim != self.width:
            raise ValueError(
                f"caption_projection_dim is {self.caption_projection_dim}, it must be num_attention_heads x "
                f"attention_head_dim = {self.width}"
            )
        if self.width % 4:
            raise ValueError(
                f"the width {self.width} (heads x head size) must be a multiple of 4 for the position table"
            )
        return self

    @property
    def attention_layers(self) -> int:
        """Layers that attend."""
        return self.num_layers

    @property
    def modulation_vectors(self) -> int:
        """Vectors of shift, scale or gate that one condition is turned into; the last block's text has two."""
        return 12 * (self.num_layers - 1) + 8 + 2

    @classmethod
    def from_public(cls, keys: Mapping[str, Any]) -> TransformerConfig:
        """Read a public config.json: private keys (``_class_name``) and implementation switches are dropped."""
        return cls.model_validate(_without_switches(keys))

    def to_public(self) -> dict[str, Any]:
        """What a public config.json holds."""
        return {"_class_name": "PyramidDiffusionMMDiT", **self.model_dump(mode="json")}


class FluxConfig(Config):
    """Shape of the FLUX-style transformer of the public miniFLUX folders; the defaults are theirs.

    Key names are the public ones, with one difference in meaning: public files give the channels of a whole patch and
    a patch size of 1, this class the latent's channels and the patch of 2 x 2 that the released code cuts it into.
    """

    patch_size: Literal[2] = 2
    in_channels: int = Field(default=16, ge=1)
    num_layers: int = Field(default=8, ge=1, description="blocks of two streams")
    num_single_layers: int = Field(default=16, ge=1, description="blocks of one stream, after the others")
    attention_head_dim: int = Field(default=64, ge=2, multiple_of=2)
    num_attention_heads: int = Field(default=30, ge=1)
    joint_attention_dim: int = Field(default=4096, ge=1)
    pooled_projection_dim: int = Field(default=768, ge=1)
    axes_dims_rope: tuple[int, int, int] = Field(default=(16, 24, 24), description="of time, row and column in a head")
    use_temporal_causal: bool = True
    interp_condition_pos: bool = Field(default=True, description="kept as read: the released code always interpolates")

    @property
    def width(self) -> int:
        """Channels of a token: heads times head size."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def attention_layers(self) -> int:
        """Layers that attend."""
        return self.num_layers + self.num_single_layers

    @property
    def modulation_vectors(self) -> int:
        """Vectors of shift, scale or gate that one condition is turned into."""
        return 12 * self.num_layers + 3 * self.num_single_layers + 2

    @property
    def pos_embed_max_size(self) -> int:
        """Longest side of a clip in tokens. Rotary positions end nowhere; the MM-DiT's bound keeps requests sane."""
        return 192

    @property
    def max_num_frames(self) -> int:
        """Most units of a video, as for the MM-DiT."""
        return 200

    @model_validator(mode="after")
    def _axes_fill_a_head(self) -> FluxConfig:
        axes = self.axes_dims_rope
        if sum(axes) != self.attention_head_dim or any(size < 2 or size % 2 for size in axes):
            raise ValueError(
                f"axes_dims_rope is {list(axes)}, it must be three even numbers that add up to "
                f"attention_head_dim {self.attention_head_dim}"
            )
        return self

    @classmethod
    def from_public(cls, keys: Mapping[str, Any]) -> FluxConfig:
        """Read a public config.json. Raises ValueError for channels that no patch of 2 x 2 can have."""
        kept = _without_switches(keys)
        channels = kept.pop("in_channels", 64)
        if kept.pop("patch_size", 1) != 1 or not isinstance(channels, int) or channels % 4:
            raise ValueError(
                f"in_channels is {channels!r}: a FLUX-style transformer has patch_size 1 and counts the channels of a "
                "patch of 2 x 2, a multiple of 4"
            )
        return cls.model_validate({**kept, "in_channels": channels // 4})

    def to_public(self) -> dict[str, Any]:
        """What a public config.json holds."""
        own = {**self.model_dump(mode="json"), "patch_size": 1, "in_channels": self.in_channels * self.patch_size**2}
        return {"_class_name": _FLUX_CLASS, **own}


AnyTransformerConfig = TransformerConfig | FluxConfig


def read_transformer_config(keys: Mapping[str, Any]) -> AnyTransformerConfig:
    """The shape of either transformer from a public config.json, whose ``_class_name`` says which it is."""
    is_flux = keys.get("_class_name") == _FLUX_CLASS or "axes_dims_rope" in keys
    return FluxConfig.from_public(keys) if is_flux else TransformerConfig.from_public(keys)


def _without_switches(keys: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in keys.items() if not k.startswith("_") and k not in _IMPLEMENTATION_KEYS}


class TextConfig(Config):
    """Shape of the small text encoder that is trained together with the transformer."""

    layers: int = Field(default=2, ge=1)
    width: int = Field(default=128, ge=2)
    heads: int = Field(default=4, ge=1)
    max_tokens: int = Field(default=32, ge=2, description="longest prompt in tokens, end mark included")

    @model_validator(mode="after")
    def _heads_divide(self) -> TextConfig:
        if self.width % self.heads:
            raise ValueError(f"heads {self.heads} does not divide the width {self.width}")
        return self


class ModelSource(Config):
    """Which model is used, and how its files are read."""

    name: str | None = Field(
        default=None, description="a folder (a model's, an adapter's or a run's) or a hub id; absent: the shipped model"
    )
    variant: str | None = Field(default=None, description="of a public model: 384p, 768p, image; absent: the largest")
    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32", description="of all weights but a small text encoder's"
    )
    allow_pickle: bool = Field(default=False, description="read pickled weights where there are no safetensors")
    vae: str | None = Field(default=None, description="folder of the video VAE, where the model is SD3 Medium")
    encoders: str | None = Field(default=None, description="folder of the text encoders, where it is a single file")


class Native(Config):
    """What a model's videos are like by themselves, and which prompts it knows."""

    fps: int = Field(default=24, ge=1)
    height: int = Field(default=384, ge=1, description="native size in pixels")
    width: int = Field(default=640, ge=1)
    units: int = Field(default=16, ge=1, description="units of a native clip")
    prompt_suffix: str = Field(default="", description="what every prompt ends with")
    negative_prompt: str = Field(default="", description="what guidance leads away from")
    knows: str = Field(default="", description="which prompts it was trained on, in a sentence for the user")
    known_prompts: str = Field(
        default="", description="regular expression of the prompts it was trained on, in any case; empty: any prompt"
    )

    @property
    def unit_frames(self) -> tuple[int, int]:
        """Frames of the first unit, and of each later one."""
        return 1, FRAMES_PER_UNIT

    def frames_of(self, units: int) -> int:
        """Frames of a video of so many units."""
        first, later = self.unit_frames
        return first + later * (units - 1)

    def lengths(self, units: int) -> tuple[int, ...]:
        """Frames of each unit of a video of so many units."""
        first, later = self.unit_frames
        return (first, *(later,) * (units - 1))

    def units_of(self, frames: int) -> int:
        """The fewest units that have so many frames."""
        first, later = self.unit_frames
        return 1 + math.ceil(max(0, frames - first) / later)

    def outside(self, prompt: str) -> str | None:
        """A sentence for the user where this model was not trained on prompts like ``prompt``; else None."""
        text = " ".join(prompt.split()).rstrip(".")
        if not self.known_prompts or re.fullmatch(self.known_prompts, text, re.IGNORECASE):
            return None
        return (
            "the prompt is unlike anything this model was trained on, and the video will hardly show it; what it "
            f"knows: {self.knows}"
        )

    @field_validator("known_prompts")
    @classmethod
    def _is_an_expression(cls, given: str) -> str:
        try:
            re.compile(given)
        except re.error as error:
            raise ValueError(f"no regular expression: {error}") from None
        return given


class Recipe(Native):
    """How a trained model is sampled; stands beside its weights as framegrove.json."""

    pyramid: PyramidConfig = PyramidConfig()
    guidance: GuidanceConfig = GuidanceConfig()
    steps: StepsConfig = StepsConfig()

    def sampled(self, sampling: Sampling) -> Recipe:
        """The recipe with what a request wants otherwise."""
        changed: dict[str, Any] = {}
        if sampling.negative is not None:
            changed["negative_prompt"] = sampling.negative
        if sampling.steps is not None:
            every = (sampling.steps,) * self.pyramid.stages
            changed["steps"] = StepsConfig(first=every, others=every, preview=min(self.steps.preview, sampling.steps))
        if sampling.guidance is not None:
            changed["guidance"] = GuidanceConfig(first=sampling.guidance, others=sampling.guidance)
        return self.model_copy(update=changed)

    @model_validator(mode="after")
    def _steps_per_stage(self) -> Recipe:
        if len(self.steps.first) != self.pyramid.stages:
            raise ValueError(f"steps name {len(self.steps.first)} stages, the pyramid has {self.pyramid.stages}")
        return self
