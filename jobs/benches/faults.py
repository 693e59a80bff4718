"""The bench of faults: what becomes of a training run when processes and machines die, and storage fails.

Every run is the command `jobs.train`, by two workers on a cluster of two machines, both of them on this one. A fault
comes in the middle of it. In the end its loss curve must be that of an undisturbed run, to the last digit: the workers
are as many, and which samples a step has, and their noise, does not depend on what happened before.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from framegrove.errors import UserError

if TYPE_CHECKING:
    import psutil
    import torch

    from framegrove.evaluation.benches import Finding

_ROOT = Path(__file__).resolve().parents[2]
_STEPS, _EVERY = 200, 20  # of a run, and between two of its checkpoints
_AWAY_S = 60.0  # for which storage is gone
_STILL_S = 45.0  # for which a worker stands still
_PATIENCE_S = 600.0
_WAITS = {
    "RAY_health_check_period_ms": "500",  # a dead machine is noticed within seconds
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "120",
}


def faults(device: torch.device, repeats: int) -> list[Finding]:
    """How far the loss curve is from an undisturbed run's after each fault; the arguments are not heeded."""
    from jobs.benches.overhead import Size, prepared

    with tempfile.TemporaryDirectory() as folder, _machines() as machines:
        config = prepared(Path(folder), Size("tiny", layers=1, heads=1, batch=8, steps=_STEPS))
        whole = {engine: _undisturbed(Run(config, Path(folder) / f"whole-{engine}", engine)) for engine in _ENGINES}
        findings = []
        for number, fault in enumerate(FAULTS):
            run = Run(config, Path(folder) / f"run{number}", fault.engine)
            with run:
                fault.strike(run, machines)
            findings.append(_compared(fault, run, whole[fault.engine]))
    return findings


class Run:
    """A run of `jobs.train`: as a context it is started, and its process does not outlive it."""

    def __init__(self, config: Path, out: Path, engine: str) -> None:
        self.config, self.out, self.engine = config, out, engine
        self.log = out.with_suffix(".log")
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Run:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The newest one."""
        assert self._process is not None
        return self._process

    def start(self) -> None:
        """Start the run, or resume it."""
        given = ["--config", str(self.config), "--out", str(self.out), "--engine", self.engine]
        given += ["--set", f"checkpoint_every={_EVERY}"]
        given += ["--workers", "2"] if self.engine == "deepspeed" else []
        with self.log.open("ab") as log:
            command = [sys.executable, "-m", "jobs.train", *given]
            self._process = subprocess.Popen(command, cwd=_ROOT, stdout=log, stderr=log)

    def kill(self) -> None:
        """Kill -9 the command, which is the driver."""
        self.process.kill()
        self.process.wait()

    def finish(self) -> None:
        """Wait for the end. Raises UserError, with what the run has said last, where it is a failure."""
        if self.wait() != 0:
            raise UserError(f"the run in {self.out} did not come to its end: {self._said()}")

    def wait_for(self, step: int) -> None:
        """Until the checkpoint after so many steps is there."""
        self.wait_until(lambda: self._goes_on() and (self.out / "checkpoints" / f"step-{step:07}").exists())

    def wait_for_restart(self) -> None:
        """Until workers have been started anew and load the model."""
        from framegrove.training.status import StatusReader

        statuses = StatusReader(self.out)

        def loads() -> bool:
            news = statuses.news() if self._goes_on() else None
            return news is not None and news.doing == "loading the model"

        self.wait_until(loads)

    def wait(self) -> int:
        """Until the command has ended; its exit status."""
        return self.process.wait(_PATIENCE_S)

    def losses(self) -> list[tuple[int, dict[str, float]]]:
        """The loss curve, without its times."""
        from framegrove.training import curve

        return [(line["step"], line["losses"]) for line in curve.read(self.out / curve.LINES)]

    def starts(self) -> int:
        """How often the run was started or resumed."""
        from framegrove.training.resume import HISTORY

        events = map(json.loads, (self.out / HISTORY).read_text(encoding="utf-8").splitlines())
        return sum(event["event"] in {"started", "resumed"} for event in events)

    def wait_until(self, done: Callable[[], bool]) -> None:
        """Look again and again. Raises UserError, with what the run has said last, when that takes too long."""
        deadline = time.monotonic() + _PATIENCE_S
        while not done():
            if time.monotonic() > deadline:
                raise UserError(f"the run in {self.out} stands still: {self._said()}")
            time.sleep(0.05)

    def _goes_on(self) -> bool:
        if self.process.poll() is not None:
            raise UserError(f"the run in {self.out} was over before its fault: {self._said()}")
        return True

    def _said(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")[-2000:]


class Machines:
    """Two machines of one CPU each, of which the second can be killed and another one take its place."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self._cluster: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        self._second = self._cluster.add_node(num_cpus=1)
        self.address: str = self._cluster.address

    def kill(self) -> None:
        """Kill -9 the second machine's raylet, with which all of its processes end."""
        os.kill(self._second.all_processes["raylet"][0].process.pid, signal.SIGKILL)

    def replace(self) -> None:
        """Let another machine join."""
        self._second = self._cluster.add_node(num_cpus=1)

    def workers(self) -> list[psutil.Process]:
        """The processes that train."""
        import psutil

        raylets = [node.all_processes["raylet"][0].process.pid for node in self._cluster.list_all_nodes()]
        found = []
        for pid in raylets:
            with contextlib.suppress(psutil.NoSuchProcess):
                found += [each for each in psutil.Process(pid).children() if _trains(each)]
        return found

    def close(self) -> None:
        """End them all."""
        self._cluster.shutdown()


