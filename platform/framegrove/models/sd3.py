"""SD3 Medium's transformer under our names, from which the published training starts (PFM section 3.4, appendix B).

Two layouts are read: the folder in which diffusers keeps it (transformer/, class SD3Transformer2DModel), and the single
file of its authors, where names begin with ``model.diffusion_model.``, queries, keys and values of a stream are one
matrix, and the last two modulations hold the shift before the scale. Names as in diffusers' transformer_sd3.py and
convert_sd3_to_diffusers.py.

What SD3 does not have and ours needs are the RMS norms of queries and keys, which start at 1. Time is a rotation and
has no weights. SD3's position table is left aside: ours is the same one, not rounded to half precision.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from framegrove.config.base import describe
from framegrove.config.model import TransformerConfig
from framegrove.errors import UserError
from framegrove.models.files import CONFIG_FILE, read_json, read_weights
from framegrove.models.mmdit import MMDiT, position_table

FOLDER = "transformer"
_CLASS = "SD3Transformer2DModel"
_PREFIX = "model.diffusion_model."
_TABLE = "pos_embed.pos_embed"
_TABLE_ERROR = 2e-3  # of a table that was rounded to bfloat16
_NORMS = re.compile(r"transformer_blocks\.\d+\.attn\.(norm_q|norm_k|norm_add_q|norm_add_k)\.weight")
_HEAD = "time_text_embed"

# Keys of a single file that are no part of the transformer, and why they are not read.
UNUSED = {
    "first_stage_model.": "a VAE of images",
    "text_encoders.": "text encoders come from a folder, with their tokenizers",
}
# Keys of diffusers' config.json that must be as in SD3 Medium, where they are given: later models have more layers.
_ONLY: dict[str, tuple[Any, ...]] = {"qk_norm": (None,), "dual_attention_layers": (None, [])}

# Our module, and the module of a single file that it is, or is a third of. {} is the number of the block.
_SINGLE = {
    "pos_embed.proj": "x_embedder.proj",
    f"{_HEAD}.timestep_embedder.linear_1": "t_embedder.mlp.0",
    f"{_HEAD}.timestep_embedder.linear_2": "t_embedder.mlp.2",
    f"{_HEAD}.text_embedder.linear_1": "y_embedder.mlp.0",
    f"{_HEAD}.text_embedder.linear_2": "y_embedder.mlp.2",
    "context_embedder": "context_embedder",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
    "transformer_blocks.{}.norm1.linear": "joint_blocks.{}.x_block.adaLN_modulation.1",
    "transformer_blocks.{}.norm1_context.linear": "joint_blocks.{}.context_block.adaLN_modulation.1",
    "transformer_blocks.{}.attn.to_q": "joint_blocks.{}.x_block.attn.qkv",
    "transformer_blocks.{}.attn.to_k": "joint_blocks.{}.x_block.attn.qkv",
    "transformer_blocks.{}.attn.to_v": "joint_blocks.{}.x_block.attn.qkv",
    "transformer_blocks.{}.attn.add_q_proj": "joint_blocks.{}.context_block.attn.qkv",
    "transformer_blocks.{}.attn.add_k_proj": "joint_blocks.{}.context_block.attn.qkv",
    "transformer_blocks.{}.attn.add_v_proj": "joint_blocks.{}.context_block.attn.qkv",
    "transformer_blocks.{}.attn.to_out.0": "joint_blocks.{}.x_block.attn.proj",
    "transformer_blocks.{}.attn.to_add_out": "joint_blocks.{}.context_block.attn.proj",
    "transformer_blocks.{}.ff.net.0.proj": "joint_blocks.{}.x_block.mlp.fc1",
    "transformer_blocks.{}.ff.net.2": "joint_blocks.{}.x_block.mlp.fc2",
    "transformer_blocks.{}.ff_context.net.0.proj": "joint_blocks.{}.context_block.mlp.fc1",
    "transformer_blocks.{}.ff_context.net.2": "joint_blocks.{}.context_block.mlp.fc2",
}
_THIRDS = {"to_q": 0, "to_k": 1, "to_v": 2, "add_q_proj": 0, "add_k_proj": 1, "add_v_proj": 2}


@dataclass(frozen=True)
class Piece:
    """What of a source's tensor becomes one of ours: one of ``parts`` equal parts, or both halves exchanged."""

    key: str
    part: int = 0
    parts: int = 1
    halves_exchanged: bool = False

    def of(self, weights: Mapping[str, Tensor]) -> Tensor:
        """Cut it out."""
        piece = weights[self.key].chunk(self.parts)[self.part]
        return torch.cat(piece.chunk(2)[::-1]) if self.halves_exchanged else piece


def is_transformer(path: Path) -> bool:
    """Whether SD3's transformer is here: the folder of diffusers, or a single file of safetensors."""
    if path.is_file():
        return path.suffix == ".safetensors"
    config = path / CONFIG_FILE
    return config.is_file() and read_json(config).get("_class_name") == _CLASS


def load_config(path: Path) -> TransformerConfig:
    """The shape of our transformer for SD3's at ``path``. Raises UserError for what is not SD3 Medium's kind."""
    if path.is_dir():
        return _folder_config(path / CONFIG_FILE)
    with _opened(path) as file:
        shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118 - it is no dict
    return _file_config(path, {key.removeprefix(_PREFIX): shape for key, shape in shapes.items()})


