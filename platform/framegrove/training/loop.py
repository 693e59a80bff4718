"""The training loop: a plain function over steps, the same in one process and on every worker of a cluster.

A step takes its samples, in forward passes, updates the weights, and reports losses. The samples depend on (seed,
phase, step) alone; weights, optimizer and averaged weights are in the checkpoint. A run that was stopped or killed
therefore continues exactly along the curve of an undisturbed one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from framegrove.config.train import PhaseConfig, TrainConfig
from framegrove.flow.objective import StageSample
from framegrove.training.curriculum import Position
from framegrove.training.curve import LossTally
from framegrove.training.engine import Update
from framegrove.training.feed import Feed
from framegrove.training.meter import Meter, Speed
from framegrove.training.skips import Skips
from framegrove.training.step import Trainable


class Engine(Protocol):
    """What the loop needs of an engine, plain or DeepSpeed."""

    rank: int
    world: int
    data_rank: int  # workers of a sequence group draw the same samples: they have this number in common
    data_world: int
    module: Trainable

    def update(
        self, packs: Sequence[Sequence[StageSample]], batch: int, phase: PhaseConfig, learning_rate_scale: float
    ) -> Update: ...

    def losses(self, packs: Sequence[Sequence[StageSample]]) -> list[Tensor]: ...

    def most(self, count: int) -> int: ...

    def gathered(self, texts: Sequence[str], aside: bool = False) -> list[str]: ...

    def total(self, values: Tensor) -> Tensor: ...

    def averaged_weights(self) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class Point:
    """A point of the loss curve: mean losses since the previous point, by name (``loss`` is over all samples).

    ``step`` counts the steps done in the whole run, ``seconds`` is training time over all sessions of the run,
    ``gradient_norm`` is that of the last step with an update, before clipping. ``skipped`` counts the steps of the run
    without one, whose loss or gradient was infinite or no number. ``held_out`` are mean losses on held-out clips, by
    the same names as ``losses``, where they were measured here; ``seconds_left`` is an estimate for the whole run.
    """

    step: int
    phase: str
    losses: dict[str, float]
    learning_rate: float
    gradient_norm: float
    seconds: float
    samples_per_second: float
    speed: Speed
    skipped: int = 0
    held_out: Mapping[str, float] = field(default_factory=dict)
    seconds_left: float | None = None


def _nothing(*_: Any) -> None:
    """The default of every hook."""


@dataclass(frozen=True)
class Hooks:
    """Functions that are called while a run goes on, on every worker; those left out do nothing."""

    on_start: Callable[[int], None] = _nothing  # steps done by an earlier session of this run
    on_step: Callable[[int, float], None] = _nothing  # steps done, mean loss of this worker's share
    on_pause: Callable[[str], None] = _nothing  # what is done now instead of steps, until the next step or the end
    on_point: Callable[[Point], None] = _nothing
    on_checkpoint: Callable[[int], bool | None] = _nothing  # steps done; time to save; true ends the session here
    on_phase_end: Callable[[PhaseConfig], None] = _nothing
    on_skip: Callable[[int, str], None] = _nothing  # on worker 0: steps done, a sentence on the last, which was skipped
    on_speed: Callable[[float, float], None] = _nothing  # this worker's tokens/s; seconds it waited for data


def train(
    config: TrainConfig,
    engine: Engine,
    feed: Feed,
    stages: int,
    hooks: Hooks,
    first_step: int = 0,
    seconds: float = 0.0,
    skipped: int = 0,
) -> None:
    """Run the steps from ``first_step`` to the end of the last phase, with a pyramid of ``stages`` stages.

    ``feed`` has this worker's samples; ``seconds`` is the training time of earlier sessions, ``skipped`` are their
    steps without an update. Raises TrainingDiverged.
    """
    hooks.on_start(first_step)
    skips = Skips(config.most_skipped, skipped, hooks.on_skip)
    tally, meter = LossTally(stages, config.units), Meter(engine.module)
    gradient_norm = 0.0
    for step in range(first_step, config.steps):
        done = step + 1
        position = Position.of(config, step)
        phase = position.phase
        engine.module.transformer.recompute = config.recomputes(phase)
        engine.module.preference = phase.objective.preference

        # 1. Take this worker's samples.
        waiting_began = time.monotonic()
        share = feed.at(step)
        meter.add(share.packs, time.monotonic() - waiting_began)

        # 2. Update the weights.
        scale = phase.learning_rate_scale(position.step)
        update = engine.update(share.packs, share.batch, phase, scale)
        skips.count(done, phase.name, share.packs, update, engine)
        if not update.skipped:
            gradient_norm = update.gradient_norm
            for members, losses in zip(share.packs, update.losses, strict=True):
                tally.add(members, losses)
        loss = float(torch.cat(update.losses).mean())
        hooks.on_step(done, loss)

        # 3. Report. A checkpoint is always preceded by a point, because the tally itself is not in the checkpoint.
        phase_ends = position.step + 1 == phase.steps
        checkpoint_due = done % config.checkpoint_every == 0 or done == config.steps
        point_due = done % config.log_every == 0 or phase_ends or checkpoint_due or config.watches(done)
        totals = engine.total(tally.sums) if point_due else torch.zeros(0)
        if totals.any():  # all steps since the last point may have been skipped
            speed, rate = meter.read(engine), scale * phase.learning_rate
            seconds += speed.seconds
            samples = tally.count(totals) / speed.seconds
            means = tally.means(totals)
            hooks.on_point(Point(done, phase.name, means, rate, gradient_norm, seconds, samples, speed, skips.total))
            hooks.on_speed(meter.tokens / speed.seconds, meter.waited)
            tally = LossTally(stages, config.units)
            meter.restart()
        session_ends = checkpoint_due and hooks.on_checkpoint(done)
        if phase_ends:
            hooks.on_phase_end(phase)
        if session_ends:
            return
