"""Muon: momentum whose every matrix is replaced by the nearest semi-orthogonal one before the step.

K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024). Convolution kernels count as
matrices of output channels by everything else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

# Quintic Newton-Schulz coefficients of the publication: steepest at zero, singular values end up near one.
_A, _B, _C = 3.4445, -4.7750, 2.0315


class Muon(torch.optim.Optimizer):
    """For weights of two or more dimensions; biases, gains and embeddings belong to another optimizer."""

    def __init__(self, parameters: Iterable[Tensor], lr: float = 0.02, momentum: float = 0.95) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum: Tensor = state["momentum"]
        momentum.lerp_(gradient, 1 - group["momentum"])
        ahead = torch.lerp(gradient, momentum, group["momentum"])  # Nesterov
        direction = orthogonalised(ahead.reshape(len(ahead), -1))
        # A step changes a layer's outputs equally strongly, whatever its shape.
        size = max(1.0, direction.shape[0] / direction.shape[1]) ** 0.5
        parameter.add_(direction.view_as(parameter), alpha=-group["lr"] * size)


def orthogonalised(matrix: Tensor, iterations: int = 5) -> Tensor:
    """About U V^T of the matrix's singular value decomposition, by matrix products in bfloat16."""
    x = matrix.bfloat16()
    wide = x.shape[0] <= x.shape[1]
    x = x if wide else x.T
    x = x / (x.norm() + 1e-7)
    for _ in range(iterations):
        gram = x @ x.T
        x = _A * x + (_B * gram + _C * gram @ gram) @ x
    return (x if wide else x.T).to(matrix.dtype)
