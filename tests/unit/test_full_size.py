"""The public 2 B models at full size, without their weights: key names, and parameters counted by hand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from framegrove.config.model import AnyTransformerConfig, FluxConfig, TransformerConfig, read_transformer_config
from framegrove.models.transformers import Transformer, build_transformer

GOLDEN = Path(__file__).parents[1] / "parity" / "golden"

# The released config.json files, facts alone (diffusion_transformer_768p of pyramid-flow-sd3 and -miniflux).
SD3 = {
    "_class_name": "PyramidDiffusionMMDiT",
    "attention_head_dim": 64,
    "caption_projection_dim": 1536,
    "in_channels": 16,
    "joint_attention_dim": 4096,
    "max_num_frames": 200,
    "num_attention_heads": 24,
    "num_layers": 24,
    "patch_size": 2,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 192,
    "pos_embed_type": "sincos",
    "qk_norm": "rms_norm",
    "sample_size": 128,
    "use_flash_attn": False,
    "use_gradient_checkpointing": False,
    "use_temporal_causal": True,
}
MINIFLUX = {
    "_class_name": "PyramidFluxTransformer",
    "attention_head_dim": 64,
    "axes_dims_rope": [16, 24, 24],
    "in_channels": 64,
    "interp_condition_pos": True,
    "joint_attention_dim": 4096,
    "num_attention_heads": 30,
    "num_layers": 8,
    "num_single_layers": 16,
    "patch_size": 1,
    "pooled_projection_dim": 768,
    "use_flash_attn": False,
    "use_gradient_checkpointing": False,
    "use_temporal_causal": True,
}


def _on_meta(config: AnyTransformerConfig) -> Transformer:
    with torch.device("meta"):
        return build_transformer(config)


def _linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def _shared(width: int, text: int, pooled: int, patch: int) -> int:
    """Timestep, pooled text, text, the last modulation and the way out; the way in is a linear layer or its like."""
    times = _linear(256, width) + _linear(pooled, width) + 2 * _linear(width, width)
    return times + _linear(text, width) + 2 * _linear(width, width) + 2 * width * patch + width + patch


def _double_block(width: int, head: int, last: bool = False) -> int:
    modulations = _linear(width, 6 * width) + _linear(width, (2 if last else 6) * width)
    attention = (7 if last else 8) * _linear(width, width) + 4 * head
    feed_forward = _linear(width, 4 * width) + _linear(4 * width, width)
    return modulations + attention + (1 if last else 2) * feed_forward


def _single_block(width: int, head: int) -> int:
    return (
        _linear(width, 3 * width)
        + 3 * _linear(width, width)
        + 2 * head
        + _linear(width, 4 * width)
        + _linear(5 * width, width)
    )


def test_the_sd3_variant_has_as_many_parameters_as_its_shape_says() -> None:
    config = read_transformer_config(SD3)
    assert config == TransformerConfig()
    model = _on_meta(config)
    expected = _shared(1536, 4096, 2048, 64) + 23 * _double_block(1536, 64) + _double_block(1536, 64, last=True)
    assert sum(p.numel() for p in model.parameters()) == expected == 2_028_334_144
    assert {name: tuple(b.shape) for name, b in model.named_buffers()} == {"pos_embed.pos_embed": (1, 192 * 192, 1536)}


def test_miniflux_has_as_many_parameters_as_its_shape_says() -> None:
    config = read_transformer_config(MINIFLUX)
    assert config == FluxConfig()
    model = _on_meta(config)
    expected = _shared(1920, 4096, 768, 64) + 8 * _double_block(1920, 64) + 16 * _single_block(1920, 64)
    assert sum(p.numel() for p in model.parameters()) == expected == 1_972_059_200
    assert not list(model.named_buffers())


@pytest.mark.parametrize(("part", "keys"), [("mmdit", SD3), ("flux", MINIFLUX)])
def test_key_names_are_those_of_the_recorded_state_dicts(part: str, keys: dict[str, object]) -> None:
    """Recorded at two layers: the first stands for all, but for the MM-DiT's last one."""
    with safe_open(GOLDEN / f"{part}_weights.safetensors", "pt") as file:
        recorded = set(file.keys())
    stacks = {"transformer_blocks": keys["num_layers"], "single_transformer_blocks": keys.get("num_single_layers", 0)}
    expected = {name for name in recorded if "transformer_blocks." not in name}
    for stack, layers in stacks.items():
        assert isinstance(layers, int)
        inside = [re.fullmatch(rf"{stack}\.(\d+)\.(.*)", name) for name in recorded]
        numbers = sorted({int(match[1]) for match in inside if match})
        for layer in range(layers):
            like = numbers[-1] if layer == layers - 1 else numbers[0]
            expected |= {f"{stack}.{layer}.{match[2]}" for match in inside if match and int(match[1]) == like}
    assert set(_on_meta(read_transformer_config(keys)).state_dict()) == expected


@pytest.mark.parametrize("keys", [SD3, MINIFLUX])
def test_a_public_configuration_is_written_back(keys: dict[str, object]) -> None:
    config = read_transformer_config(keys)
    written = config.to_public()
    assert read_transformer_config(written) == config
    assert {key: written[key] for key in keys if key in written} == {k: v for k, v in keys.items() if k in written}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"in_channels": 30}, "in_channels is 30: a FLUX-style transformer has patch_size 1"),
        ({"patch_size": 2}, "in_channels is 64: a FLUX-style transformer has patch_size 1"),
        ({"axes_dims_rope": [16, 16, 16]}, "must be three even numbers that add up to attention_head_dim 64"),
    ],
)
def test_flux_shapes_that_cannot_be(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_transformer_config({**MINIFLUX, **change})
