"""Training on a cluster: two workers, one of them killed, or the driver; and no room."""

from __future__ import annotations

import itertools
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import ray
import yaml
from ray.util.state import list_actors

from actors.trainer import fit, read
from framegrove.cluster.errors import NoRoom
from framegrove.cluster.session import Cluster
from framegrove.data.ingest import open_shards, stream
from framegrove.models.pretrained import load_pipeline
from framegrove.training import curve
from tests.tiny_training import losses_of, make_config, make_world

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def whole(cluster: Cluster, world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    fit(make_config(world, zero=1), out, cluster, workers=2)
    return out


def wait_for_the_second_checkpoint(out: Path) -> None:
    """Until it is being written, and the first one is in Ray Train's books, which a second run goes by."""
    books, deadline = out / "ray" / "checkpoint_manager_snapshot.json", time.monotonic() + 300
    while len(list((out / "ray").glob("checkpoint_*/"))) < 2 or not books.exists() or not books.stat().st_size:
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
    with pytest.raises(ValueError, match=r"of a run with --workers 2, not 1"):
        fit(config, cut, cluster, workers=1)


def test_a_run_whose_driver_is_killed_goes_on_when_it_is_run_again(
    cluster: Cluster, world: Path, whole: Path, tmp_path: Path
) -> None:
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
    before = curve.read(cut / curve.LINES)
    fit(config, cut, cluster, workers=2)
    same_run(cut, whole)
    after = curve.read(cut / curve.LINES)
    kept = [line for line in after if line in before]  # its times too: no other run writes a line that is equal
    assert 2 <= len(kept) < len(after), "it went on from the first checkpoint or a later one, not from the last"


def test_ray_data_reads_what_the_plain_reader_reads(cluster: Cluster, world: Path) -> None:
    sizes = {(64, 64)}
    shards = open_shards(world / "clips", sizes)
    plain = itertools.islice(stream(shards, sizes, 0, 1, 2, 5), 30)
    by_ray = itertools.islice(stream(shards, sizes, 0, 1, 2, 5, read), 30)
    for ours, theirs in zip(plain, by_ray, strict=True):
        assert (ours.id, ours.caption, ours.latents.tobytes()) == (theirs.id, theirs.caption, theirs.latents.tobytes())


def test_what_cannot_run_is_one_sentence(cluster: Cluster, world: Path, tmp_path: Path) -> None:
    everything = int(ray.cluster_resources()["CPU"])
    batch = [phase.model_dump() | {"batch": 2 * everything} for phase in make_config(world).phases]
    with pytest.raises(NoRoom, match=rf"{everything} workers .* needs {everything + 1} CPU") as caught:
        fit(make_config(world, phases=batch), tmp_path / "out", cluster, workers=everything)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="cannot be shared by 7 workers"):
        fit(make_config(world), tmp_path / "out", cluster, workers=7)
    muon = [phase.model_dump() | {"matrix_learning_rate": 0.02} for phase in make_config(world).phases]
    with pytest.raises(ValueError, match="matrix_learning_rate is for the plain engine"):
        fit(make_config(world, phases=muon), tmp_path / "out", cluster)
    assert not (tmp_path / "out").exists()
