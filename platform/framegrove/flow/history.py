"""The temporal pyramid: the history a unit is conditioned on, coarser the older it is (PFM section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from framegrove.flow.noise import halve

Shape = tuple[int, int, int]  # time, height, width


def history_clips(units: Sequence[Tensor], stage: int, stages: int) -> tuple[Tensor, ...]:
    """The clean history of a unit denoised at ``stage``, as clips, oldest first.

    ``units`` are all earlier units (.., t, h, w) at full resolution, oldest first. The newest is seen at the stage's
    own resolution, the one before it one level coarser, and so on; all that would fall below the coarsest level share
    one clip there. Works on any leading dimensions, batched or not.
    """
    clips = []
    for chunk, level in _plan(len(units), stage):
        parts = [_lowered(unit, stages - 1 - level) for unit in units[chunk]]
        clips.append(parts[0] if len(parts) == 1 else torch.cat(parts, dim=-3))
    return tuple(clips)


def history_shapes(units: Sequence[Shape], stage: int, stages: int) -> tuple[Shape, ...]:
    """The shapes (t, h, w) of ``history_clips`` from the units' full-resolution shapes alone, for counting costs."""
    shapes = []
    for chunk, level in _plan(len(units), stage):
        factor = 2 ** (stages - 1 - level)
        members = units[chunk]
        _, height, width = members[0]
        shapes.append((sum(time for time, _, _ in members), height // factor, width // factor))
    return tuple(shapes)


def stage_shape(unit: Shape, stage: int, stages: int) -> Shape:
    """The shape (t, h, w) of a unit at ``stage``."""
    time, height, width = unit
    factor = 2 ** (stages - 1 - stage)
    return (time, height // factor, width // factor)


def sample_tokens(units: Sequence[Shape], stage: int, stages: int, patch: int) -> int:
    """Visual tokens of one sample: the last of ``units`` (t, h, w) at ``stage``, and the others as its history."""
    history = history_shapes(units[:-1], stage, stages)
    return token_count([*history, stage_shape(units[-1], stage, stages)], patch)


def token_count(shapes: Sequence[Shape], patch: int) -> int:
    """Visual tokens of some clips: one for each patch x patch square of every latent frame."""
    return sum(time * (height // patch) * (width // patch) for time, height, width in shapes)


def _plan(count: int, stage: int) -> list[tuple[slice, int]]:
    """Which units each clip holds and at which level, oldest clip first."""
    if count == 0:
        return []
    plan = [(slice(count - 1, count), stage)]
    level, left = stage - 1, count - 1
    while left > 0 and level > 0:
        plan.append((slice(left - 1, left), level))
        level, left = level - 1, left - 1
    if left > 0:
        plan.append((slice(0, left), 0))
    return plan[::-1]


def _lowered(unit: Tensor, halvings: int) -> Tensor:
    for _ in range(halvings):
        unit = halve(unit)
    return unit