def _trains(process: psutil.Process) -> bool:
    import psutil

    try:
        return process.name().startswith("ray::RayTrainW")
    except psutil.NoSuchProcess:
        return False


@contextlib.contextmanager
def _machines() -> Iterator[Machines]:
    from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available

    kept = {name: os.environ.get(name) for name in (*_WAITS, "RAY_ADDRESS", "RAY_AUTH_MODE")}
    os.environ.update(_WAITS)
    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)  # as jobs.train does: both must
    machines = Machines()
    os.environ["RAY_ADDRESS"] = machines.address
    try:
        yield machines
    finally:
        machines.close()
        for name, value in kept.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _worker_killed(run: Run, machines: Machines) -> None:
    run.wait_for(2 * _EVERY)
    machines.workers()[-1].kill()
    run.finish()


def _driver_killed(run: Run, machines: Machines) -> None:
    run.wait_for(2 * _EVERY)
    run.kill()
    run.start()
    run.finish()


def _machine_killed(run: Run, machines: Machines) -> None:
    run.wait_for(2 * _EVERY)
    machines.kill()
    machines.replace()
    run.finish()


def _machine_killed_again(run: Run, machines: Machines) -> None:
    run.wait_for(2 * _EVERY)
    machines.kill()
    machines.replace()
    run.wait_for_restart()
    machines.kill()
    machines.replace()
    run.finish()


def _newest_checkpoint_cut_short(run: Run, machines: Machines) -> None:
    run.wait_for(3 * _EVERY)
    run.kill()
    run.wait_until(lambda: not machines.workers())  # they could write another one
    newest = max((run.out / "checkpoints").glob("step-*"))
    largest = max(newest.iterdir(), key=lambda path: path.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)
    run.start()
    run.finish()


def _storage_gone(run: Run, machines: Machines) -> None:
    run.wait_for(2 * _EVERY)
    away = run.out.with_suffix(".away")
    run.out.rename(away)
    time.sleep(_AWAY_S)
    away.rename(run.out)
    run.finish()


def _disk_full(run: Run, machines: Machines) -> None:
    run.wait_for(2 * _EVERY)
    for worker in machines.workers():
        worker.rlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    if run.wait() == 0:
        raise UserError("the run with a full disk ended well, though it could not write a checkpoint")
    run.start()
    run.finish()


def _worker_stands_still(run: Run, machines: Machines) -> None:
    run.wait_for(2 * _EVERY)
    worker = machines.workers()[-1]
    worker.suspend()
    time.sleep(_STILL_S)
    worker.resume()
    run.finish()


@dataclass(frozen=True)
class Fault:
    """What happens in the middle of a run of this ``engine``; ``strike`` returns once the run has come to its end."""

    name: str
    strike: Callable[[Run, Machines], None]
    engine: str = "deepspeed"


_ENGINES = ("deepspeed", "plain")
FAULTS = (
    Fault("a worker killed", _worker_killed),
    Fault("the driver killed, the command run again", _driver_killed),
    Fault("a machine killed, another joining", _machine_killed),
    Fault("a machine killed, and the one in its place killed during the restart", _machine_killed_again),
    Fault("killed, and the newest checkpoint cut short", _newest_checkpoint_cut_short),
    Fault("the same, plain engine", _newest_checkpoint_cut_short, "plain"),
    Fault(f"the run's folder gone for {_AWAY_S:.0f} s", _storage_gone),
    Fault("a full disk, the command run again", _disk_full),
    Fault(f"a worker that stands still for {_STILL_S:.0f} s", _worker_stands_still),
)


def _undisturbed(run: Run) -> Run:
    with run:
        run.finish()
    return run


def _compared(fault: Fault, run: Run, whole: Run) -> Finding:
    from framegrove.evaluation.benches import Finding

    ours, theirs = run.losses(), whole.losses()
    same_steps = [step for step, _ in ours] == [step for step, _ in theirs]
    far = max(
        (
            abs(loss - other[name])
            for (_, losses), (_, other) in zip(ours, theirs, strict=False)
            for name, loss in losses.items()
        ),
        default=float("inf"),
    )
    what = f"training, {fault.name}: greatest difference from the undisturbed loss curve ({run.starts()} starts)"
    return Finding(what, far if same_steps else float("inf"), "", aim="0", met=same_steps and far == 0)
