"""The MM-DiT of SD3 as one packed forward (PFM section 3.4, appendix B), state-dict names as in public checkpoints."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from framegrove.config.model import TransformerConfig
from framegrove.models.fused import norm_rotate
from framegrove.models.modulation import Rows, gated_add, modulate
from framegrove.models.packed import ClipBlock, Packed, Sample, pack

_ROPE_THETA = 10000.0


class MMDiT(nn.Module):
    """Predicts velocities (released sign: start - end) for all samples of a packed batch in one forward."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.pos_embed = PatchEmbedding(config)
        self.time_text_embed = TimeTextEmbedding(width, config.pooled_projection_dim)
        self.context_embedder = nn.Linear(config.joint_attention_dim, width)
        last = config.num_layers - 1
        self.transformer_blocks = nn.ModuleList(Block(config, last=i == last) for i in range(config.num_layers))
        self.norm_out = Modulation(width, 2)
        self.proj_out = nn.Linear(width, config.patch_size**2 * config.in_channels)

    def pack(self, samples: Sequence[Sample]) -> Packed:
        """Pack samples the way this transformer reads them."""
        return pack(samples, self.config.patch_size, causal=self.config.use_temporal_causal)

    def forward(self, packed: Packed) -> list[Tensor]:
        """One (C, t, h, w) velocity per sample, in the order they were packed."""
        condition_SD = F.silu(self.time_text_embed(packed.timesteps_S, packed.pooled_SP))
        text = self.context_embedder(packed.text_LD.to(self.context_embedder.weight.dtype))
        visual = self.pos_embed(packed)
        text = text.to(visual.dtype)
        rotation = self._rotation(packed.times_L)
        for block in self.transformer_blocks:
            text, visual = block(text, visual, condition_SD, packed, rotation)
        scale, shift = self.norm_out(condition_SD, packed.current_rows, visual.dtype)
        out = modulate(visual, shift, scale, packed.current_rows)
        return packed.unpatchify(self.proj_out(out))

    def _rotation(self, times_L: Tensor) -> Tensor | None:
        """Complex rotations of the visual tokens' head pairs; text stands at time 0 and is not turned."""
        if not self.config.add_temp_pos_embed:
            return None
        size = self.config.attention_head_dim
        omega = _ROPE_THETA ** -(torch.arange(0, size, 2, dtype=torch.float64, device=times_L.device) / size)
        angle = torch.arange(int(times_L.max()) + 1, device=times_L.device)[:, None] * omega
        return torch.complex(angle.cos().float(), angle.sin().float())[times_L]


