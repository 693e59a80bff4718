"""The training loop: a plain function over steps, the same in one process and on every worker of a cluster.

A step draws its samples, packs them, updates the weights, and tells what it found. Draws depend on (seed, phase, step,
rank) alone and weights, optimizer and averages are in the checkpoint, so a run that was stopped or killed goes on along
the curve of an undisturbed one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from framegrove.config.train import PhaseConfig, TrainConfig
from framegrove.data.ingest import Pool
from framegrove.data.packing import pack
from framegrove.errors import UserError
from framegrove.flow.schedule import PyramidSchedule
from framegrove.models.vae_files import LatentNorm
from framegrove.training.curriculum import Position, StageSample, draw_samples
from framegrove.training.curve import Tally
from framegrove.training.engine import Update
from framegrove.training.step import Trainable


class TrainingDiverged(UserError):
    """The loss is no longer a number."""


class Engine(Protocol):
    """What the loop needs of an engine, plain or DeepSpeed."""

    rank: int
    world: int
    module: Trainable

    def update(self, packs: Sequence[Sequence[StageSample]], batch: int, phase: PhaseConfig, pace: float) -> Update: ...

    def most(self, count: int) -> int: ...

    def total(self, values: Tensor) -> Tensor: ...

    def averaged_weights(self) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class Point:
    """A point of the loss curve: mean losses since the point before, by name (``loss`` is all of them)."""

    step: int
    phase: str
    losses: dict[str, float]
    learning_rate: float
    gradient_norm: float
    seconds: float
    samples_per_second: float


@dataclass(frozen=True)
class Hooks:
    """What happens around the steps: every step, at points of the curve, at checkpoints, at the end of a phase."""

    on_step: Callable[[int, float], None]  # steps done, loss of this worker's share
    on_point: Callable[[Point], None]
    checkpoint: Callable[[int], None]  # steps done
    phase_done: Callable[[PhaseConfig], None]


def train(
    config: TrainConfig,
    engine: Engine,
    open_pool: Callable[[PhaseConfig, int], Pool],
    schedule: PyramidSchedule,
    norm: LatentNorm,
    hooks: Hooks,
    first_step: int = 0,
    seconds: float = 0.0,
) -> None:
    """Run the steps from ``first_step`` to the end of the last phase.

    ``open_pool(phase, step)`` gives the clips of a phase from a step of it on. Raises TrainingDiverged.
    """
    tally, points_at = Tally(schedule.stages), time.monotonic()
    pool: Pool | None = None
    for done in range(first_step, config.steps):
        position = Position.of(config, done)
        if pool is None or position.step == 0:
            pool = open_pool(position.phase, position.step)
        samples = draw_samples(pool.at(position.step), position, schedule, norm, config.seed, engine.rank, engine.world)
        packs = _packs(samples, position.phase, engine)
        pace = position.phase.pace(position.step)
        update = engine.update(packs, position.phase.batch, position.phase, pace)
        for members, losses in zip(packs, update.losses, strict=True):
            tally.add(members, losses)
        loss = float(torch.cat(update.losses).mean())
        if not math.isfinite(loss) or not math.isfinite(update.gradient_norm):
            raise TrainingDiverged(
                f"the loss is {loss} at step {done} of phase {position.phase.name}: lower its learning_rate or clip"
            )
        hooks.on_step(done + 1, loss)
        last_of_phase = position.step + 1 == position.phase.steps
        kept = (done + 1) % config.checkpoint_every == 0 or done + 1 == config.steps
        # A point at every checkpoint, too: what has been counted since the last point is in no checkpoint.
        if (done + 1) % config.log_every == 0 or last_of_phase or kept:
            now = time.monotonic()
            seconds += now - points_at
            totals = engine.total(tally.sums)
            speed = float(totals[1, schedule.stages :].sum()) / (now - points_at)
            rate = pace * position.phase.learning_rate
            hooks.on_point(
                Point(done + 1, position.phase.name, tally.means(totals), rate, update.gradient_norm, seconds, speed)
            )
            tally, points_at = Tally(schedule.stages), time.monotonic()
        if kept:
            hooks.checkpoint(done + 1)
        if last_of_phase:
            hooks.phase_done(position.phase)


def _packs(samples: Sequence[StageSample], phase: PhaseConfig, engine: Engine) -> list[list[StageSample]]:
    """The samples shared out to forward passes, as many on every worker."""
    if phase.pack_tokens is None:
        return [list(samples)]
    patch = engine.module.transformer.config.patch_size
    texts = engine.module.prompt_tokens(samples)
    lengths = [sample.visual_tokens(patch) + text for sample, text in zip(samples, texts, strict=True)]
    passes = engine.most(len(pack(lengths, phase.pack_tokens)))
    return [[samples[i] for i in members] for members in pack(lengths, phase.pack_tokens, at_least=passes)]
