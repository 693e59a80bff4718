"""Training on a cluster: two workers, one of them killed, or the driver; what ends a run at once; and no room."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import ray.train
import yaml
from ray.util.state import list_actors

from actors.trainer import TrainingFailed, fit
from framegrove.cluster.errors import NoRoom
from framegrove.cluster.session import Cluster
from framegrove.data.ingest import DataError
from framegrove.errors import UserError
from framegrove.models.pretrained import load_pipeline
from framegrove.training import curve
from framegrove.training.resume import HISTORY
from framegrove.training.run import run
from framegrove.training.status import StatusReader
from tests.tiny_training import losses_of, make_config, make_world

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def whole(cluster: Cluster, world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    statuses, seen = StatusReader(out), []
    finished = threading.Event()

    def follow() -> None:
        while not finished.wait(0.02):
            status = statuses.news()
            if status is not None:
                seen.append(status.doing)

    follower = threading.Thread(target=follow, daemon=True)
    follower.start()
    fit(make_config(world, zero=1), out, cluster, workers=2)
    finished.set()
    follower.join(timeout=5)
    assert seen[:2] == ["waiting for 2 workers to start", "loading the model"]
    return out


def wait_for_the_second_checkpoint(out: Path) -> None:
    """Until it is being written, and the first one is there."""
    folder, deadline = out / "checkpoints", time.monotonic() + 300
    while not ((folder / "step-0000003").exists() and [*folder.glob(".step-0000006*"), *folder.glob("step-0000006")]):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def kill_a_worker(address: str, out: Path, killed: list[int]) -> None:
    """kill -9 a worker of the run as soon as its second checkpoint is there."""
    wait_for_the_second_checkpoint(out)
    workers = list_actors(address, [("class_name", "=", "RayTrainWorker"), ("state", "=", "ALIVE")])
    killed += [workers[-1].pid]
    os.kill(killed[0], signal.SIGKILL)


def same_run(out: Path, whole: Path) -> None:
    """Equal curves, without a line too many or too few, and weights equal to the bit."""
    assert losses_of(out) == losses_of(whole)
    assert [step for step, _ in losses_of(out)] == [2, 3, 4, 6, 8, 9, 10, 12, 14]
    for name in ("diffusion_transformer/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"):
        assert (out / "model" / name).read_bytes() == (whole / "model" / name).read_bytes()
    load_pipeline(out / "model")


def test_a_run_whose_worker_is_killed_goes_on_along_the_undisturbed_curve(
    cluster: Cluster, world: Path, whole: Path, tmp_path: Path
) -> None:
    config, cut = make_config(world, zero=1), tmp_path / "cut"
    killed: list[int] = []
    killer = threading.Thread(target=kill_a_worker, args=(cluster.address, cut, killed), daemon=True)
    killer.start()
    fit(config, cut, cluster, workers=2)
    killer.join(timeout=1)
    assert killed, "the run was over before a worker could be killed"
    same_run(cut, whole)
    events = [json.loads(line) for line in (cut / HISTORY).read_text().splitlines()]
    assert [event["event"] for event in events] == ["started", "resumed"]
    assert events[1]["step"] in (3, 6)


@pytest.mark.long
def test_a_run_goes_on_with_other_workers_another_stage_and_another_engine(
    cluster: Cluster, world: Path, whole: Path, tmp_path: Path
) -> None:
    """And with more steps: 2 workers of ZeRO 1 had finished it, then one of ZeRO 3, then the plain engine."""
    out = tmp_path / "moved"
    shutil.copytree(whole, out)
    phases = [phase.model_dump(mode="json") for phase in make_config(world).phases]
    phases[2]["steps"] = 8
    fit(make_config(world, zero=3, phases=phases), out, cluster, workers=1)
    phases[2]["steps"] = 10
    run(make_config(world, phases=phases), out)
    assert losses_of(out)[: len(losses_of(whole))] == losses_of(whole)
    assert losses_of(out)[-1][0] == 18
    history = [json.loads(line) for line in (out / HISTORY).read_text().splitlines()]
    assert [(event["event"], event["step"]) for event in history] == [("started", 0), ("resumed", 14), ("resumed", 16)]
    assert history[1]["changes"] == {"phases.2.steps": [6, 8], "zero": [1, 3], "workers": [2, 1]}
    assert history[2]["changes"] == {"phases.2.steps": [8, 10], "zero": [3, 1], "engine": ["deepspeed", "plain"]}


@pytest.mark.long
def test_a_run_whose_driver_is_killed_goes_on_when_it_is_run_again(
    cluster: Cluster, world: Path, whole: Path, tmp_path: Path
) -> None:
    """From the first checkpoint, as the kill damages the second one if it was there already."""
    config, file, cut = make_config(world, zero=1), tmp_path / "config.yaml", tmp_path / "cut"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_unset=True)))
    command = [sys.executable, "-m", "jobs.train", "--config", str(file), "--out", str(cut), "--workers", "2"]
    # As a submitted job is started: its code need not travel, and a path with a space in it is quoted.
    runtime_env = {"py_executable": shlex.quote(sys.executable)}
    submitted = {
        "RAY_ADDRESS": cluster.address,
        "RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps({"runtime_env": runtime_env}),
    }
    with subprocess.Popen(command, cwd=ROOT, env={**os.environ, **submitted}) as driver:
        try:
            wait_for_the_second_checkpoint(cut)
        finally:
            driver.kill()
    workers = [actor.pid for actor in list_actors(cluster.address, [("class_name", "=", "RayTrainWorker")])]
    deadline = time.monotonic() + 60
    while any(map(psutil.pid_exists, workers)) and time.monotonic() < deadline:  # the cluster ends them, too
        time.sleep(0.2)
    for newest in (cut / "checkpoints").glob("step-0000006"):
        os.truncate(newest / "worker-00001-000.safetensors", 1000)
    for unfinished in (cut / "checkpoints").glob(".*.partial"):  # one in which nobody had written a name is young yet
        for path in (*unfinished.iterdir(), unfinished):
            os.utime(path, (0, 0))
    before = curve.read(cut / curve.LINES)
    fit(config, cut, cluster, workers=2)
    same_run(cut, whole)
    after = curve.read(cut / curve.LINES)
    kept = [line for line in after if line in before]  # its times too: no other run writes a line that is equal
    assert 2 <= len(kept) < len(after), "it went on from the first checkpoint or a later one, not from the last"
    assert not list((cut / "checkpoints").glob(".*.partial")), "what the killed run was writing is gone"


class Failures(ray.train.UserCallback):
    """Writes down, in the controller's process, every time that workers fail."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        with self.path.open("a") as file:
            file.write(f"{sorted(type(error).__name__ for error in worker_exceptions.values())}\n")


