"""Training on a cluster: workers of Ray Train, each with a DeepSpeed engine.

Every worker runs the same loop as a run in one process does, on its own share of each batch, and goes on from the
newest checkpoint in the run's folder. Checkpoints do not pass through Ray Train, which is left to start workers and to
notice when one is lost. So any number of workers can go on, on any machines that see the folder.

A worker's UserError ends the run at once with its sentence. Anything else, a lost worker or a defect of the code, has
all workers started again from the newest checkpoint, a limited number of times. Where the number of workers is a range,
as many are started as there is room for; when a machine has joined, the run takes it in at its next checkpoint.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
from ray.train import ControllerError, FailureConfig, RunConfig, ScalingConfig

from framegrove import logs
from framegrove.cluster.metrics import Metrics
from framegrove.cluster.placement import Bundle, Role, bundle, fits, has_gpus, placed, require
from framegrove.cluster.session import Cluster
from framegrove.config.base import absolute
from framegrove.config.train import MODEL, RAY_STATE, SHIPPED, DataConfig, TrainConfig
from framegrove.errors import UserError
from framegrove.files import patiently
from framegrove.training.engine import DeepSpeedEngine, Parts
from framegrove.training.loop import Hooks, Point
from framegrove.training.plan import check_fits, model_of
from framegrove.training.run import alone, train_to_the_end
from framegrove.training.setup import Setup
from framegrove.training.status import StatusFile

_log = logging.getLogger(__name__)

_NEVER_S = 1e9
_LEAVING_S = 30.0  # other jobs may hold what is waited for
_NOTICED_S = 25.0  # Ray Train looks every 20 s for the machines that it can count on


class TrainingFailed(Exception):
    """The workers failed again and again: machines, or this code. No UserError, so the cause's traceback is shown."""


def fit(
    config: TrainConfig,
    out: Path,
    cluster: Cluster,
    *,
    workers: int | tuple[int, int] = 1,
    threads: int = 1,
    failures: int = 3,
    callbacks: Sequence[Any] = (),
) -> Path:
    """Train on ``workers`` workers of ``threads`` CPU threads each; the model folder is ``out/model``.

    Two numbers of workers are the least and the most; the batch is shared by as many as there is room for. Continues
    where an earlier run in ``out`` stopped. After a worker has failed, all are started again, ``failures`` times at
    most. ``out`` and the data must be at the same path on every machine.

    Raises UserError, before anything is written, for what does not fit together, NoRoom where the cluster has no room,
    UserError and its kin (DataError, TrainingDiverged, CheckpointFailed) as soon as a worker does, and TrainingFailed.
    """
    config, out = at_absolute_paths(config), out.absolute()
    if any(phase.matrix_learning_rate for phase in config.phases):
        raise UserError(
            "matrix_learning_rate is for the plain engine, ZeRO cuts matrices to pieces: remove it from the phases, or "
            "train with --engine plain"
        )
    setup = Setup.of(config, out)
    least, most = workers if isinstance(workers, tuple) else (workers, workers)
    setup.check_workers(most)
    if least < most and config.sequence_parallel > 1:
        raise UserError(
            f"--workers {least}:{most} with sequence_parallel {config.sequence_parallel}: workers that share samples "
            "must come in whole groups, so give one number"
        )
    gpu = int(has_gpus())
    worker = bundle(Role.TRAIN, num_gpus=gpu)
    require(cluster, [worker] * least, purpose=f"training with {least} workers")
    if gpu:
        of_one = ray.remote(_gpu_bytes).options(**placed(Role.TRAIN, num_gpus=gpu)).remote()
        model, _ = model_of(config, download=True, encodes=setup.encodes)
        check_fits(config, model, least, ray.get(of_one))
    with alone(out):
        waiting = f"{most} worker{'s' if most > 1 else ''}" if least == most else f"{least} to {most} workers"
        StatusFile(out).say(f"waiting for {waiting} to start")
        given = {"setup": setup, "out": str(out), "threads": threads, "most": most, "worker": worker}
        _in_sessions(given, least, failures, callbacks)
    return out / MODEL


