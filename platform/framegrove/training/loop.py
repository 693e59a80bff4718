"""The training loop: a plain function over steps, the same in one process and on every worker of a cluster.

A step draws its samples, packs them into forward passes, updates the weights, and reports losses. The draws depend on
(seed, phase, step, rank) alone; weights, optimizer and averaged weights are in the checkpoint. A run that was stopped
or killed therefore continues exactly along the curve of an undisturbed one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from framegrove.config.train import PhaseConfig, TrainConfig
from framegrove.data.ingest import ClipPool
from framegrove.data.packing import pack
from framegrove.flow.objective import StageSample
from framegrove.flow.schedule import PyramidSchedule
from framegrove.models.vae_files import LatentNorm
from framegrove.training.curriculum import Position, draw_samples
from framegrove.training.curve import LossTally
from framegrove.training.engine import Update
from framegrove.training.skips import Skips
from framegrove.training.step import Trainable


class Engine(Protocol):
    """What the loop needs of an engine, plain or DeepSpeed."""

    rank: int
    world: int
    module: Trainable

    def update(
        self, packs: Sequence[Sequence[StageSample]], batch: int, phase: PhaseConfig, learning_rate_scale: float
    ) -> Update: ...

    def most(self, count: int) -> int: ...

    def gathered(self, texts: Sequence[str], aside: bool = False) -> list[str]: ...

    def total(self, values: Tensor) -> Tensor: ...

    def averaged_weights(self) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class Point:
    """A point of the loss curve: mean losses since the previous point, by name (``loss`` is over all samples).

    ``step`` counts the steps done in the whole run, ``seconds`` is training time over all sessions of the run,
    ``gradient_norm`` is that of the last step with an update, before clipping. ``skipped`` counts the steps of the run
    without one, whose loss or gradient was infinite or no number.
    """

    step: int
    phase: str
    losses: dict[str, float]
    learning_rate: float
    gradient_norm: float
    seconds: float
    samples_per_second: float
    skipped: int = 0


def _nothing(*_: Any) -> None:
    """The default of every hook."""


@dataclass(frozen=True)
class Hooks:
    """Functions that are called while a run goes on, on every worker; those left out do nothing."""

    on_start: Callable[[int], None] = _nothing  # steps done by an earlier session of this run
    on_step: Callable[[int, float], None] = _nothing  # steps done, mean loss of this worker's share
    on_point: Callable[[Point], None] = _nothing
    on_checkpoint: Callable[[int], bool | None] = _nothing  # steps done; time to save; true ends the session here
    on_phase_end: Callable[[PhaseConfig], None] = _nothing
    on_skip: Callable[[int, str], None] = _nothing  # on worker 0: steps done, a sentence on the last, which was skipped
    on_speed: Callable[[float, float], None] = _nothing  # this worker's visual tokens/s; seconds it waited for data


def train(
    config: TrainConfig,
    engine: Engine,
    open_pool: Callable[[PhaseConfig, int], ClipPool],
    schedule: PyramidSchedule,
    norm: LatentNorm,
    hooks: Hooks,
    first_step: int = 0,
    seconds: float = 0.0,
    skipped: int = 0,
) -> None:
    """Run the steps from ``first_step`` to the end of the last phase.

    ``open_pool(phase, step)`` opens the pool of a phase's clips as it is at a step of it; ``seconds`` is the training
    time of earlier sessions, ``skipped`` are their steps without an update. Raises TrainingDiverged.
    """
    hooks.on_start(first_step)
    skips = Skips(config.most_skipped, skipped, hooks.on_skip)
    tally = LossTally(schedule.stages)
    tally_began = time.monotonic()
    waited, tokens = 0.0, 0
    gradient_norm = 0.0
    pool: ClipPool | None = None
    for step in range(first_step, config.steps):
        done = step + 1
        position = Position.of(config, step)
        phase = position.phase

        # 1. Draw this worker's samples and share them out to forward passes.
        drawing_began = time.monotonic()
        if pool is None or position.step == 0:
            pool = open_pool(phase, position.step)
        samples = draw_samples(pool.at(position.step), position, schedule, norm, config.seed, engine.rank, engine.world)
        packs = _packs(samples, phase, engine)
        waited += time.monotonic() - drawing_began
        patch = engine.module.transformer.config.patch_size
        tokens += sum(sample.visual_tokens(patch) for sample in samples)

        # 2. Update the weights.
        scale = phase.learning_rate_scale(position.step)
        update = engine.update(packs, phase.batch, phase, scale)
        skips.count(done, phase.name, packs, update, engine)
        if not update.skipped:
            gradient_norm = update.gradient_norm
            for members, losses in zip(packs, update.losses, strict=True):
                tally.add(members, losses)
        loss = float(torch.cat(update.losses).mean())
        hooks.on_step(done, loss)

        # 3. Report. A checkpoint is always preceded by a point, because the tally itself is not in the checkpoint.
        phase_ends = position.step + 1 == phase.steps
        checkpoint_due = done % config.checkpoint_every == 0 or done == config.steps
        point_due = done % config.log_every == 0 or phase_ends or checkpoint_due
        totals = engine.total(tally.sums) if point_due else torch.zeros(0)
        if totals.any():  # all steps since the last point may have been skipped
            now = time.monotonic()
            seconds += now - tally_began
            speed = float(totals[1, schedule.stages :].sum()) / (now - tally_began)
            rate = scale * phase.learning_rate
            means = tally.means(totals)
            hooks.on_point(Point(done, phase.name, means, rate, gradient_norm, seconds, speed, skips.total))
            hooks.on_speed(tokens / (now - tally_began), waited)
            tally = LossTally(schedule.stages)
            tally_began = time.monotonic()
            waited, tokens = 0.0, 0
        session_ends = checkpoint_due and hooks.on_checkpoint(done)
        if phase_ends:
            hooks.on_phase_end(phase)
        if session_ends:
            return


def _packs(samples: Sequence[StageSample], phase: PhaseConfig, engine: Engine) -> list[list[StageSample]]:
    """The samples shared out to forward passes, the same number of passes on every worker.

    ZeRO communicates in every pass: a worker that made one pass more would wait for the others forever.
    """
    if phase.pack_tokens is None:
        return [list(samples)]
    patch = engine.module.transformer.config.patch_size
    texts = engine.module.prompt_tokens(samples)
    lengths = [sample.visual_tokens(patch) + text for sample, text in zip(samples, texts, strict=True)]
    passes = engine.most(len(pack(lengths, phase.pack_tokens)))
    return [[samples[i] for i in members] for members in pack(lengths, phase.pack_tokens, at_least=passes)]
