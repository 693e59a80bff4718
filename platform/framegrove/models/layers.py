"""Layers shared by the MM-DiT and the FLUX-style transformer; state-dict names are those of public checkpoints."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from framegrove.models.fused import norm_rotate
from framegrove.models.modulation import Rows, gated_add, modulate
from framegrove.models.packed import Packed

_ROPE_THETA = 10000.0


@dataclass(frozen=True)
class AttentionSpec:
    """Sizes of an attention layer; released models differ in how they normalise queries and keys."""

    heads: int
    head_size: int
    norm_eps: float
    text_norm: str  # prefix of the state-dict names of the text's query and key norms

    @property
    def width(self) -> int:
        """Channels of a token."""
        return self.heads * self.head_size


def rotations(positions_N: Tensor, size: int) -> Tensor:
    """(N, size / 2) complex rotary embeddings of N positions, one for each pair of ``size`` head channels."""
    omega = _ROPE_THETA ** -(torch.arange(0, size, 2, dtype=torch.float64, device=positions_N.device) / size)
    angles = positions_N[:, None] * omega
    return torch.complex(angles.cos().float(), angles.sin().float())


class TimeTextEmbedding(nn.Module):
    """Turns timestep (0 to 1000, kept in float32) and pooled text into one condition vector per sequence."""

    def __init__(self, width: int, pooled: int) -> None:
        super().__init__()
        self.timestep_embedder = TwoLayers(256, width)
        self.text_embedder = TwoLayers(pooled, width)

    def forward(self, timesteps_S: Tensor, pooled_SP: Tensor) -> Tensor:
        exponents = -math.log(10000.0) * torch.arange(128, dtype=torch.float32, device=timesteps_S.device) / 128
        # Computed in float64 and rounded once: float32's exp errs in the last digit, differently on each processor, and
        # multiplied by a timestep of up to 1000 that error would exceed the rounding of all other layers.
        angle = timesteps_S.float()[:, None] * exponents.double().exp().float()
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
    """``parts`` vectors (shifts, scales, gates) for each row of a stream, from the activated condition vector."""

    def __init__(self, width: int, parts: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, parts * width)
        self.parts = parts

    def forward(self, condition_SD: Tensor, rows: Rows, dtype: torch.dtype) -> tuple[Tensor, ...]:
        vectors = self.linear(condition_SD).to(dtype)
        return vectors.index_select(0, rows.owners_N).chunk(self.parts, dim=-1)


class Block(nn.Module):
    """A transformer block: joint attention of two streams, each with its own weights.

    A ``last`` block computes current visual tokens only, since no later layer reads the text or the history.
    """

    def __init__(self, spec: AttentionSpec, last: bool = False) -> None:
        super().__init__()
        width = spec.width
        self.last = last
        self.norm1 = Modulation(width, 6)
        self.norm1_context = Modulation(width, 2 if last else 6)
        self.attn = JointAttention(spec, last)
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
            vectors = (gate, ff_shift, ff_scale, ff_gate)
            gate, ff_shift, ff_scale, ff_gate = (last_rows(x, len(rows.owners_N)) for x in vectors)
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


def last_rows(x: Tensor, count: int) -> Tensor:
    """The last ``count`` rows, which may be none."""
    return x[len(x) - count :]


def run_block(block: nn.Module, recompute: bool, *inputs: Any) -> Any:
    """Run a block; with ``recompute`` its activations are recomputed in the backward pass instead of kept."""
    if torch.is_grad_enabled() and not any(isinstance(x, Tensor) and x.requires_grad for x in inputs):
        # The first block of a model that is frozen up to here. Both a reentrant checkpoint and ZeRO 3 go by the inputs:
        # without this, the block's own weights would get no gradient from the one and be gone too early in the other.
        inputs = (inputs[0].detach().requires_grad_(), *inputs[1:])
    if recompute and torch.is_grad_enabled():
        # Reentrant, so that the forward pass runs without gradients; otherwise attention would keep its own graphs.
        return checkpoint(block, *inputs, use_reentrant=True)
    return block(*inputs)


def _residual(
    x: Tensor, attended: Tensor, gate: Tensor, shift: Tensor, scale: Tensor, ff_gate: Tensor, ff: nn.Module, rows: Rows
) -> Tensor:
    """Add the attention result and then the feed-forward result, each multiplied by its gate."""
    x = gated_add(x, attended, gate, rows)
    return gated_add(x, ff(modulate(x, shift, scale, rows)), ff_gate, rows)


class JointAttention(nn.Module):
    """Block-causal attention over both streams, with RMS-normed and rotated queries and keys."""

    def __init__(self, spec: AttentionSpec, last: bool) -> None:
        super().__init__()
        width, head = spec.width, spec.head_size
        self.spec, self.last = spec, last
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.add_q_proj, self.add_k_proj, self.add_v_proj = (nn.Linear(width, width) for _ in range(3))
        self.norm_q, self.norm_k = HeadNorm(head), HeadNorm(head)
        for name in ("q", "k"):
            self.add_module(f"{spec.text_norm}_{name}", HeadNorm(head))
        self.to_out = nn.ModuleList([nn.Linear(width, width)])
        if not last:
            self.to_add_out = nn.Linear(width, width)

    def forward(self, text: Tensor, visual: Tensor, packed: Packed, rotation: Tensor | None) -> tuple[Tensor, ...]:
        """The text and visual outputs; for a last block, the current tokens' output only."""
        text_qkv = projected(text, self.spec, self.add_q_proj, self.add_k_proj, self.add_v_proj)
        visual_qkv = projected(visual, self.spec, self.to_q, self.to_k, self.to_v)
        text_norms = torch.stack([getattr(self, f"{self.spec.text_norm}_{name}").weight for name in ("q", "k")])
        visual_norms = torch.stack([self.norm_q.weight, self.norm_k.weight])
        table = filled_table(text_qkv, visual_qkv, text_norms, visual_norms, packed, rotation, self.spec)
        if self.last:
            current = packed.attention(table, current_places(packed))
            return (self.to_out[0](current.flatten(1).to(text.dtype)),)
        attended = packed.attention(table).flatten(1).to(text.dtype)
        text_out, visual_out = attended.split([len(text), len(visual)])
        return self.to_add_out(text_out), self.to_out[0](visual_out)


