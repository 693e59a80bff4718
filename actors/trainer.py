"""Training on a cluster: workers of Ray Train, each with a DeepSpeed engine, fed by Ray Data.

Every worker runs the same loop as a run in one process does, on its own share of each batch. What makes a worker's
step is a function of (seed, phase, step, rank) and of its checkpoint, so a run whose worker was killed goes on from
the newest checkpoint along the curve of an undisturbed one. Worker 0 writes the loss curve and the model folder.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import tempfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import ray.data
import ray.train
import ray.train.torch
import torch
from ray.exceptions import RayError
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig

from framegrove.cluster.placement import Role, bundle, require
from framegrove.cluster.session import Cluster
from framegrove.config.base import absolute
from framegrove.config.train import MODEL, RAY_STATE, SHIPPED, TrainConfig
from framegrove.data.ingest import DataError, Shard, Size
from framegrove.data.schema import LatentClip, from_table
from framegrove.errors import UserError
from framegrove.training import checkpoint
from framegrove.training.curve import Curve
from framegrove.training.engine import DeepSpeedEngine
from framegrove.training.loop import Hooks, Point, TrainingDiverged, train
from framegrove.training.run import Setup


class TrainingFailed(UserError):
    """The workers could not finish the run; the message is one sentence for the user."""


def fit(
    config: TrainConfig,
    out: Path,
    cluster: Cluster,
    *,
    workers: int = 1,
    threads: int = 1,
    failures: int = 3,
    callbacks: Sequence[Any] = (),
) -> Path:
    """Train on ``workers`` workers of ``threads`` CPU threads each; the model folder is ``out/model``.

    Goes on where an earlier run in ``out`` stopped; ``failures`` times a run whose worker died is taken up again.
    ``out`` and the data must be in the same place on every machine. Raises UserError, before anything is written, for
    what does not fit together, NoRoom where the cluster has no place, TrainingFailed and TrainingDiverged.
    """
    config, out = at_absolute_paths(config), out.absolute()
    if any(phase.matrix_learning_rate for phase in config.phases):
        raise UserError(
            "matrix_learning_rate is for the plain engine, ZeRO cuts matrices to pieces: remove it from the phases, or "
            "train with --engine plain"
        )
    Setup.of(config).check_workers(workers)
    for held in sorted((out / RAY_STATE).glob(f"checkpoint_*/{checkpoint.RUN}"))[-1:]:
        checkpoint.step_of(held.parent, config, workers)
    gpu = 1 if ray.cluster_resources().get("GPU") else 0
    worker = bundle(Role.TRAIN, num_gpus=gpu)
    spare = {"CPU": 1.0}  # Ray Data reads on it, and waits for ever where there is none
    require(cluster, [*[worker] * workers, spare], purpose=f"training with {workers} workers and reading beside them")
    out.mkdir(parents=True, exist_ok=True)
    trainer = ray.train.torch.TorchTrainer(
        work,  # type: ignore[arg-type]  # what it returns comes back in the result
        train_loop_config={"config": config.model_dump(mode="json"), "out": str(out), "threads": threads},
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=bool(gpu), resources_per_worker=worker),
        run_config=RunConfig(
            name=RAY_STATE,
            storage_path=str(out),
            failure_config=FailureConfig(max_failures=failures),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            callbacks=list(callbacks),
        ),
    )
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "300")  # a busy machine imports for a minute
    try:
        diverged = trainer.fit().return_value  # type: ignore[attr-defined]  # of Train V2, not of Tune
    except ray.train.TrainingFailedError as error:
        raise TrainingFailed(_reason(error)) from error
    if diverged is not None:
        raise TrainingDiverged(diverged)
    return out / MODEL


def at_absolute_paths(config: TrainConfig) -> TrainConfig:
    """The configuration for processes that start in other folders."""
    moved = {key: absolute(name) for key in ("start", "vae") if (name := getattr(config.model, key)) != SHIPPED}
    model = config.model.model_copy(update=moved)
    return config.model_copy(update={"data": str(Path(config.data).absolute()), "model": model})


def work(given: dict[str, Any]) -> str | None:
    """What every worker does, from the newest checkpoint on. Returns how training diverged, where it did."""
    torch.set_num_threads(given["threads"])
    config, out = TrainConfig.model_validate(given["config"]), Path(given["out"])
    setup = Setup.of(config)
    device = ray.train.torch.get_device()
    engine = DeepSpeedEngine(setup.trainable(), config.precision, device, config.zero)
    first_step = _resume(engine, config)
    curve = Curve(out, first_step) if engine.rank == 0 else None
    newest: dict[str, float] = {}

    def add_point(point: Point) -> None:
        newest.update(point.losses)
        if curve:
            curve.add(dataclasses.asdict(point))

    def report(step: int) -> None:
        with tempfile.TemporaryDirectory(prefix="framegrove-") as folder:
            engine.save(Path(folder))
            if engine.rank == 0:
                checkpoint.describe(Path(folder), step, config, engine.world)
            ray.train.report({"step": step, **newest}, checkpoint=Checkpoint.from_directory(folder))
        if curve:
            curve.draw()

    pools = setup.pools(engine.rank, engine.world, read)
    hooks = Hooks(lambda done, loss: None, add_point, report, lambda phase: setup.save_model(engine, out))
    seconds = curve.seconds if curve else 0.0
    try:
        train(config, engine, pools, setup.schedule, setup.pipeline.latent_norm, hooks, first_step, seconds)
    except TrainingDiverged as error:  # on all workers at once, by the norm of the gradient: trying again is no use
        return str(error)
    if first_step >= config.steps:
        setup.save_model(engine, out)
    return None


def read(shards: Sequence[Shard], sizes: Collection[Size]) -> Iterator[LatentClip]:
    """The clips of some shards in order, as ``read_shards`` gives them, read ahead by Ray Data. Raises DataError."""
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    paths = [str(shard.path) for shard in shards]
    try:
        dataset = ray.data.read_parquet(paths, override_num_blocks=len(paths), concurrency=1)
        for batch in dataset.iter_batches(batch_size=256, batch_format="pyarrow", prefetch_batches=1):
            for clip in from_table(batch):
                if (clip.height, clip.width) in sizes:
                    yield clip
    except (RayError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[-160:]
        raise DataError(f"the clips in {shards[0].path.parent} cannot be read ({reason}): prepare them anew") from error


def _resume(engine: DeepSpeedEngine, config: TrainConfig) -> int:
    """Load the newest checkpoint if there is one; returns the steps it has done."""
    newest = ray.train.get_checkpoint()
    if newest is None:
        return 0
    with newest.as_directory() as folder:
        engine.load(Path(folder))
        return checkpoint.step_of(Path(folder), config, engine.world)


def _reason(error: ray.train.TrainingFailedError) -> str:
    """What went wrong first, in one sentence."""
    failures = getattr(error, "worker_failures", {})
    causes = [getattr(failure, "cause", failure) for failure in failures.values()]
    told = next((cause for cause in causes if isinstance(cause, UserError)), None)
    if told is not None:
        return str(told)
    last = [line for line in str(error).splitlines() if line.strip()][-1:]
    which = f"worker {min(failures)}" if failures else "the controller"
    return f"training failed in {which}, again and again: {' '.join(last).strip()}"
