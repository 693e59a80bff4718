"""A run: what it does from its start to its end, and the whole of it in one process."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch

from framegrove.config.train import CHECKPOINTS, MODEL, PhaseConfig, TrainConfig
from framegrove.errors import UserError
from framegrove.files import locked, patiently
from framegrove.training.checkpoint import HELD_OUT, About
from framegrove.training.curriculum import Position
from framegrove.training.curve import Curve
from framegrove.training.engine import PlainEngine
from framegrove.training.loop import Hooks, Point, train
from framegrove.training.plan import check_fits, model_of
from framegrove.training.resume import SKIPPED, AnyEngine, History, asdict_of, go_on
from framegrove.training.saver import Saver, new_session
from framegrove.training.setup import Setup
from framegrove.training.watch import Watch


def run(config: TrainConfig, out: Path, hooks: Hooks = Hooks()) -> Path:  # noqa: B008 - it is frozen
    """Train in this process, on a GPU if there is one; the model folder is ``out/model``.

    Continues from the newest undamaged checkpoint in ``out``, whichever engine and however many workers have written
    it. Raises UserError for what does not fit together, TrainingDiverged, and CheckpointFailed.
    """
    if config.sequence_parallel > 1:
        raise UserError(
            f"sequence_parallel is {config.sequence_parallel}, but the plain engine trains in one process: train with "
            "--engine deepspeed, or set it to 1"
        )
    setup = Setup.of(config, out)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        model, _ = model_of(config, download=True, encodes=setup.encodes)
        check_fits(config, model, None, torch.cuda.get_device_properties(device).total_memory)
    with_muon = any(phase.matrix_learning_rate for phase in config.phases)
    engine = PlainEngine(setup.trainable(), config.precision, device, with_muon)
    with alone(out):
        return train_to_the_end(setup, engine, out, hooks)


@contextlib.contextmanager
def alone(out: Path) -> Iterator[None]:
    """Have a run's folder to oneself. Raises UserError where another process trains in it."""
    out.mkdir(parents=True, exist_ok=True)
    with locked(out / ".lock", f"another process trains in {out}: wait for it, stop it, or give another --out"):
        yield


def train_to_the_end(setup: Setup, engine: AnyEngine, out: Path, hooks: Hooks) -> Path:
    """What a run does after it is set up, in one process and on every worker of a cluster alike.

    It goes on from the newest checkpoint in ``out``. Worker 0 writes the loss curve, its picture at the last checkpoint
    and at every one that is 10 seconds after another picture, the history, the model folder at the end of every phase,
    and what is to be watched.
    """
    config, folder = setup.config, out / CHECKPOINTS
    if engine.rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
    first_step = go_on(engine, out, config)
    saver = Saver(folder, engine, new_session(engine), config.keep_last, config.keep_best)
    curve = Curve(out, first_step) if engine.rank == 0 else None
    history, watch = History(out), Watch(setup, engine, out, first_step, hooks.on_pause)
    losses: dict[str, float] = {}

    def on_step(done: int, loss: float) -> None:
        saver.check()
        hooks.on_step(done, loss)

    def on_point(point: Point) -> None:
        point = watch.completed(point)
        losses.clear()
        losses.update(point.losses)
        if point.held_out:
            losses[HELD_OUT] = point.held_out["loss"]
        if curve:
            patiently("writing the loss curve", partial(curve.add, dataclasses.asdict(point)))
        hooks.on_point(point)
        watch.show(point)

    def save_model() -> None:
        hooks.on_pause("writing the model")
        setup.save_model(engine, out)

    def on_checkpoint(step: int) -> bool | None:
        phase = Position.of(config, step - 1).phase.name
        held = asdict_of(config)
        saver.save(About(step, phase, held, engine.name, engine.world, setup.words, setup.vae, dict(losses)))
        if curve:
            patiently("drawing the loss curve", partial(curve.draw, at_the_end=step == config.steps))
        if engine.most(int(engine.rank == 0 and not (out / MODEL).exists())):
            save_model()  # so that the run's folder has all that going on elsewhere needs
        return hooks.on_checkpoint(step)

    def on_phase_end(phase: PhaseConfig) -> None:
        save_model()
        hooks.on_phase_end(phase)

    def on_skip(done: int, says: str) -> None:
        patiently("writing the history", partial(history.add, SKIPPED, done, says))
        hooks.on_skip(done, says)

    if first_step < config.steps:
        watch.begin()
    with contextlib.closing(watch), saver:
        train(
            config,
            engine,
            setup.feed(engine.data_rank, engine.data_world),
            setup.schedule.stages,
            dataclasses.replace(
                hooks,
                on_step=on_step,
                on_point=on_point,
                on_checkpoint=on_checkpoint,
                on_phase_end=on_phase_end,
                on_skip=on_skip,
            ),
            first_step,
            curve.seconds if curve else 0.0,
            curve.skipped if curve else 0,
        )
    if first_step >= config.steps:  # it was stopped after its last checkpoint, perhaps before the model was saved
        save_model()
    return out / MODEL
