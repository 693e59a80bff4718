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
_SLICE = 256  # tokens
_GELU_A = 2 * (2 / torch.pi) ** 0.5
_GELU_B = 0.044715 * _GELU_A


def gelu_tanh(x_LD: Tensor) -> Tensor:
    """The tanh approximation of GELU, as x * sigmoid(a x + b x^3), which is the same function and cheaper."""
    result: Tensor = _GeluTanh.apply(x_LD)
    return result


def norm_rotate(qkv_L3HD: Tensor, weight_2D: Tensor, rotation_LE: Tensor | None, dtype: torch.dtype) -> Tensor:
    """RMS-norm queries and keys over the head size, scale by ``weight_2D`` (one row each), rotate; values stay.

    ``rotation_LE`` is complex, half the head size wide: it turns neighbouring pairs. Computed in float32, given back in
    ``dtype``.
    """
    result: Tensor = _NormRotate.apply(qkv_L3HD, weight_2D, rotation_LE, dtype)
    return result


class _GeluTanh(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        out = torch.empty_like(x)
        for part, to in _slices(x, out):
            part = part.float()
            to.copy_(part.square().mul_(_GELU_B).add_(_GELU_A).mul_(part).sigmoid_().mul_(part))
        ctx.save_for_backward(x)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        grad_x = torch.empty_like(x)
        for part, g, to in _slices(x, grad, grad_x):
            part = part.float()
            square = part.square()
            gate = (square * _GELU_B).add_(_GELU_A).mul_(part).sigmoid_()
            slope = square.mul_(3 * _GELU_B).add_(_GELU_A).mul_(part)  # x times the derivative of sigmoid's argument
            slope = torch.addcmul(slope, slope, gate, value=-1, out=slope).add_(1).mul_(gate)
            to.copy_(slope.mul_(g))
        return grad_x


class _NormRotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, weight: Tensor, rotation: Tensor | None, dtype: torch.dtype) -> Tensor:
        out = torch.empty_like(qkv, dtype=dtype)
        scale = weight.float()[:, None]
        for start, (part, to) in _numbered(_slices(qkv, out)):
            normed, _ = _rms_normed(part)
            to[:, :2] = _turned(normed.mul_(scale), rotation, start)
            to[:, 2] = part[:, 2]
        ctx.save_for_backward(qkv, weight)
        ctx.rotation = rotation
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        qkv, weight = ctx.saved_tensors
        rotation = None if ctx.rotation is None else ctx.rotation.conj().resolve_conj()
        grad_qkv = torch.empty_like(qkv)
        grad_weight = torch.zeros_like(weight, dtype=torch.float32)
        scale = weight.float()[:, None]
        for start, (part, g, to) in _numbered(_slices(qkv, grad, grad_qkv)):
            normed, rstd = _rms_normed(part)
            turned = _turned(g[:, :2].float(), rotation, start)
            grad_weight += (turned * normed).sum((0, 2))
            wanted = turned * scale
            along = (wanted * normed).mean(-1, keepdim=True)
            to[:, :2] = torch.addcmul(wanted, normed, along, value=-1).mul_(rstd)
            to[:, 2] = g[:, 2]
        return grad_qkv, grad_weight.to(weight.dtype), None, None


def _rms_normed(qkv: Tensor) -> tuple[Tensor, Tensor]:
    query_key = qkv[:, :2].float()
    rstd = query_key.square().mean(-1, keepdim=True).add_(QK_EPS).rsqrt_()
    return query_key * rstd, rstd


def _turned(x: Tensor, rotation: Tensor | None, start: int) -> Tensor:
    """Neighbouring pairs of the last axis times the tokens' complex rotations."""
    if rotation is None:
        return x
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotation[start : start + x.shape[0], None, None]).flatten(-2)


def _slices(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    step = _SLICE if tensors[0].device.type == "cpu" else max(len(tensors[0]), 1)
    return zip(*(tensor.split(step) for tensor in tensors), strict=True)


def _numbered(parts: Iterator[tuple[Tensor, ...]]) -> Iterator[tuple[int, tuple[Tensor, ...]]]:
    start = 0
    for part in parts:
        yield start, part
        start += len(part[0])
