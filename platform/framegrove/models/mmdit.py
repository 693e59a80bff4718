"""The MM-DiT of SD3 as one packed forward (PFM section 3.4, appendix B), state-dict names as in public checkpoints."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from framegrove.config.model import TransformerConfig
from framegrove.models.packed import ClipBlock, Packed, Sample, pack

_NORM_EPS = 1e-6  # every LayerNorm
_QK_EPS = 1e-5  # RMS norm of queries and keys, as released
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
        text = self.context_embedder(packed.text_LD)
        visual = self.pos_embed(packed)
        owners = torch.cat([block.owners_N.repeat_interleave(block.tokens_per_clip) for block in packed.blocks])
        rope = self._rope(packed, text.shape[0])
        for block in self.transformer_blocks:
            text, visual = block(text, visual, condition_SD, packed, owners, rope)
        current = visual[packed.current_start :]
        scale, shift = self.norm_out(condition_SD)[owners[packed.current_start :]].chunk(2, dim=-1)
        current = _norm(current) * (1 + scale) + shift
        return packed.unpatchify(self.proj_out(current))

    def _rope(self, packed: Packed, text_tokens: int) -> Tensor | None:
        """Rotations of the joint stream, complex (tokens, 1, 1, head size / 2); text stands at time 0."""
        if not self.config.add_temp_pos_embed:
            return None
        size = self.config.attention_head_dim
        times = torch.cat([packed.times_L.new_zeros(text_tokens), packed.times_L]).double()
        omega = _ROPE_THETA ** -(torch.arange(0, size, 2, dtype=torch.float64, device=times.device) / size)
        angle = times[:, None] * omega
        return torch.complex(angle.cos().float(), angle.sin().float())[:, None, None]


def fresh_mmdit(config: TransformerConfig, seed: int = 0) -> MMDiT:
    """An untrained MM-DiT: every block starts as the identity and the output at zero (adaLN-zero), seeded."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MMDiT(config)
        for module in model.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(model.pos_embed.proj.weight.flatten(1))
        nn.init.zeros_(model.pos_embed.proj.bias)
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
        tokens = F.linear(packed.patches_LP.to(self.proj.weight.dtype), self.proj.weight.flatten(1), self.proj.bias)
        positions = [self._positions(block) for block in packed.blocks]
        return tokens + torch.cat(positions)

    def _positions(self, block: ClipBlock) -> Tensor:
        """(tokens of the block, width); history lies on the current clip's grid, interpolated down to its own size."""
        height, width = block.height, block.width
        grid = block.base if self.interpolate else (height, width)
        if max(grid) > self.size:
            raise ValueError(
                f"a clip of {grid[0]} x {grid[1]} tokens is beyond this model's position table of {self.size} x "
                f"{self.size}: choose a smaller video size"
            )
        top, left = (self.size - grid[0]) // 2, (self.size - grid[1]) // 2
        table = self.pos_embed.view(self.size, self.size, -1)[top : top + grid[0], left : left + grid[1]]
        if grid != (height, width):
            table = F.interpolate(table.permute(2, 0, 1)[None], size=(height, width), mode="bilinear")[0].permute(
                1, 2, 0
            )
        return table.reshape(1, height * width, -1).expand(block.count * block.units, -1, -1).flatten(0, 1)


class TimeTextEmbedding(nn.Module):
    """Timestep (0 to 1000, kept in float32) and pooled text to one condition vector per sequence."""

    def __init__(self, width: int, pooled: int) -> None:
        super().__init__()
        self.timestep_embedder = TwoLayers(256, width)
        self.text_embedder = TwoLayers(pooled, width)

    def forward(self, timesteps_S: Tensor, pooled_SP: Tensor) -> Tensor:
        half = torch.arange(128, dtype=torch.float32, device=timesteps_S.device)
        angle = timesteps_S.float()[:, None] * torch.exp(-math.log(10000.0) * half / 128)
        waves = torch.cat([angle.cos(), angle.sin()], dim=-1).to(pooled_SP.dtype)
        return self.timestep_embedder(waves) + self.text_embedder(pooled_SP)


