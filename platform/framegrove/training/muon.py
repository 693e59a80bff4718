"""Muon for convolutions: torch's own takes matrices alone.

K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn


class KernelMuon(torch.optim.Muon):
    """torch.optim.Muon without weight decay for weights of two or more dimensions.

    A kernel counts as the matrix of its output channels by everything else. Biases, gains, and the layers through
    which pixels enter and leave a network belong to another optimizer.
    """

    def __init__(self, weights: Iterable[Tensor], lr: float = 0.02) -> None:
        self._weights = list(weights)
        # A view shares its memory with the weight, so that updating one updates the other. Unlike flatten, view never
        # copies: it raises where the memory layout does not allow it.
        matrices = [nn.Parameter(weight.detach().view(len(weight), -1)) for weight in self._weights]
        super().__init__(matrices, lr, weight_decay=0.0)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update from the gradients of the weights."""
        for weight, matrix in zip(self._weights, self.param_groups[0]["params"], strict=True):
            matrix.grad = None if weight.grad is None else weight.grad.flatten(1)
        return super().step(closure)
