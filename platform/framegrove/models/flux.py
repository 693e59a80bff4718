"""The FLUX-style transformer of the public miniFLUX checkpoints as one packed forward (PFM appendix B).

What it does not share with the MM-DiT: patches enter by a linear layer, positions are rotations alone, over time, row
and column, and behind the blocks of two streams stand blocks of a single one, text and visual tokens together.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from framegrove.config.model import FluxConfig
from framegrove.models.layers import (
    AttentionSpec,
    Block,
    HeadNorm,
    Modulation,
    TimeTextEmbedding,
    current_places,
    filled_table,
    gelu,
    last_rows,
    projected,
    rotations,
    run_block,
)
from framegrove.models.modulation import Rows, gated_add, modulate
from framegrove.models.packed import Packed, Sample, pack
from framegrove.models.sequence_parallel import SequenceGroup, Share

_QK_EPS = 1e-6


class Flux(nn.Module):
    """Predicts velocities (released sign: start - end) for all samples of a packed batch in one forward."""

    def __init__(self, config: FluxConfig) -> None:
        super().__init__()
        self.config, self.recompute = config, False
        self.sequence_group: SequenceGroup | None = None
        width, channels = config.width, config.patch_size**2 * config.in_channels
        self.time_text_embed = TimeTextEmbedding(width, config.pooled_projection_dim)
        self.context_embedder = nn.Linear(config.joint_attention_dim, width)
        self.x_embedder = nn.Linear(channels, width)
        spec = AttentionSpec(config.num_attention_heads, config.attention_head_dim, _QK_EPS, "norm_added")
        self.transformer_blocks = nn.ModuleList(Block(spec) for _ in range(config.num_layers))
        last = config.num_single_layers - 1
        self.single_transformer_blocks = nn.ModuleList(SingleBlock(spec, last=i == last) for i in range(last + 1))
        self.norm_out = Modulation(width, 2)
        self.proj_out = nn.Linear(width, channels)

    def pack(self, samples: Sequence[Sample]) -> Packed:
        """Pack samples the way this transformer reads them."""
        return pack(samples, self.config.patch_size, causal=self.config.use_temporal_causal)

    def forward(self, packed: Packed) -> list[Tensor]:
        """One (C, t, h, w) velocity per sample, in the order they were packed."""
        share = Share.of(packed, self.sequence_group)
        own = share.packed
        condition_SD = F.silu(self.time_text_embed(own.timesteps_S, own.pooled_SP))
        dtype = self.x_embedder.weight.dtype
        text = self.context_embedder(own.text_LD.to(dtype))
        visual = self.x_embedder(self._patches(own).to(dtype)).to(dtype)
        text = text.to(dtype)
        rotation = share.of_visual(self._rotation(packed))
        for block in self.transformer_blocks:
            text, visual = run_block(block, self.recompute, text, visual, condition_SD, own, rotation)
        joint = torch.cat([text, visual])
        rows = own.text_rows.followed_by(own.visual_rows)
        for block in self.single_transformer_blocks:
            joint = run_block(block, self.recompute, joint, condition_SD, rows, own, rotation)
        scale, shift = self.norm_out(condition_SD, own.current_rows, joint.dtype)
        out = self.proj_out(modulate(joint, shift, scale, own.current_rows))
        return packed.unpatchify(share.gather(out))

    def _patches(self, packed: Packed) -> Tensor:
        """Patches with their channels innermost, as this model reads them."""
        return packed.patches_LP.unflatten(1, (self.config.in_channels, -1)).transpose(1, 2).flatten(1)

    def _rotation(self, packed: Packed) -> Tensor:
        """Complex rotations of the visual tokens' head pairs; text stands at position 0 and is not turned.

        Rows and columns are counted from 0 on the current clip's grid; history lies on it, interpolated down.
        """
        in_time, in_row, in_column = self.config.axes_dims_rope
        device = packed.times_L.device
        parts = []
        for block in packed.blocks:
            times = packed.times_L[block.start : block.stop].view(block.count * block.units, -1)[:, :1]
            sizes = (block.height, block.width)
            rows, columns = (_positions(*pair, device) for pair in zip(block.base, sizes, strict=True))
            axes = (
                rotations(times.flatten(), in_time)[:, None, None].expand(-1, *sizes, -1),
                rotations(rows, in_row)[None, :, None].expand(len(times), -1, sizes[1], -1),
                rotations(columns, in_column)[None, None].expand(len(times), sizes[0], -1, -1),
            )
            parts.append(torch.cat(axes, dim=-1).flatten(0, 2))
        return torch.cat(parts)


class SingleBlock(nn.Module):
    """Attention and feed-forward side by side over one stream; the ``last`` one gives back current tokens alone."""

    def __init__(self, spec: AttentionSpec, last: bool) -> None:
        super().__init__()
        width = spec.width
        self.spec, self.last = spec, last
        self.norm = Modulation(width, 3)
        self.attn = _SelfAttention(spec)
        self.proj_mlp = nn.Linear(width, 4 * width)
        self.proj_out = nn.Linear(width + 4 * width, width)

    def forward(self, joint: Tensor, condition_SD: Tensor, rows: Rows, packed: Packed, rotation: Tensor) -> Tensor:
        shift, scale, gate = self.norm(condition_SD, rows, joint.dtype)
        normed = modulate(joint, shift, scale, rows)
        table = self.attn(normed, packed, rotation)
        if self.last:
            rows = packed.current_rows
            attended = packed.attention(table, current_places(packed))
            joint, normed = (last_rows(x, len(attended)) for x in (joint, normed))
            gate = last_rows(gate, len(rows.owners_N))
        else:
            attended = packed.attention(table)
        inner = torch.cat([attended.flatten(1).to(normed.dtype), gelu(self.proj_mlp(normed))], dim=-1)
        return gated_add(joint, self.proj_out(inner), gate, rows)


class _SelfAttention(nn.Module):
    """Queries, keys and values of a single stream, with the same weights for text and visual tokens."""

    def __init__(self, spec: AttentionSpec) -> None:
        super().__init__()
        self.spec = spec
        self.to_q, self.to_k, self.to_v = (nn.Linear(spec.width, spec.width) for _ in range(3))
        self.norm_q, self.norm_k = HeadNorm(spec.head_size), HeadNorm(spec.head_size)

    def forward(self, joint: Tensor, packed: Packed, rotation: Tensor) -> Tensor:
        qkv = projected(joint, self.spec, self.to_q, self.to_k, self.to_v)
        text_qkv, visual_qkv = qkv.split([len(packed.text_LD), len(packed.patches_LP)])
        norms = torch.stack([self.norm_q.weight, self.norm_k.weight])
        return filled_table(text_qkv, visual_qkv, norms, norms, packed, rotation, self.spec)


def _positions(base: int, size: int, device: torch.device) -> Tensor:
    """Places of ``size`` tokens on a grid of ``base``."""
    grid = torch.arange(base, dtype=torch.float32, device=device)
    return grid if size == base else F.interpolate(grid[None, None], size, mode="linear")[0, 0]