def fresh_mmdit(config: TransformerConfig, seed: int = 0) -> MMDiT:
    """An untrained MM-DiT: every block starts as the identity and the output at zero (adaLN-zero), seeded."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MMDiT(config)
        for module in model.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        patches = model.pos_embed.proj
        assert patches.bias is not None
        nn.init.xavier_uniform_(patches.weight.flatten(1))
        nn.init.zeros_(patches.bias)
        for embedder in (model.time_text_embed.timestep_embedder, model.time_text_embed.text_embedder):
            for layer in (embedder.linear_1, embedder.linear_2):
                nn.init.normal_(layer.weight, std=0.02)
        zeroed = [m.linear for m in model.modules() if isinstance(m, Modulation)]
        for layer in [*zeroed, model.proj_out]:
            nn.init.zeros_(layer.weight)
    return model


class PatchEmbedding(nn.Module):
    """Patches to tokens, plus a sinusoidal table cropped centrally at the current clip's size (PFM section 3.4)."""

    pos_embed: Tensor

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.size = config.pos_embed_max_size
        self.interpolate = config.interp_condition_pos
        self.proj = nn.Conv2d(config.in_channels, config.width, config.patch_size, config.patch_size)
        table = _sincos_table(config.width, self.size, config.sample_size // config.patch_size)
        self.register_buffer("pos_embed", table)

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


class TimeTextEmbedding(nn.Module):
    """Timestep (0 to 1000, kept in float32) and pooled text to one condition vector per sequence."""

    def __init__(self, width: int, pooled: int) -> None:
        super().__init__()
        self.timestep_embedder = TwoLayers(256, width)
        self.text_embedder = TwoLayers(pooled, width)

    def forward(self, timesteps_S: Tensor, pooled_SP: Tensor) -> Tensor:
        half = torch.arange(128, dtype=torch.float32, device=timesteps_S.device)
        angle = timesteps_S.float()[:, None] * torch.exp(-math.log(10000.0) * half / 128)
        waves = torch.cat([angle.cos(), angle.sin()], dim=-1)
        dtype = self.text_embedder.linear_1.weight.dtype
        return self.timestep_embedder(waves.to(dtype)) + self.text_embedder(pooled_SP.to(dtype))


class TwoLayers(nn.Module):
    """linear, SiLU, linear."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(inputs, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(x)))


class Modulation(nn.Module):
    """``parts`` vectors of shift, scale or gate for each row of a stream, from the (activated) condition."""

    def __init__(self, width: int, parts: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, parts * width)
        self.parts = parts

    def forward(self, condition_SD: Tensor, rows: Rows, dtype: torch.dtype) -> tuple[Tensor, ...]:
        vectors = self.linear(condition_SD).to(dtype)
        return vectors.index_select(0, rows.owners_N).chunk(self.parts, dim=-1)


class Block(nn.Module):
    """Joint attention of two streams with their own weights.

    The last block gives back no text, and of the visual tokens the current ones alone: nothing reads the others.
    """

    def __init__(self, config: TransformerConfig, last: bool) -> None:
        super().__init__()
        width = config.width
        self.last = last
        self.norm1 = Modulation(width, 6)
        self.norm1_context = Modulation(width, 2 if last else 6)
        self.attn = JointAttention(config, last)
        self.ff = FeedForward(width)
        if not last:
            self.ff_context = FeedForward(width)

    def forward(
        self, text: Tensor, visual: Tensor, condition_SD: Tensor, packed: Packed, rotation: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        rows = packed.visual_rows
        shift, scale, gate, ff_shift, ff_scale, ff_gate = self.norm1(condition_SD, rows, visual.dtype)
        visual_in = modulate(visual, shift, scale, rows)
        if self.last:
            text_in = self._last_text(text, condition_SD, packed.text_rows)
            (attended,) = self.attn(text_in, visual_in, packed, rotation)
            rows = packed.current_rows
            visual = visual[packed.current_start :]
            gate, ff_shift, ff_scale, ff_gate = (x[-len(rows.owners_N) :] for x in (gate, ff_shift, ff_scale, ff_gate))
        else:
            vectors = self.norm1_context(condition_SD, packed.text_rows, text.dtype)
            text_in = modulate(text, vectors[0], vectors[1], packed.text_rows)
            text_attended, attended = self.attn(text_in, visual_in, packed, rotation)
            c_gate, c_shift, c_scale, c_ff_gate = vectors[2:]
            text = _residual(
                text, text_attended, c_gate, c_shift, c_scale, c_ff_gate, self.ff_context, packed.text_rows
            )
        return text, _residual(visual, attended, gate, ff_shift, ff_scale, ff_gate, self.ff, rows)

    def _last_text(self, text: Tensor, condition_SD: Tensor, rows: Rows) -> Tensor:
        scale, shift = self.norm1_context(condition_SD, rows, text.dtype)
        return modulate(text, shift, scale, rows)


def _residual(
    x: Tensor, attended: Tensor, gate: Tensor, shift: Tensor, scale: Tensor, ff_gate: Tensor, ff: nn.Module, rows: Rows
) -> Tensor:
    """Add what attention found, then what the feed-forward makes of it, each through its gate."""
    x = gated_add(x, attended, gate, rows)
    return gated_add(x, ff(modulate(x, shift, scale, rows)), ff_gate, rows)


class JointAttention(nn.Module):
    """Queries, keys and values of both streams, RMS-normed, rotated in time, attended block-causally."""

    def __init__(self, config: TransformerConfig, last: bool) -> None:
        super().__init__()
        width, head = config.width, config.attention_head_dim
        self.heads = config.num_attention_heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.add_q_proj, self.add_k_proj, self.add_v_proj = (nn.Linear(width, width) for _ in range(3))
        self.norm_q, self.norm_k = HeadNorm(head), HeadNorm(head)
        self.norm_add_q, self.norm_add_k = HeadNorm(head), HeadNorm(head)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])
        if not last:
            self.to_add_out = nn.Linear(width, width)
        self.last = last

    def forward(self, text: Tensor, visual: Tensor, packed: Packed, rotation: Tensor | None) -> tuple[Tensor, ...]:
        """Text and visual outputs; the last block's: those of the current tokens alone."""
        text_qkv = self._projected(text, self.add_q_proj, self.add_k_proj, self.add_v_proj)
        visual_qkv = self._projected(visual, self.to_q, self.to_k, self.to_v)
        # Half-precision attention is slow backwards on a CPU, and no faster forwards for short sequences.
        dtype = torch.float32 if text.device.type == "cpu" else text_qkv.dtype
        plan = packed.attention
        text_place, visual_place = plan.place_L.split([len(text), len(visual)])
        table = plan.empty_table(text_qkv, dtype)
        table = norm_rotate(text_qkv, _stacked(self.norm_add_q, self.norm_add_k), None, table, text_place)
        table = norm_rotate(visual_qkv, _stacked(self.norm_q, self.norm_k), rotation, table, visual_place)
        if self.last:
            current = plan(table, visual_place[packed.current_start :])
            return (self.to_out[0](current.flatten(1).to(text.dtype)),)
        text_out, visual_out = plan(table).flatten(1).to(text.dtype).split([len(text), len(visual)])
        return self.to_add_out(text_out), self.to_out[0](visual_out)

    def _projected(self, x: Tensor, *layers: nn.Linear) -> Tensor:
        weight = torch.cat([layer.weight for layer in layers])
        bias = torch.cat([layer.bias for layer in layers])
        return F.linear(x, weight, bias).view(len(x), 3, self.heads, -1)


class HeadNorm(nn.Module):
    """The weight of an RMS norm over the head size; applied by `norm_rotate`."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))


def _stacked(query: HeadNorm, key: HeadNorm) -> Tensor:
    return torch.stack([query.weight, key.weight])


class FeedForward(nn.Module):
    """linear to four times the width, tanh-GELU, linear back; names as diffusers has them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.ModuleList([_Projection(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width)])

    def forward(self, x: Tensor) -> Tensor:
        into, _, back = self.net
        return back(_gelu(into(x)))


class _Projection(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.proj = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


def _gelu(x: Tensor) -> Tensor:
    """The tanh form, as released; on a CPU in bfloat16 the exact form, which differs by about what bfloat16 rounds off
    and costs a third.
    """
    exact = x.dtype is torch.bfloat16 and x.device.type == "cpu"
    return F.gelu(x, approximate="none" if exact else "tanh")


def _sincos_table(width: int, size: int, base_size: int) -> Tensor:
    """(1, size * size, width): sines and cosines of the column, then of the row, scaled to ``base_size``."""
    omega = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    # The released table divides in float32 before it goes on in float64.
    steps = (torch.arange(size, dtype=torch.float32) / (size / base_size)).double()
    waves = torch.cat([(steps[:, None] * omega).sin(), (steps[:, None] * omega).cos()], dim=-1)
    columns = waves[None, :].expand(size, size, -1)
    rows = waves[:, None].expand(size, size, -1)
    return torch.cat([columns, rows], dim=-1).reshape(1, size * size, width).float()
