"""Elementwise parts of the transformer that would otherwise read and write whole streams many times over.

Each is one autograd function with a hand-written gradient, run over slices of tokens that stay in a CPU's cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

QK_EPS = 1e-5  # RMS norm of queries and keys, as the MM-DiT was released
_SLICE = 128 * 1024  # elements of a slice


def norm_rotate(
    qkv_L3HD: Tensor, weight_2D: Tensor, rotation_LE: Tensor | None, table_M3HD: Tensor, place_L: Tensor
) -> Tensor:
    """RMS-norm queries and keys over the head size, weigh and turn them; write all three into ``table`` at ``place``.

    ``weight_2D`` holds one row for queries and one for keys. ``rotation_LE`` is complex, half the head size wide, and
    turns neighbouring pairs. Computed in float32. The table is written in place and given back: rows that no stream
    writes must be finite, and every row is written once at most.
    """
    result: Tensor = _NormRotate.apply(qkv_L3HD, weight_2D, rotation_LE, table_M3HD, place_L)
    return result


class _NormRotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, weight: Tensor, rotation: Tensor | None, table: Tensor, place: Tensor) -> Tensor:
        scale = weight.float()[:, None]
        keeps = torch.empty(len(qkv), 2, *qkv.shape[2:], dtype=torch.float32, device=qkv.device)
        spreads = []
        start = 0
        for part, at, normed in _slices(qkv, place, keeps):
            query_key = part[:, :2].float()
            spread = torch.linalg.vector_norm(query_key, dim=-1, keepdim=True)
            spread = spread.square_().div_(query_key.shape[-1]).add_(QK_EPS).rsqrt_()
            torch.mul(query_key, spread, out=normed)
            both = torch.cat([_turned(normed * scale, rotation, start), part[:, 2:]], dim=1)
            table.index_copy_(0, at, both.to(table.dtype))
            spreads.append(spread)
            start += len(part)
        ctx.mark_dirty(table)
        ctx.save_for_backward(keeps, weight, place, *spreads)
        ctx.rotation, ctx.dtype = rotation, qkv.dtype
        return table

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        keeps, weight, place, *spreads = ctx.saved_tensors
        rotation = None if ctx.rotation is None else ctx.rotation.conj().resolve_conj()
        grad_qkv = torch.empty(len(keeps), *grad.shape[1:], dtype=ctx.dtype, device=grad.device)
        grad_weight = torch.zeros_like(weight, dtype=torch.float32)
        scale = weight.float()[:, None]
        start = 0
        for at, normed, to, spread in zip(*_parts(place, keeps, grad_qkv, like=grad_qkv), spreads, strict=True):
            g = grad.index_select(0, at)
            turned = _turned(g[:, :2].float(), rotation, start)
            product = turned * normed
            grad_weight += product.sum((0, 2))
            along = torch.matmul(product, scale.view(2, -1, 1)).div_(normed.shape[-1])
            to[:, :2] = torch.addcmul(turned * scale, normed, along, value=-1).mul_(spread)
            to[:, 2] = g[:, 2]
            start += len(at)
        return grad_qkv, grad_weight.to(weight.dtype), None, grad, None


def _turned(x: Tensor, rotation: Tensor | None, start: int) -> Tensor:
    """Neighbouring pairs of the last axis times the tokens' complex rotations."""
    if rotation is None:
        return x
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotation[start : start + x.shape[0], None, None]).flatten(-2)


def _step(like: Tensor) -> int:
    """Rows of a slice."""
    if like.device.type != "cpu":
        return max(len(like), 1)
    return max(_SLICE * len(like) // max(like.numel(), 1), 1)


def _parts(*tensors: Tensor, like: Tensor) -> list[tuple[Tensor, ...]]:
    step = _step(like)
    return [tensor.split(step) for tensor in tensors]


def _slices(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    return zip(*_parts(*tensors, like=tensors[0]), strict=True)