def _in_sessions(given: Mapping[str, Any], least: int, failures: int, callbacks: Sequence[Any]) -> None:
    """Have ``work`` done, in a further session whenever one has ended to take in a machine. Raises as `fit` says."""
    most, worker, out = given["most"], given["worker"], Path(given["out"])
    # Where the number is fixed, Ray Train waits for all of them whenever it has to start them again.
    scaling = ScalingConfig(  # type: ignore[call-arg]  # of Train V2
        num_workers=(least, most) if least < most else most,  # type: ignore[arg-type]  # of Train V2
        use_gpu="GPU" in worker,
        resources_per_worker=worker,
        elastic_resize_monitor_interval_s=_NEVER_S,  # the workers end by themselves, at a checkpoint, to become more
    )
    run_config = RunConfig(
        name=RAY_STATE,
        storage_path=str(out),
        failure_config=FailureConfig(
            max_failures=failures,
            controller_failure_limit=-1 if least < most else failures,  # type: ignore[call-arg]  # of Train V2
        ),
        callbacks=[*callbacks, EndAtUserErrors()],  # type: ignore[list-item]  # of Train V2
    )
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    # How long room is waited for. For some seconds Ray Train still counts on a machine that has died; where fewer
    # workers will do, it should then soon count anew.
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "60" if least < most else "300")
    known = set(_machines())
    joined: list[str] | None = []
    try:
        while joined is not None:
            shutil.rmtree(out / RAY_STATE, ignore_errors=True)  # an earlier session's; it would be restored
            trainer = ray.train.torch.TorchTrainer(
                work,  # type: ignore[arg-type]  # of Train V2
                train_loop_config={**given, "known": known},
                scaling_config=scaling,
                run_config=run_config,
            )
            joined = trainer.fit().return_value  # type: ignore[attr-defined]  # of Train V2
            if joined:
                known.update(joined)
                _wait_for_room(worker, most)
    except ray.train.TrainingFailedError as error:
        if isinstance(error, ControllerError) and isinstance(error.controller_failure, UserError):
            raise error.controller_failure from None
        raise TrainingFailed(_reason(error)) from error
    finally:
        shutil.rmtree(out / RAY_STATE, ignore_errors=True)


def _wait_for_room(worker: Bundle, most: int) -> None:
    """Until workers that have just ended have left their places, so that those to be started find all there is."""
    deadline = time.monotonic() + _LEAVING_S
    whole = ray.cluster_resources()
    wanted = {name: min(whole.get(name, 0.0), most * amount) for name, amount in worker.items()}
    while time.monotonic() < deadline:
        free = ray.available_resources()
        if all(free.get(name, 0.0) >= amount for name, amount in wanted.items()):
            return
        time.sleep(0.2)


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


class Newcomers:
    """The machines that have joined since the workers were placed, and have room for one more of them.

    ``known`` are those that Ray Train has had the chance to use already, by their ids; ``worker`` is what one takes.
    """

    def __init__(self, known: Collection[str], worker: Bundle) -> None:
        self._known = set(known)
        self._worker = worker
        self._since: dict[str, float] = {}

    def ready(self, machines: Mapping[str, Mapping[str, float]], now: float) -> list[str]:
        """Those of ``machines`` that have been there long enough, at ``now`` in seconds, for Ray Train to count on.

        Workers that end for a machine sooner would be started again without it.
        """
        self._since = {
            name: self._since.get(name, now)
            for name, room in machines.items()
            if name not in self._known and fits([self._worker], [dict(room)])
        }
        return [name for name, since in self._since.items() if now - since >= _NOTICED_S]


def work(given: dict[str, Any]) -> list[str] | None:
    """What every worker does, from the newest checkpoint on.

    Returns the machines that the run stopped for, to take them in, or None where it is over. Raises UserError for what
    `fit` could not foresee.
    """
    logs.set_up()
    torch.set_num_threads(given["threads"])
    setup: Setup = given["setup"]
    out = Path(given["out"])
    status = StatusFile(out) if ray.train.get_context().get_world_rank() == 0 else None

    def say(doing: str) -> None:
        if status:
            patiently("writing the status", partial(status.say, doing))

    say("loading the model")
    config, device = setup.config, ray.train.torch.get_device()
    parts = Parts(config.precision, device) if config.zero == 3 else None
    trainable = setup.trainable(parts.take) if parts else setup.trainable()
    say("building DeepSpeed's engine")
    engine = DeepSpeedEngine(trainable, config.precision, device, config.zero, config.sequence_parallel, parts)
    say("reading the first clips")
    homes = engine.gathered([ray.get_runtime_context().get_node_id()])
    newcomers = Newcomers({*given["known"], *homes}, given["worker"])
    joined: list[str] = []
    latest_losses: dict[str, float] = {}

    def on_step(steps: int, loss: float) -> None:
        if status:
            patiently("writing the status", partial(status.step, steps))

    def on_point(point: Point) -> None:
        latest_losses.update(point.losses)

    def on_checkpoint(step: int) -> bool:
        ray.train.report({"step": step, **latest_losses})
        if engine.rank == 0 and step < setup.config.steps and engine.world < given["most"]:
            joined[:] = newcomers.ready(_machines(), time.monotonic())
        return bool(engine.most(len(joined)))

    metrics = Metrics()
    hooks = Hooks(
        on_step=on_step, on_pause=say, on_point=on_point, on_checkpoint=on_checkpoint, on_speed=metrics.training
    )
    train_to_the_end(setup, engine, out, hooks)
    say("taking in a machine that has joined" if joined else "finished")
    return joined or None


def _machines() -> dict[str, dict[str, float]]:
    """The resources of every machine of the cluster, by its id."""
    return {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}


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