class TwoLayers(nn.Module):
    """linear, SiLU, linear."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(inputs, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(x)))


class Modulation(nn.Module):
    """``parts`` vectors of shift, scale or gate per sequence, from the (already activated) condition."""

    def __init__(self, width: int, parts: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, parts * width)

    def forward(self, condition_SD: Tensor) -> Tensor:
        return self.linear(condition_SD)


class Block(nn.Module):
    """Joint attention of two streams with their own weights; the last block has no text output."""

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
        self, text: Tensor, visual: Tensor, condition_SD: Tensor, packed: Packed, owners: Tensor, rope: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        text_owners = packed.text_owners_L
        shift, scale, gate, shift2, scale2, gate2 = self.norm1(condition_SD)[owners].chunk(6, dim=-1)
        visual_in = _norm(visual) * (1 + scale) + shift
        if self.last:
            c_scale, c_shift = self.norm1_context(condition_SD)[text_owners].chunk(2, dim=-1)
        else:
            parts = self.norm1_context(condition_SD)[text_owners].chunk(6, dim=-1)
            c_shift, c_scale, c_gate, c_shift2, c_scale2, c_gate2 = parts
        text_in = _norm(text) * (1 + c_scale) + c_shift
        text_out, visual_out = self.attn(text_in, visual_in, packed, rope)
        visual = visual + gate * visual_out
        visual = visual + gate2 * self.ff(_norm(visual) * (1 + scale2) + shift2)
        if not self.last:
            text = text + c_gate * text_out
            text = text + c_gate2 * self.ff_context(_norm(text) * (1 + c_scale2) + c_shift2)
        return text, visual


class JointAttention(nn.Module):
    """Queries, keys and values of both streams, RMS-normed, rotated in time, attended block-causally."""

    def __init__(self, config: TransformerConfig, last: bool) -> None:
        super().__init__()
        width, head = config.width, config.attention_head_dim
        self.heads = config.num_attention_heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.add_q_proj, self.add_k_proj, self.add_v_proj = (nn.Linear(width, width) for _ in range(3))
        self.norm_q, self.norm_k = nn.RMSNorm(head, eps=_QK_EPS), nn.RMSNorm(head, eps=_QK_EPS)
        self.norm_add_q, self.norm_add_k = nn.RMSNorm(head, eps=_QK_EPS), nn.RMSNorm(head, eps=_QK_EPS)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])
        if not last:
            self.to_add_out = nn.Linear(width, width)
        self.last = last

    def forward(self, text: Tensor, visual: Tensor, packed: Packed, rope: Tensor | None) -> tuple[Tensor, Tensor]:
        text_qkv = self._project(text, self.add_q_proj, self.add_k_proj, self.add_v_proj)
        visual_qkv = self._project(visual, self.to_q, self.to_k, self.to_v)
        query_key = torch.cat(
            [
                torch.stack([self.norm_add_q(text_qkv[:, 0]), self.norm_add_k(text_qkv[:, 1])], dim=1),
                torch.stack([self.norm_q(visual_qkv[:, 0]), self.norm_k(visual_qkv[:, 1])], dim=1),
            ]
        )
        if rope is not None:
            pairs = torch.view_as_complex(query_key.float().unflatten(-1, (-1, 2)))
            query_key = torch.view_as_real(pairs * rope).flatten(-2).to(text_qkv.dtype)
        value = torch.cat([text_qkv[:, 2:], visual_qkv[:, 2:]])
        out = packed.attention(torch.cat([query_key, value], dim=1)).flatten(1)
        text_out, visual_out = out[: text.shape[0]], out[text.shape[0] :]
        return text_out if self.last else self.to_add_out(text_out), self.to_out[0](visual_out)

    def _project(self, x: Tensor, *layers: nn.Linear) -> Tensor:
        weight = torch.cat([layer.weight for layer in layers])
        bias = torch.cat([layer.bias for layer in layers])
        return F.linear(x, weight, bias).view(x.shape[0], 3, self.heads, -1)


class FeedForward(nn.Module):
    """linear to four times the width, tanh-GELU, linear back; names as diffusers has them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.ModuleList([_Projection(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width)])

    def forward(self, x: Tensor) -> Tensor:
        return self.net[2](F.gelu(self.net[0].proj(x), approximate="tanh"))


class _Projection(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.proj = nn.Linear(inputs, outputs)


def _norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=_NORM_EPS)


def _sincos_table(width: int, size: int, base_size: int) -> Tensor:
    """(1, size * size, width): sines and cosines of the column, then of the row, scaled to ``base_size``."""
    omega = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    # The released table divides in float32 before it goes on in float64.
    steps = (torch.arange(size, dtype=torch.float32) / (size / base_size)).double()
    waves = torch.cat([(steps[:, None] * omega).sin(), (steps[:, None] * omega).cos()], dim=-1)
    columns = waves[None, :].expand(size, size, -1)
    rows = waves[:, None].expand(size, size, -1)
    return torch.cat([columns, rows], dim=-1).reshape(1, size * size, width).float()