def load_weights(path: Path, config: TransformerConfig, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """The state dict of our transformer, filled from SD3's at ``path``. Raises UserError for keys that do not fit."""
    if path.is_dir():
        return converted(read_weights(path, dtype), config, dtype, str(path), single=False)
    with _opened(path) as file:
        keys = [key for key in file.keys() if not key.startswith(tuple(UNUSED))]  # noqa: SIM118
        weights = {key.removeprefix(_PREFIX): file.get_tensor(key).to(dtype) for key in keys}
    return converted(weights, config, dtype, str(path), single=True)


def pieces(config: TransformerConfig, single: bool) -> dict[str, Piece]:
    """For each of our parameters the piece of SD3 that it is; those that are not here are new."""
    with torch.device("meta"):
        names = [name for name, _ in MMDiT(config).named_parameters()]
    return {name: _in_file(name, config) if single else Piece(name) for name in names if not _NORMS.fullmatch(name)}


def converted(
    weights: Mapping[str, Tensor], config: TransformerConfig, dtype: torch.dtype, where: str, *, single: bool
) -> dict[str, Tensor]:
    """SD3's weights as a state dict of ours; every key is used, once, but for the position table, which is compared.

    Raises UserError naming keys that are missing, too many or of another shape.
    """
    table = "pos_embed" if single else _TABLE
    wanted = pieces(config, single)
    needed = {piece.key for piece in wanted.values()} | {table}
    missing, unexpected = sorted(needed - weights.keys()), sorted(weights.keys() - needed)
    if missing or unexpected:
        raise UserError(
            f"{where} is not SD3 Medium: {len(missing)} keys are missing ({', '.join(missing[:3]) or 'none'}), "
            f"{len(unexpected)} are unknown ({', '.join(unexpected[:3]) or 'none'})"
        )
    with torch.device("meta"):
        own = MMDiT(config).state_dict()
    own_table = position_table(config)
    if not torch.allclose(own_table.flatten(), weights[table].float().flatten(), rtol=0, atol=_TABLE_ERROR):
        raise UserError(f"{where} is not SD3 Medium: its position table ({table}) is another one")
    state = {name: piece.of(weights).contiguous() for name, piece in wanted.items()}
    for name, tensor in state.items():
        if tensor.shape != own[name].shape:
            raise UserError(
                f"{where}: {wanted[name].key} gives {tuple(tensor.shape)} for {name}, which is {tuple(own[name].shape)}"
            )
    new = {name: torch.ones(tensor.shape, dtype=dtype) for name, tensor in own.items() if _NORMS.fullmatch(name)}
    return {**state, **new, _TABLE: own_table.to(dtype)}


def _in_file(name: str, config: TransformerConfig) -> Piece:
    """The piece of a single file that our parameter ``name`` is."""
    module, _, kind = name.rpartition(".")
    number = re.search(r"\.(\d+)\.", module) if module.startswith("transformer_blocks.") else None
    block = number[1] if number else ""
    general = module.replace(f"transformer_blocks.{block}.", "transformer_blocks.{}.", 1)
    key = f"{_SINGLE[general].format(block)}.{kind}"
    layer = module.rpartition(".")[2]
    if layer in _THIRDS:
        return Piece(key, _THIRDS[layer], 3)
    last = f"transformer_blocks.{config.num_layers - 1}.norm1_context.linear"
    return Piece(key, halves_exchanged=module in (last, "norm_out.linear"))


def _folder_config(path: Path) -> TransformerConfig:
    given = {key: value for key, value in read_json(path).items() if not key.startswith("_")}
    for key, allowed in _ONLY.items():
        if given.pop(key, None) not in allowed:
            raise UserError(f"{path}: {key} is set, as in later models: only SD3 Medium can be started from")
    if given.pop("out_channels", None) not in (None, given.get("in_channels", 16)):
        raise UserError(f"{path}: out_channels must equal in_channels")
    try:
        return TransformerConfig.model_validate(given)
    except ValidationError as error:
        raise UserError(f"{path}: {describe(error, TransformerConfig)}") from None


def _file_config(path: Path, shapes: Mapping[str, list[int]]) -> TransformerConfig:
    """The shape, read off the tensors; SD3 has as many heads as blocks, and 128 x 128 latents."""
    blocks = {int(key.split(".")[1]) for key in shapes if key.startswith("joint_blocks.")}
    try:
        width, text = shapes["context_embedder.weight"]
        _, channels, patch, _ = shapes["x_embedder.proj.weight"]
        return TransformerConfig(
            patch_size=patch,
            in_channels=channels,
            num_layers=len(blocks),
            num_attention_heads=len(blocks),
            attention_head_dim=width // max(1, len(blocks)),
            caption_projection_dim=width,
            joint_attention_dim=text,
            pooled_projection_dim=shapes["y_embedder.mlp.0.weight"][1],
            pos_embed_max_size=round(shapes["pos_embed"][1] ** 0.5),
        )
    except (KeyError, ValueError) as error:
        reason = describe(error) if isinstance(error, ValidationError) else str(error)
        raise UserError(f"{path} is neither SD3 Medium's file nor a model folder ({reason})") from None


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, "pt")
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read as safetensors ({error}): download it again") from None
