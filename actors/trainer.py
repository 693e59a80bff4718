"""Training on a cluster: workers of Ray Train, each with a DeepSpeed engine.

Every worker runs the same loop as a run in one process does, on its own share of each batch. What happens in a worker's
step is a function of (seed, phase, step, rank) and of its checkpoint, so a run whose worker was killed continues from
the newest checkpoint along the curve of an undisturbed one. Worker 0 writes the loss curve and the model folder.

A worker's UserError ends the run at once with its sentence. Anything else, a lost worker or a defect of the code, has
all workers started again from the newest checkpoint, a limited number of times.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
from ray.train import Checkpoint, CheckpointConfig, ControllerError, FailureConfig, RunConfig, ScalingConfig

from framegrove import logs
from framegrove.cluster.metrics import Metrics
from framegrove.cluster.placement import Role, bundle, has_gpus, placed, require
from framegrove.cluster.session import Cluster
from framegrove.config.base import absolute
from framegrove.config.train import MODEL, RAY_STATE, SHIPPED, DataConfig, TrainConfig
from framegrove.errors import UserError
from framegrove.training import checkpoint
from framegrove.training.engine import DeepSpeedEngine, Parts
from framegrove.training.loop import Hooks, Point
from framegrove.training.plan import check_fits, model_of
from framegrove.training.run import Setup, train_to_the_end
from framegrove.training.status import StatusFile

_log = logging.getLogger(__name__)


class TrainingFailed(Exception):
    """The workers failed again and again: machines, or this code. No UserError, so the cause's traceback is shown."""


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

    Continues where an earlier run in ``out`` stopped. After a worker has failed, all are started again, ``failures``
    times at most. ``out`` and the data must be at the same path on every machine.

    Raises UserError, before anything is written, for what does not fit together, NoRoom where the cluster has no room,
    UserError and its kin (DataError, TrainingDiverged) as soon as a worker does, and TrainingFailed.
    """
    config, out = at_absolute_paths(config), out.absolute()
    if any(phase.matrix_learning_rate for phase in config.phases):
        raise UserError(
            "matrix_learning_rate is for the plain engine, ZeRO cuts matrices to pieces: remove it from the phases, or "
            "train with --engine plain"
        )
    setup = Setup.of(config)
    setup.check_workers(workers)
    _check_resumable(out, config, workers)
    gpu = int(has_gpus())
    worker = bundle(Role.TRAIN, num_gpus=gpu)
    require(cluster, [worker] * workers, purpose=f"training with {workers} workers")
    if gpu:
        of_one = ray.remote(_gpu_bytes).options(**placed(Role.TRAIN, num_gpus=gpu)).remote()
        check_fits(config, model_of(config, download=True)[0], workers, ray.get(of_one))
    out.mkdir(parents=True, exist_ok=True)
    StatusFile(out).say(f"waiting for {workers} worker{'s' if workers > 1 else ''} to start")
    trainer = ray.train.torch.TorchTrainer(
        work,
        train_loop_config={"setup": setup, "out": str(out), "threads": threads},
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=bool(gpu), resources_per_worker=worker),
        run_config=RunConfig(
            name=RAY_STATE,
            storage_path=str(out),
            failure_config=FailureConfig(
                max_failures=failures,
                controller_failure_limit=failures,  # type: ignore[call-arg]  # of Train V2
            ),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            callbacks=[*callbacks, EndAtUserErrors()],  # type: ignore[list-item]  # of Train V2
        ),
    )
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "300")  # a busy machine imports for a minute
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        if isinstance(error, ControllerError) and isinstance(error.controller_failure, UserError):
            raise error.controller_failure from None
        raise TrainingFailed(_reason(error)) from error
    return out / MODEL


def _gpu_bytes() -> int:
    """The memory of the GPU that this process was given."""
    return torch.cuda.get_device_properties(0).total_memory


class EndAtUserErrors(ray.train.UserCallback):
    """Ends the run as soon as a worker raises a UserError, which starting the workers again would not mend.

    Ray Train starts workers again whatever they raised, but a ControllerError of a callback ends the run.
    """

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        for rank, error in worker_exceptions.items():
            if isinstance(error, UserError):
                raise ControllerError(error)
            _log.warning("worker %d failed (%s)", rank, _in_one_line(error))


def at_absolute_paths(config: TrainConfig) -> TrainConfig:
    """The configuration for processes that start in other folders."""
    moved = {
        key: absolute(name) for key in ("start", "vae", "encoders") if (name := getattr(config.model, key)) != SHIPPED
    }
    model = config.model.model_copy(update=moved)
    given = config.data
    data = str(Path(given).absolute()) if isinstance(given, str) else tuple(map(_at_absolute_path, given))
    return config.model_copy(update={"data": data, "model": model})


def _at_absolute_path(given: DataConfig) -> DataConfig:
    return given.model_copy(update={"path": str(Path(given.path).absolute())})


def work(given: dict[str, Any]) -> None:
    """What every worker does, from the newest checkpoint on. Raises UserError for what `fit` could not foresee."""
    logs.set_up()
    torch.set_num_threads(given["threads"])
    setup: Setup = given["setup"]
    out = Path(given["out"])
    status = StatusFile(out) if ray.train.get_context().get_world_rank() == 0 else None

    def say(doing: str) -> None:
        if status:
            status.say(doing)

    say("loading the model")
    config, device = setup.config, ray.train.torch.get_device()
    parts = Parts(config.precision, device) if config.zero == 3 else None
    trainable = setup.trainable(parts.take) if parts else setup.trainable()
    say("building DeepSpeed's engine")
    engine = DeepSpeedEngine(trainable, config.precision, device, config.zero, config.sequence_parallel, parts)
    first_step = _resume(engine, setup.config)
    say("reading the first clips")
    latest_losses: dict[str, float] = {}

    def on_step(done: int, loss: float) -> None:
        if status:
            status.step(done)

    def on_point(point: Point) -> None:
        latest_losses.update(point.losses)

    def report(step: int) -> None:
        # Every worker reports its own part; Ray Train copies them into one folder and counts it once all are there.
        with tempfile.TemporaryDirectory(prefix="framegrove-") as folder:
            engine.save(Path(folder))
            if engine.rank == 0:
                checkpoint.describe(Path(folder), step, setup.config, engine.world)
            ray.train.report({"step": step, **latest_losses}, checkpoint=Checkpoint.from_directory(folder))

    metrics = Metrics()
    hooks = Hooks(on_step=on_step, on_point=on_point, on_checkpoint=report, on_speed=metrics.training)
    train_to_the_end(setup, engine, out, first_step, hooks)
    say("finished")


def _check_resumable(out: Path, config: TrainConfig, workers: int) -> None:
    """Raise UserError where ``out`` holds checkpoints of another run.

    A folder that Ray Train was still copying when the run was killed is not among its checkpoints and has no say here.
    """
    for held in sorted((out / RAY_STATE).glob(f"checkpoint_*/{checkpoint.RUN}"), reverse=True):
        try:
            json.loads(held.read_text(encoding="utf-8"))
        except ValueError:
            continue
        checkpoint.step_of(held.parent, config, workers)
        return


def _resume(engine: DeepSpeedEngine, config: TrainConfig) -> int:
    """Load the newest checkpoint if there is one; returns the steps it has done."""
    newest = ray.train.get_checkpoint()
    if newest is None:
        return 0
    with newest.as_directory() as folder:
        engine.load(Path(folder))
        return checkpoint.step_of(Path(folder), config, engine.world)


def _reason(error: ray.train.TrainingFailedError) -> str:
    """What ended the run, in one sentence; the traceback of the worker is in the message of ``error`` itself."""
    failures: dict[int, Exception] = getattr(error, "worker_failures", {})
    if not failures:
        return f"training failed in Ray Train's controller: {_in_one_line(error)}"
    rank = min(failures)
    return f"worker {rank} failed again after every restart, the last time with {_in_one_line(failures[rank])}"


def _in_one_line(error: BaseException) -> str:
    """Kind and last line of an error: messages of Ray's are long, and what happened stands at their end."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return ": ".join([type(error).__name__, *lines[-1:]])
