"""The released procedures in plain words, clip by clip: what other_set.py records from."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from framegrove.models.packed import Prefix, Sample, TextEmbedding
from framegrove.models.transformers import Transformer

PADDED, TEXT, POOLED = 7, 14, 10  # tokens of a padded prompt, and the widths of text

Tensors = dict[str, Tensor]


class Schedule:
    """The released scheduler's tables, step by step as its constructor makes them."""

    def __init__(self, shift: float, stages: int, stage_range: list[float], gamma: float) -> None:
        axis = torch.arange(1000, 0, -1, dtype=torch.float32) / 1000
        self.axis = shift * axis / (1 + (shift - 1) * axis)
        self.stages, self.gamma = stages, gamma
        self.start, self.end, self.jumps = [], [], []
        for stage in range(stages):
            nominal = self.axis[int(stage_range[stage] * 1000)].item()
            after = int(stage_range[stage + 1] * 1000)
            self.end.append(self.axis[after].item() if after < 1000 else 0.0)
            alpha = 1 / (math.sqrt(1 + 1 / gamma) * nominal + 1 - nominal)
            self.jumps.append((alpha, alpha * nominal / math.sqrt(gamma)) if stage else (1.0, 0.0))
            self.start.append(1 - alpha * (1 - nominal) if stage else nominal)
        lengths = np.array(self.start) - np.array(self.end)
        shares = [0.0, *np.cumsum(lengths / lengths.sum())[:-1].tolist(), 1.0]
        ends = [(self.axis * 1000)[min(int(share * 1000), 999)].item() for share in shares]
        self.times = [np.linspace(a, b, 1001)[:-1] for a, b in itertools.pairwise(ends)]
        self.ratios = np.linspace(1, 0, 1001)[:-1]

    def steps(self, stage: int, count: int) -> tuple[list[float], list[float]]:
        times = self.times[stage]
        inner = np.linspace(self.ratios[0], self.ratios[-1], count)
        return np.linspace(times[0], times[-1], count).tolist(), [*inner.tolist(), 0.0]


def random(module: nn.Module) -> Any:
    for parameter in module.parameters():
        fan = parameter[0].numel() if parameter.dim() > 1 else 100
        nn.init.normal_(parameter, mean=0.0 if parameter.dim() > 1 else 0.3, std=fan**-0.5)
    return module.eval()


def past(levels: list[Tensor], stage: int, units: int, per_unit: int) -> list[Tensor]:
    """Clips, oldest first: the newest unit at the stage's level, older ones each a level lower, the rest lowest."""
    if not units:
        return []
    clips = [levels[stage][:, :, -per_unit:]]
    taken, level = 1, max(stage - 1, 0)
    while taken < units and level > 0:
        clips.append(levels[level][:, :, -(taken + 1) * per_unit : -taken * per_unit])
        taken, level = taken + 1, level - 1
    if taken < units:
        clips.append(levels[0][:, :, : -taken * per_unit])
    return clips[::-1]


def velocity(model: Transformer, text: TextEmbedding, history: list[Tensor], current: Tensor, time: float) -> Tensor:
    return model(model.pack([Sample(Prefix(text, tuple(history)), current, time)]))[0]


def texts(stem: str, rows: int, embeds: str, mask: str, pooled: str) -> Tensors:
    """Padded prompts of different lengths; what stands in the padding must not matter."""
    valid = torch.arange(PADDED)[None] < 1 + torch.arange(rows)[:, None] % PADDED
    tokens = torch.randn(rows, PADDED, TEXT)
    return {f"{stem}.{embeds}": tokens, f"{stem}.{mask}": valid.long(), f"{stem}.{pooled}": torch.randn(rows, POOLED)}


def text(tensors: Tensors, stem: str, row: int | tuple[()], embeds: str, mask: str, pooled: str) -> TextEmbedding:
    valid = tensors[f"{stem}.{mask}"][row].bool()
    return TextEmbedding(tensors[f"{stem}.{embeds}"][row][valid], tensors[f"{stem}.{pooled}"][row])


def gradients(model: nn.Module, loss: Tensor, stem: str, names: list[str]) -> Tensors:
    parameters = dict(model.named_parameters())
    found = torch.autograd.grad(loss, [parameters[name] for name in names])
    return {f"{stem}.grad.{name}": gradient for name, gradient in zip(names, found, strict=True)}


def half(clip: Tensor) -> Tensor:
    planes = clip.transpose(1, 2).flatten(0, 1)
    return F.interpolate(planes, scale_factor=0.5, mode="bilinear").unflatten(0, (len(clip), -1)).transpose(1, 2)


def twice(clip: Tensor) -> Tensor:
    return clip.repeat_interleave(2, dim=3).repeat_interleave(2, dim=4)


def double(values: Any) -> Tensor:
    return torch.as_tensor(np.asarray(values), dtype=torch.float64)
