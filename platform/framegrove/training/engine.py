"""What turns losses into weights: plain torch in one process.

An engine owns the module, the optimizer and the averaged weights. ``update`` is one optimizer step over any number of
forward passes; everything else of training is the loop's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from framegrove.config.train import PhaseConfig
from framegrove.training.curriculum import StageSample
from framegrove.training.muon import Muon
from framegrove.training.step import Trainable

_STATE = "engine.pt"


@dataclass(frozen=True, eq=False)
class Update:
    """What an optimizer step found: the loss of each stage-sample, pass by pass, and the gradient's norm."""

    losses: list[Tensor]
    gradient_norm: float


class PlainEngine:
    """One process, float32 weights, forward and backward under bfloat16 autocast where asked for."""

    rank, world = 0, 1

    def __init__(
        self, module: Trainable, precision: Literal["bf16", "fp32"], device: torch.device, with_muon: bool = False
    ) -> None:
        self.module = module.to(device)
        self.device = device
        self.precision = precision
        self.parameters = [p for p in self.module.parameters() if p.requires_grad]
        self.averaged = [p.detach().clone() for p in self.parameters]
        self.updates = 0
        matrices = {id(p) for p in self.module.matrices()} if with_muon else set()
        self.adamw = torch.optim.AdamW([p for p in self.parameters if id(p) not in matrices], fused=True)
        self.muon = Muon([p for p in self.parameters if id(p) in matrices]) if with_muon else None

    def update(self, packs: Sequence[Sequence[StageSample]], batch: int, phase: PhaseConfig, pace: float) -> Update:
        """One optimizer step on a batch of ``batch`` stage-samples that is spread over ``packs``."""
        losses = []
        for samples in packs:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                each = self.module(samples)
            (each.sum() / batch).backward()
            losses.append(each.detach())
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, phase.clip)
        for group in self.adamw.param_groups:
            group.update(
                lr=pace * phase.learning_rate, betas=phase.betas, eps=phase.eps, weight_decay=phase.weight_decay
            )
        self.adamw.step()
        if self.muon is not None:
            for group in self.muon.param_groups:
                group["lr"] = pace * (phase.matrix_learning_rate or 0.0)
            self.muon.step()
        self.module.zero_grad(set_to_none=True)
        self._average(phase.ema)
        return Update(losses, float(norm))

    def most(self, count: int) -> int:
        """The largest ``count`` of all workers."""
        return count

    def total(self, values: Tensor) -> Tensor:
        """The sum of ``values`` over all workers."""
        return values

    def save(self, folder: Path) -> None:
        """Write everything that ``load`` needs to go on to the bit."""
        torch.save(
            {
                "weights": [p.detach() for p in self.parameters],
                "averaged": self.averaged,
                "adamw": self.adamw.state_dict(),
                "muon": self.muon and self.muon.state_dict(),
                "updates": self.updates,
            },
            folder / _STATE,
        )

    def load(self, folder: Path) -> None:
        """Go on from what ``save`` wrote."""
        held: dict[str, Any] = torch.load(folder / _STATE, map_location=self.device, weights_only=True)
        with torch.no_grad():
            torch._foreach_copy_(self.parameters, held["weights"])
            torch._foreach_copy_(self.averaged, held["averaged"])
        self.adamw.load_state_dict(held["adamw"])
        if self.muon is not None:
            self.muon.load_state_dict(held["muon"])
        self.updates = held["updates"]

    def swap_averaged(self) -> None:
        """Exchange the weights and their average: once to use the average, once more to train on."""
        with torch.no_grad():
            for parameter, average in zip(self.parameters, self.averaged, strict=True):
                held = parameter.clone()
                parameter.copy_(average)
                average.copy_(held)

    def _average(self, decay: float) -> None:
        """Exponential average of the weights, shorter in the first steps, when old weights are worth nothing."""
        self.updates += 1
        decay = min(decay, self.updates / (9 + self.updates))
        with torch.no_grad():
            torch._foreach_lerp_(self.averaged, [p.detach() for p in self.parameters], 1 - decay)
