"""What a sequence's condition does to its tokens: shift and scale after a norm, gates in front of a residual sum.

Tokens of a stream lie in rows of equal length (the clips of a block, prompts of one length), so each sequence's
vectors are broadcast over views instead of being copied out per token. On a CPU the cost of a small model is memory
traffic, so both functions also have hand-written gradients and run span by span, while the numbers are in cache.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

NORM_EPS = 1e-6  # every LayerNorm of the published models


@dataclass(frozen=True)
class TokenSpan:
    """``count`` rows of ``length`` tokens each, from token ``token`` and from row ``row`` on."""

    token: int
    row: int
    count: int
    length: int


@dataclass(frozen=True, eq=False)
class Rows:
    """A stream of tokens cut into rows, each of one sequence: ``owners_N`` says which."""

    owners_N: Tensor
    spans: tuple[TokenSpan, ...]

    @classmethod
    def of(cls, lengths: Sequence[int], owners_N: Tensor) -> Rows:
        """Consecutive rows of these lengths; neighbours of equal length form one span."""
        spans = []
        token = row = 0
        for length, group in itertools.groupby(lengths):
            count = len(list(group))
            spans.append(TokenSpan(token, row, count, length))
            token, row = token + count * length, row + count
        return cls(owners_N, tuple(spans))

    def followed_by(self, other: Rows) -> Rows:
        """The rows of two streams of which the other stands behind this one."""
        token = sum(span.count * span.length for span in self.spans)
        row = len(self.owners_N)
        shifted = (TokenSpan(span.token + token, span.row + row, span.count, span.length) for span in other.spans)
        return Rows(torch.cat([self.owners_N, other.owners_N]), (*self.spans, *shifted))

    def cut(self, tokens: slice) -> Rows:
        """The rows of a slice of the stream, its first and its last row as far as they lie in the slice."""
        lengths = [span.length for span in self.spans for _ in range(span.count)]
        bounds = [0, *itertools.accumulate(lengths)]
        inside = [
            max(0, min(stop, tokens.stop) - max(start, tokens.start)) for start, stop in itertools.pairwise(bounds)
        ]
        rows = [row for row, count in enumerate(inside) if count]
        first, last = (rows[0], rows[-1] + 1) if rows else (0, 0)
        return Rows.of(inside[first:last], self.owners_N[first:last])


def modulate(x_LD: Tensor, shift_ND: Tensor, scale_ND: Tensor, rows: Rows) -> Tensor:
    """LayerNorm(x) * (1 + scale) + shift, each row with its own shift and scale; in autocast's type where it is on."""
    result: Tensor = _Modulate.apply(x_LD, shift_ND, scale_ND, rows, compute_dtype(x_LD))
    return result


def gated_add(x_LD: Tensor, y_LD: Tensor, gate_ND: Tensor, rows: Rows) -> Tensor:
    """x + gate * y, each row with its own gate, in x's type."""
    result: Tensor = _GatedAdd.apply(x_LD, y_LD, gate_ND, rows)
    return result


def compute_dtype(x: Tensor) -> torch.dtype:
    """The type that matrix products of x run in."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


class _Modulate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, shift: Tensor, scale: Tensor, rows: Rows, dtype: torch.dtype) -> Tensor:
        out = torch.empty_like(x, dtype=dtype)
        scale = scale + 1
        statistics = []
        for tokens, to, a, b in _zip(rows, x, out, per_row=(shift, scale)):
            normed, mean, rstd = torch.native_layer_norm(tokens, tokens.shape[-1:], None, None, NORM_EPS)
            to.copy_(torch.addcmul(a, normed, b, out=normed))
            statistics += [mean, rstd]
        ctx.save_for_backward(x, scale, *statistics)
        ctx.rows = rows
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, *statistics = ctx.saved_tensors
        grad_x, grad_shift, grad_scale = torch.empty_like(x), torch.empty_like(scale), torch.empty_like(scale)
        views = _zip(ctx.rows, x, grad, grad_x, per_row=(scale, grad_shift, grad_scale))
        for index, (tokens, g, to, b, to_shift, to_scale) in enumerate(views):
            mean, rstd = statistics[2 * index : 2 * index + 2]
            g = g.to(x.dtype)
            normed = (tokens - mean).mul_(rstd)
            torch.sum(g, 1, keepdim=True, out=to_shift)
            torch.sum(normed.mul_(g), 1, keepdim=True, out=to_scale)
            part, _, _ = torch.ops.aten.native_layer_norm_backward(
                g * b, tokens, tokens.shape[-1:], mean, rstd, None, None, (True, False, False)
            )
            to.copy_(part)
        return grad_x, grad_shift, grad_scale, None, None


class _GatedAdd(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, gate: Tensor, rows: Rows) -> Tensor:
        out = torch.empty_like(x)
        for tokens, more, to, g in _zip(rows, x, y, out, per_row=(gate,)):
            torch.addcmul(tokens, more.to(x.dtype), g, out=to)
        ctx.save_for_backward(y, gate)
        ctx.rows = rows
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        y, gate = ctx.saved_tensors
        grad_y, grad_gate = torch.empty_like(y), torch.empty_like(gate)
        for g, more, to, b, to_gate in _zip(ctx.rows, grad, y, grad_y, per_row=(gate, grad_gate)):
            to.copy_(g * b)
            torch.sum(more * g, 1, keepdim=True, out=to_gate)
        return grad, grad_y, grad_gate, None


def _zip(rows: Rows, *per_token: Tensor, per_row: tuple[Tensor, ...]) -> Iterator[tuple[Tensor, ...]]:
    """Span by span the views of all tensors, those per token first."""
    for span in rows.spans:
        tokens = slice(span.token, span.token + span.count * span.length)
        some = slice(span.row, span.row + span.count)
        yield (
            *(x[tokens].view(span.count, span.length, -1) for x in per_token),
            *(x[some, None] for x in per_row),
        )
