"""The MM-DiT of SD3 as one packed forward (PFM section 3.4, appendix B), state-dict names as in public checkpoints."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from framegrove.config.model import TransformerConfig
from framegrove.models.layers import AttentionSpec, Block, Modulation, TimeTextEmbedding, rotations, run_block
from framegrove.models.modulation import modulate
from framegrove.models.packed import ClipBlock, Packed, Sample, pack
from framegrove.models.sequence_parallel import SequenceGroup, Share

_QK_EPS = 1e-5


class MMDiT(nn.Module):
    """Predicts velocities (released sign: start - end) for all samples of a packed batch in one forward."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config, self.recompute = config, False
        self.sequence_group: SequenceGroup | None = None
        width = config.width
        self.pos_embed = PatchEmbedding(config)
        self.time_text_embed = TimeTextEmbedding(width, config.pooled_projection_dim)
        self.context_embedder = nn.Linear(config.joint_attention_dim, width)
        spec = AttentionSpec(config.num_attention_heads, config.attention_head_dim, _QK_EPS, "norm_add")
        last = config.num_layers - 1
        self.transformer_blocks = nn.ModuleList(Block(spec, last=i == last) for i in range(config.num_layers))
        self.norm_out = Modulation(width, 2)
        self.proj_out = nn.Linear(width, config.patch_size**2 * config.in_channels)

    def pack(self, samples: Sequence[Sample]) -> Packed:
        """Pack samples the way this transformer reads them."""
        return pack(samples, self.config.patch_size, causal=self.config.use_temporal_causal)

    def forward(self, packed: Packed) -> list[Tensor]:
        """One (C, t, h, w) velocity per sample, in the order they were packed."""
        share = Share.of(packed, self.sequence_group)
        own = share.packed
        condition_SD = F.silu(self.time_text_embed(own.timesteps_S, own.pooled_SP))
        text = self.context_embedder(own.text_LD.to(self.context_embedder.weight.dtype))
        visual = share.of_visual(self.pos_embed(packed))
        text = text.to(visual.dtype)
        rotation = self._rotation(packed.times_L)
        if rotation is not None:
            rotation = share.of_visual(rotation)
        for block in self.transformer_blocks:
            text, visual = run_block(block, self.recompute, text, visual, condition_SD, own, rotation)
        scale, shift = self.norm_out(condition_SD, own.current_rows, visual.dtype)
        out = self.proj_out(modulate(visual, shift, scale, own.current_rows))
        return packed.unpatchify(share.gather(out))

    def _rotation(self, times_L: Tensor) -> Tensor | None:
        """Complex rotations of the visual tokens' head pairs; text stands at time 0 and is not turned."""
        if not self.config.add_temp_pos_embed:
            return None
        times = torch.arange(int(times_L.max()) + 1, device=times_L.device)
        return rotations(times, self.config.attention_head_dim)[times_L]


class PatchEmbedding(nn.Module):
    """Patches to tokens, plus a sinusoidal table cropped centrally at the current clip's size (PFM section 3.4)."""

    pos_embed: Tensor

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.size = config.pos_embed_max_size
        self.interpolate = config.interp_condition_pos
        self.proj = nn.Conv2d(config.in_channels, config.width, config.patch_size, config.patch_size)
        self.config = config
        self.register_buffer("pos_embed", torch.empty(1, self.size**2, config.width))
        self.fill_table()

    def fill_table(self) -> None:
        """Compute the table, which is also kept among the weights."""
        self.pos_embed.copy_(position_table(self.config))

    def forward(self, packed: Packed) -> Tensor:
        weight = self.proj.weight
        tokens = F.linear(packed.patches_LP.to(weight.dtype), weight.flatten(1), self.proj.bias).to(weight.dtype)
        parts = tokens.split([block.stop - block.start for block in packed.blocks])
        placed = [
            part.view(block.count * block.units, block.height * block.width, -1) + self._positions(block)
            for block, part in zip(packed.blocks, parts, strict=True)
        ]
        return torch.cat([part.flatten(0, 1) for part in placed])

    def _positions(self, block: ClipBlock) -> Tensor:
        """(tokens of a unit, width); history lies on the current clip's grid, interpolated down to its own size."""
        size = (block.height, block.width)
        grid = block.base if self.interpolate else size
        if max(grid) > self.size:
            raise ValueError(
                f"a clip of {grid[0]} x {grid[1]} tokens is beyond this model's position table of {self.size} x "
                f"{self.size}: choose a smaller video size"
            )
        top, left = (self.size - grid[0]) // 2, (self.size - grid[1]) // 2
        table = self.pos_embed.view(self.size, self.size, -1)[top : top + grid[0], left : left + grid[1]]
        if grid != size:
            table = F.interpolate(table.permute(2, 0, 1)[None], size=size, mode="bilinear")[0].permute(1, 2, 0)
        return table.flatten(0, 1)


def position_table(config: TransformerConfig) -> Tensor:
    """The sinusoidal table (1, places, width) of this shape, which is that of SD3."""
    return _sincos_table(config.width, config.pos_embed_max_size, config.sample_size // config.patch_size)


def _sincos_table(width: int, size: int, base_size: int) -> Tensor:
    """(1, size * size, width): sines and cosines of the column, then of the row, scaled to ``base_size``."""
    omega = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    # The released table divides in float32 before it goes on in float64.
    steps = (torch.arange(size, dtype=torch.float32) / (size / base_size)).double()
    waves = torch.cat([(steps[:, None] * omega).sin(), (steps[:, None] * omega).cos()], dim=-1)
    columns = waves[None, :].expand(size, size, -1)
    rows = waves[:, None].expand(size, size, -1)
    return torch.cat([columns, rows], dim=-1).reshape(1, size * size, width).float()
