"""Elementwise parts of the transformer that would otherwise read and write whole streams many times over.

Each is one autograd function with a hand-written gradient, run over slices of tokens that stay in a CPU's cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_SLICE = 128 * 1024  # elements of a slice


def norm_rotate(
    qkv_L3HD: Tensor, weight_2D: Tensor, rotation_LE: Tensor | None, table_M3HD: Tensor, place_L: Tensor, eps: float
) -> Tensor:
    """RMS-norm queries and keys over the head size, weigh and turn them; write all three into ``table`` at ``place``.

    ``weight_2D`` holds one row for queries and one for keys. ``rotation_LE`` is complex, half the head size wide, and
    turns neighbouring pairs. Computed in float32. The table is written in place and given back: rows that no stream
    writes must be finite, and every row is written once at most.
    """
    result: Tensor = _NormRotate.apply(qkv_L3HD, weight_2D, rotation_LE, table_M3HD, place_L, eps)
    return result


class _NormRotate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, weight: Tensor, rotation: Tensor | None, table: Tensor, place: Tensor, eps: float
    ) -> Tensor:
        scale = weight.float()[:, None]
        keeps = torch.empty(len(qkv), 2, *qkv.shape[2:], dtype=torch.float32, device=qkv.device)
        spreads = []
        start = 0
        for part, at, normed in _slices(qkv, place, keeps):
            work = part.to(torch.float32, copy=True)
            query_key = work[:, :2]
            spread = torch.linalg.vector_norm(query_key, dim=-1, keepdim=True)
            spread = spread.square_().div_(query_key.shape[-1]).add_(eps).rsqrt_()
            torch.mul(query_key, spread, out=normed)
            torch.mul(normed, scale, out=query_key)
            _turn(query_key, rotation, start)
            table.index_copy_(0, at, work.to(table.dtype))
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
        back = None if ctx.rotation is None else ctx.rotation.conj().resolve_conj()
        grad_qkv = torch.empty(len(keeps), *grad.shape[1:], dtype=ctx.dtype, device=grad.device)
        scale = weight.float()[:, None]
        per_head = torch.zeros(keeps.shape[1:], dtype=torch.float32, device=grad.device)
        start = 0
        for (to, at, normed), spread in zip(_slices(grad_qkv, place, keeps), spreads, strict=True):
            work = grad.index_select(0, at).float()
            query_key = work[:, :2]
            _turn(query_key, back, start)
            product = query_key * normed
            per_head += product.sum(0)
            along = product.mul_(scale).mean(-1, keepdim=True)
            query_key.mul_(scale).addcmul_(normed, along, value=-1).mul_(spread)
            to.copy_(work)
            start += len(at)
        return grad_qkv, per_head.sum(1).to(weight.dtype), None, grad, None, None


def _turn(x: Tensor, rotation: Tensor | None, start: int) -> None:
    """Multiply neighbouring pairs of the last axis by the tokens' complex rotations, in place."""
    if rotation is not None:
        pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
        pairs.mul_(rotation[start : start + len(x), None, None])


def _slices(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """All tensors cut alike along their tokens; on a CPU so that a slice of the first stays in cache."""
    first = tensors[0]
    rows = max(len(first), 1)
    step = max(_SLICE * rows // max(first.numel(), 1), 1) if first.device.type == "cpu" else rows
    return zip(*(tensor.split(step) for tensor in tensors), strict=True)