def projected(x_LD: Tensor, spec: AttentionSpec, *layers: nn.Linear) -> Tensor:
    """(L, 3, heads, head size) queries, keys and values; one matrix product computes all three layers.

    Layers that carry an adapter (lora.py) show the weights of the layers in them; what the adapters give is added.
    """
    weight = torch.cat([layer.weight for layer in layers])
    bias = torch.cat([layer.bias for layer in layers])
    result = F.linear(x_LD, weight, bias)
    if any(hasattr(layer, "lora_A") for layer in layers):
        parts = zip(result.chunk(len(layers), dim=1), layers, strict=True)
        result = torch.cat([part + _adapted(layer, x_LD) for part, layer in parts], dim=1)
    return result.view(len(x_LD), 3, spec.heads, spec.head_size)


def _adapted(layer: Any, x_LD: Tensor) -> Tensor | int:
    """What peft's adapter on a layer adds to it: the scaled B A x of each; 0 where there is none."""
    if not hasattr(layer, "lora_A"):
        return 0
    return sum(
        layer.lora_B[name](layer.lora_A[name](layer.lora_dropout[name](x_LD))) * layer.scaling[name]
        for name in layer.lora_A
    )


def filled_table(
    text_qkv: Tensor,
    visual_qkv: Tensor,
    text_norms_2D: Tensor,
    visual_norms_2D: Tensor,
    packed: Packed,
    rotation: Tensor | None,
    spec: AttentionSpec,
) -> Tensor:
    """The attention plan's table, filled from both streams. Visual tokens are rotated; text is at position 0."""
    # On a CPU the backward pass of half-precision attention is slow, and its forward pass gains nothing.
    dtype = torch.float32 if text_qkv.device.type == "cpu" else text_qkv.dtype
    plan = packed.attention
    text_place, visual_place = plan.place_L.split([len(text_qkv), len(visual_qkv)])
    table = plan.empty_table(text_qkv, dtype)
    table = norm_rotate(text_qkv, text_norms_2D, None, table, text_place, spec.norm_eps)
    return norm_rotate(visual_qkv, visual_norms_2D, rotation, table, visual_place, spec.norm_eps)


def current_places(packed: Packed) -> Tensor:
    """Places of the current tokens in the attention plan's tables, in stream order."""
    return packed.attention.place_L[len(packed.text_LD) + packed.current_start :]


class HeadNorm(nn.Module):
    """The weight of an RMS norm over the head size; applied by `norm_rotate`."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))


class FeedForward(nn.Module):
    """linear to four times the width, tanh-GELU, linear back; named as in diffusers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.ModuleList([_Projection(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width)])

    def forward(self, x: Tensor) -> Tensor:
        into, _, back = self.net
        return back(gelu(into(x)))


class _Projection(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.proj = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


def gelu(x: Tensor) -> Tensor:
    """GELU in its tanh form, as released; in bfloat16 on a CPU in its exact form.

    There the exact form costs a third and differs by about the rounding of bfloat16.
    """
    exact = x.dtype is torch.bfloat16 and x.device.type == "cpu"
    return F.gelu(x, approximate="none" if exact else "tanh")
