"""The training loop: a plain function over steps, the same in one process and on every worker of a cluster.

A step takes its samples, in forward passes, updates the weights, and reports losses. The samples depend on (seed,
phase, step) alone; weights, optimizer and averaged weights are in the checkpoint. A run that was stopped or killed
therefore continues exactly along the curve of an undisturbed one.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from framegrove.config.train import PhaseConfig, TrainConfig
from framegrove.errors import UserError
from framegrove.flow.objective import StageSample
from framegrove.training.curriculum import Position
from framegrove.training.curve import LossTally
from framegrove.training.engine import Update
from framegrove.training.feed import Feed
from framegrove.training.step import Trainable

log = logging.getLogger(__name__)


class TrainingDiverged(UserError):
    """The loss is no longer a number."""


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

    def total(self, values: Tensor) -> Tensor: ...

    def averaged_weights(self) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class Point:
    """A point of the loss curve: mean losses since the previous point, by name (``loss`` is over all samples).

    ``step`` counts the steps done in the whole run, ``seconds`` is training time over all sessions of the run,
    ``gradient_norm`` is that of the last step, before clipping.
    """

    step: int
    phase: str
    losses: dict[str, float]
    learning_rate: float
    gradient_norm: float
    seconds: float
    samples_per_second: float


def _nothing(*_: Any) -> None:
    """The default of every hook."""


@dataclass(frozen=True)
class Hooks:
    """Functions that are called while a run goes on, on every worker; those left out do nothing."""

    on_start: Callable[[int], None] = _nothing  # steps done by an earlier session of this run
    on_step: Callable[[int, float], None] = _nothing  # steps done, mean loss of this worker's share
    on_point: Callable[[Point], None] = _nothing
    on_checkpoint: Callable[[int], None] = _nothing  # steps done; time to save
    on_phase_end: Callable[[PhaseConfig], None] = _nothing
    on_speed: Callable[[float, float], None] = _nothing  # this worker's visual tokens/s; seconds it waited for data


def train(
    config: TrainConfig,
    engine: Engine,
    feed: Feed,
    stages: int,
    hooks: Hooks,
    first_step: int = 0,
    seconds: float = 0.0,
) -> None:
    """Run the steps from ``first_step`` to the end of the last phase, with a pyramid of ``stages`` stages.

    ``feed`` has this worker's samples; ``seconds`` is the training time of earlier sessions. Raises TrainingDiverged.
    """
    hooks.on_start(first_step)
    tally = LossTally(stages)
    tally_began = time.monotonic()
    waited, tokens = 0.0, 0
    for step in range(first_step, config.steps):
        done = step + 1
        position = Position.of(config, step)
        phase = position.phase
        engine.module.transformer.recompute = config.recomputes(phase)

        # 1. Take this worker's samples.
        waiting_began = time.monotonic()
        share = feed.at(step)
        waited += time.monotonic() - waiting_began
        patch = engine.module.transformer.config.patch_size
        tokens += sum(sample.visual_tokens(patch) for members in share.packs for sample in members)

        # 2. Update the weights.
        scale = phase.learning_rate_scale(position.step)
        update = engine.update(share.packs, share.batch, phase, scale)
        for members, losses in zip(share.packs, update.losses, strict=True):
            tally.add(members, losses)
        loss = float(torch.cat(update.losses).mean())
        # The norm is that of all workers' gradients together: if one of them diverges, all of them stop here.
        if not math.isfinite(loss) or not math.isfinite(update.gradient_norm):
            raise TrainingDiverged(
                f"the loss is {loss} at step {step} of phase {phase.name}: lower its learning_rate or clip"
            )
        hooks.on_step(done, loss)

        # 3. Report. A checkpoint is always preceded by a point, because the tally itself is not in the checkpoint.
        phase_ends = position.step + 1 == phase.steps
        checkpoint_due = done % config.checkpoint_every == 0 or done == config.steps
        if done % config.log_every == 0 or phase_ends or checkpoint_due:
            now = time.monotonic()
            seconds += now - tally_began
            totals = engine.total(tally.sums)
            speed = float(totals[1, stages:].sum()) / (now - tally_began)
            rate = scale * phase.learning_rate
            hooks.on_point(Point(done, phase.name, tally.means(totals), rate, update.gradient_norm, seconds, speed))
            hooks.on_speed(tokens / (now - tally_began), waited)
            tally = LossTally(stages)
            tally_began = time.monotonic()
            waited, tokens = 0.0, 0
        if checkpoint_due:
            hooks.on_checkpoint(done)
            log.info("checkpoint after step %d written", done)
        if phase_ends:
            hooks.on_phase_end(phase)