def test_a_mistake_in_the_data_ends_the_run_at_once(cluster: Cluster, world: Path, tmp_path: Path) -> None:
    """Latents that do not fill their shape are not found before a worker reads them."""
    shutil.copytree(world / "clips", tmp_path / "clips")
    path = tmp_path / "clips" / "1.parquet"
    table = pq.read_table(path)
    short = pa.array([b"00"] * len(table), pa.large_binary())
    pq.write_table(table.set_column(table.schema.names.index("latents"), table.schema.field("latents"), short), path)
    failures = tmp_path / "failures"
    with pytest.raises(DataError, match=r"1\.parquet cannot be read .* holds 1 numbers") as caught:
        fit(
            make_config(world, data=str(tmp_path / "clips")),
            tmp_path / "out",
            cluster,
            workers=2,
            callbacks=[Failures(failures)],
        )
    assert "\n" not in str(caught.value)
    assert len(failures.read_text().splitlines()) == 1


def test_a_defect_is_tried_again_and_then_shown_with_its_traceback(
    cluster: Cluster, world: Path, tmp_path: Path
) -> None:
    (tmp_path / "out" / curve.LINES).mkdir(parents=True)  # no user does that, so no code expects it
    failures = tmp_path / "failures"
    with pytest.raises(TrainingFailed, match=r"worker 0 failed again after every restart.*IsADirectoryError") as caught:
        fit(make_config(world), tmp_path / "out", cluster, failures=1, callbacks=[Failures(failures)])
    assert not isinstance(caught.value, UserError)
    assert failures.read_text().splitlines() == ["['IsADirectoryError']"] * 2
    assert "in train_to_the_end" in "".join(traceback.format_exception(caught.value))


def test_what_cannot_run_is_one_sentence(cluster: Cluster, world: Path, tmp_path: Path) -> None:
    many = int(ray.cluster_resources()["CPU"]) + 1
    batch = [phase.model_dump() | {"batch": 2 * many} for phase in make_config(world).phases]
    with pytest.raises(NoRoom, match=rf"{many} workers.* needs {many} CPU") as caught:
        fit(make_config(world, phases=batch), tmp_path / "out", cluster, workers=many)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="cannot be shared by 7 workers"):
        fit(make_config(world), tmp_path / "out", cluster, workers=7)
    muon = [phase.model_dump() | {"matrix_learning_rate": 0.02} for phase in make_config(world).phases]
    with pytest.raises(UserError, match="matrix_learning_rate is for the plain engine"):
        fit(make_config(world, phases=muon), tmp_path / "out", cluster)
    assert not (tmp_path / "out").exists()
