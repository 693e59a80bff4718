"""What a model is made of: the transformer's shape and the recipe it is sampled with. No torch in here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from framegrove.config.base import Config

# Keys of public config.json files that choose an implementation and change no number.
_IMPLEMENTATION_KEYS = ("use_flash_attn", "use_gradient_checkpointing", "gradient_checkpointing_ratio", "use_t5_mask")


class TransformerConfig(Config):
    """Shape of an MM-DiT, under the key names of the public ``diffusion_transformer_*/config.json`` (PFM appendix B)."""

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
            raise ValueError(f"the width {self.width} (heads x head size) must be a multiple of 4 for the position table")
        return self

    @classmethod
    def from_public(cls, keys: Mapping[str, Any]) -> TransformerConfig:
        """Read a public config.json: private keys (``_class_name``) and implementation switches are dropped."""
        kept = {k: v for k, v in keys.items() if not k.startswith("_") and k not in _IMPLEMENTATION_KEYS}
        return cls.model_validate(kept)
