"""The training objective: from clean latents to noisy samples, their velocities, and the loss (PFM eqs. 6 and 9-11).

Three layers. ``choose`` draws what is trained of a clip before it is read: which unit, at which stage and timestep, how
strongly its history is corrupted. ``build`` draws the noises. ``stage_batch`` is a pure function of the clean units and
of all these draws.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from framegrove.config.flow import ObjectiveConfig
from framegrove.flow.history import history_clips
from framegrove.flow.noise import double, noise_pyramid, pyramid
from framegrove.flow.schedule import GRID, PyramidSchedule
from framegrove.models.packed import TextEmbedding


class Cell(NamedTuple):
    """Which unit of a clip a training sample is of, and at which stage."""

    unit: int
    stage: int


@dataclass(frozen=True, eq=False)
class Draws:
    """Everything random about B samples of one stage, in the order the released code draws it.

    ``noise`` (B, C, t, h, w) is for the current unit at full resolution, ``steps_B`` are indices into the stage's 1000
    timesteps, ``corruption_B`` is one strength per sample for all of its history, ``history_noises`` has one tensor
    per history clip, newest first.
    """

    noise: Tensor
    steps_B: Tensor
    corruption_B: Tensor
    history_noises: tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class StageBatch:
    """B samples of one stage: corrupted ``history`` clips (B, C, t, h, w) oldest first, noisy unit, velocity."""

    history: tuple[Tensor, ...]
    noisy: Tensor
    velocity: Tensor
    timesteps_B: Tensor  # float32, 0 to 1000
    ratios_B: Tensor  # float64, 1 at the stage's start


@dataclass(frozen=True, eq=False)
class RivalSample:
    """A worse sibling of a sample's unit, noised as that one is; see preference.py.

    ``chances`` are the probabilities that they are right: the sample's own, the rival's.
    """

    noisy: Tensor
    target: Tensor
    chances: tuple[float, float]


@dataclass(frozen=True, eq=False)
class StageSample:
    """One training sample: what the transformer sees, and the velocity that it should predict.

    It sees the prompt (empty where it was dropped, for guidance), the corrupted ``history`` clips (C, t, h, w), oldest
    first, each at its own size, and the ``noisy`` unit (C, t, h, w) at a ``timestep`` from 0 to 1000. ``target`` has
    the shape of ``noisy``. ``origin`` says which clip it is of, for messages. ``text`` is the prompt's embedding where
    it was stored, and otherwise None. ``rival`` is what it is compared with, where it is one of a pair.
    """

    prompt: str
    history: tuple[Tensor, ...]
    noisy: Tensor
    timestep: float
    target: Tensor
    cell: Cell
    origin: str = ""
    text: TextEmbedding | None = None
    rival: RivalSample | None = None

    def visual_tokens(self, patch: int) -> int:
        """Tokens of the history and the noisy units, in patches of ``patch`` x ``patch`` latent pixels."""
        noisy = (self.noisy,) if self.rival is None else (self.noisy, self.rival.noisy)
        return sum(clip[0].numel() for clip in (*self.history, *noisy)) // patch**2


class Contender(NamedTuple):
    """A rival before it is noised: its clean normalised unit (C, 1, h, w), and the chances of both."""

    clean: Tensor
    chances: tuple[float, float]


@dataclass(frozen=True, eq=False)
class Choices:
    """What is drawn of N samples before their clips are read.

    Unit and stage, the index into the stage's 1000 timesteps, the strength of the history's corruption, and whether the
    prompt is dropped.
    """

    cells: tuple[Cell, ...]
    steps_N: Tensor
    corruption_N: Tensor
    dropped: tuple[bool, ...]

    def of(self, members: Sequence[int]) -> Choices:
        """Those of some of the samples."""
        chosen = list(members)
        return Choices(
            tuple(self.cells[i] for i in chosen),
            self.steps_N[chosen],
            self.corruption_N[chosen],
            tuple(self.dropped[i] for i in chosen),
        )


def choose(
    unit_weights: Sequence[Sequence[float]],
    schedule: PyramidSchedule,
    config: ObjectiveConfig,
    generator: torch.Generator,
) -> Choices:
    """What is trained of some clips, of which only the weights of their units are known yet, one row a sample.

    Draws are spread evenly over the batch instead of independently: the same expectation with less variance. Raises
    ValueError where stages and their weights do not fit together.
    """
    count = len(unit_weights)
    stages = _pick(spread(count, generator), [_stage_weights(config, schedule)] * count)
    units = _pick(spread(count, generator), unit_weights)
    steps_N = (spread(count, generator) * GRID).long().clamp(max=GRID - 1)
    corruption_N = torch.rand(count, generator=generator, device=generator.device) * config.corruption
    dropped = (spread(count, generator) < config.text_dropout).tolist()
    return Choices(tuple(map(Cell, units, stages)), steps_N, corruption_N, tuple(dropped))


def build(
    clips: Sequence[Sequence[Tensor]],
    prompts: Sequence[str],
    choices: Choices,
    schedule: PyramidSchedule,
    generators: Sequence[torch.Generator],
    origins: Sequence[str] | None = None,
    rivals: Sequence[Contender | None] | None = None,
) -> list[StageSample]:
    """One training sample of every clip, in order; give a clip several times to have several samples of it.

    A clip is its clean normalised units (C, t, h, w), oldest first, of which only those up to the chosen one are used.
    Each sample's noises are drawn from a generator of its own, so that it is the same in whatever company it is built.
    Samples of equal shapes are computed together. ``origins`` say where the clips come from, for messages. ``rivals``
    are what the chosen units of pairs are compared with, None for other samples.
    """
    rivals = rivals or [None] * len(clips)
    groups: dict[tuple[object, ...], list[int]] = {}
    for index, (clip, cell, rival) in enumerate(zip(clips, choices.cells, rivals, strict=True)):
        shapes = [latent.shape for latent in clip[: cell.unit + 1]]
        groups.setdefault((cell.stage, rival is not None, *shapes), []).append(index)

    samples: dict[int, StageSample] = {}
    for members in groups.values():
        unit, stage = choices.cells[members[0]]
        latents = [torch.stack([clips[index][place] for index in members]) for place in range(unit + 1)]
        noises = [
            _noises([clips[i][place] for place in range(unit + 1)], stage, schedule, generators[i]) for i in members
        ]
        noise, *older = (torch.stack(column) for column in zip(*noises, strict=True))
        draws = Draws(noise, choices.steps_N[members], choices.corruption_N[members], tuple(older))
        batch = stage_batch(latents, stage, schedule, draws)
        timesteps = batch.timesteps_B.tolist()
        others = [rival for index in members if (rival := rivals[index]) is not None]
        noised = [None] * len(members) if not others else _noised(latents[:-1], others, stage, schedule, draws)
        for row, index in enumerate(members):
            samples[index] = StageSample(
                "" if choices.dropped[index] else prompts[index],
                tuple(clip[row] for clip in batch.history),
                batch.noisy[row],
                timesteps[row],
                batch.velocity[row],
                choices.cells[index],
                origins[index] if origins else "",
                rival=noised[row],
            )
    return [samples[index] for index in range(len(clips))]


def _noised(
    history: Sequence[Tensor], rivals: Sequence[Contender], stage: int, schedule: PyramidSchedule, draws: Draws
) -> Sequence[RivalSample | None]:
    """Rivals after the same history, with the draws of those that they are compared with."""
    batch = stage_batch([*history, torch.stack([rival.clean for rival in rivals])], stage, schedule, draws)
    return [
        RivalSample(noisy, velocity, rival.chances)
        for noisy, velocity, rival in zip(batch.noisy, batch.velocity, rivals, strict=True)
    ]


def stage_batch(units: Sequence[Tensor], stage: int, schedule: PyramidSchedule, draws: Draws) -> StageBatch:
    """Noisy samples of the last of ``units`` (each (B, C, t, h, w), clean, oldest first) at ``stage``, with velocities.

    Start and end of a stage share one noise (PFM eqs. 9-10); the velocity has the released sign, start - end.
    """
    clean = pyramid(units[-1], schedule.stages)
    noise = noise_pyramid(draws.noise, schedule.stages)[stage]
    start = noise
    if stage > 0:
        sigma = schedule.start_sigma(stage)
        start = sigma * noise + (1 - sigma) * double(clean[stage - 1])
    end = clean[stage]
    if stage + 1 < schedule.stages:
        sigma = schedule.end_sigma(stage)
        end = sigma * noise + (1 - sigma) * clean[stage]

    device = start.device
    steps_B = draws.steps_B.cpu()
    ratios_B = torch.from_numpy(schedule.training_ratios())[steps_B].to(device)
    timesteps_B = torch.from_numpy(schedule.training_timesteps(stage))[steps_B].float().to(device)
    ratio = ratios_B.view(-1, *[1] * (start.dim() - 1))
    noisy = (ratio * start + (1 - ratio) * end).to(start.dtype)  # in float64, as released

    history = history_clips(units[:-1], stage, schedule.stages)
    strength = draws.corruption_B.to(device).view_as(ratio)
    corrupted = [
        strength * noise + (1 - strength) * clip
        for clip, noise in zip(history, reversed(draws.history_noises), strict=True)
    ]
    return StageBatch(tuple(corrupted), noisy, start - end, timesteps_B, ratios_B)


def sample_losses(predictions: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    """Mean squared error of each sample, (N,); the loss is their mean: a large stage weighs no more (PFM eq. 11)."""
    sizes = torch.tensor([target.numel() for target in targets])
    predicted = torch.cat([prediction.flatten() for prediction in predictions]).float()
    wanted = torch.cat([target.flatten() for target in targets]).float()
    owners = torch.repeat_interleave(sizes).to(predicted.device)
    sums = predicted.new_zeros(len(targets)).index_add(0, owners, (predicted - wanted).square())
    return sums / sizes.to(sums.device)


def _noises(
    units: Sequence[Tensor], stage: int, schedule: PyramidSchedule, generator: torch.Generator
) -> tuple[Tensor, ...]:
    """Noise for the last unit at full resolution, then one for each clip of its history, newest first."""

    def normal(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, device=generator.device).to(like.device)

    history = history_clips(units[:-1], stage, schedule.stages)
    return (normal(units[-1]), *(normal(clip) for clip in reversed(history)))


def spread(count: int, generator: torch.Generator) -> Tensor:
    """``count`` uniform float64 draws from [0, 1) in random order, one in each of ``count`` equal intervals."""
    device = generator.device
    order = torch.randperm(count, generator=generator, device=device)
    return (order + torch.rand(count, generator=generator, device=device, dtype=torch.float64)) / count


def _pick(uniform_N: Tensor, weights: Sequence[Sequence[float]]) -> list[int]:
    """The index that each uniform draw selects under its row of weights; an index of weight 0 never is."""
    picked = []
    for uniform, row in zip(uniform_N.tolist(), weights, strict=True):
        bounds = list(accumulate(row))
        last = max(index for index, weight in enumerate(row) if weight > 0)  # should rounding reach the very end
        picked.append(min(bisect_right(bounds, uniform * bounds[-1]), last))
    return picked


def _stage_weights(config: ObjectiveConfig, schedule: PyramidSchedule) -> Sequence[float]:
    weights = config.stage_weights or (1.0,) * schedule.stages
    if len(weights) != schedule.stages:
        raise ValueError(f"stage_weights needs one weight per stage, {schedule.stages}, not {list(weights)}")
    return weights
