"""Training on a cluster: two workers, one of them killed, and no room."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import ray
from ray.util.state import list_actors

from actors.trainer import fit, read
from framegrove.cluster.errors import NoRoom
from framegrove.cluster.session import Cluster
from framegrove.data.ingest import open_shards, stream
from framegrove.models.pretrained import load_pipeline
from tests.tiny_training import losses_of, make_config, make_world


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"))


def kill_a_worker(address: str, out: Path, killed: list[int]) -> None:
    """kill -9 a worker of the run as soon as its second checkpoint is there."""
    while len(list((out / "ray").glob("checkpoint_*/"))) < 2:
        time.sleep(0.05)
    workers = list_actors(address, [("class_name", "=", "RayTrainWorker"), ("state", "=", "ALIVE")])
    killed += [workers[-1].pid]
    os.kill(killed[0], signal.SIGKILL)


def test_a_run_whose_worker_is_killed_goes_on_along_the_undisturbed_curve(
    cluster: Cluster, world: Path, tmp_path: Path
) -> None:
    config, whole, cut = make_config(world, zero=1), tmp_path / "whole", tmp_path / "cut"
    fit(config, whole, cluster, workers=2)
    killed: list[int] = []
    killer = threading.Thread(target=kill_a_worker, args=(cluster.address, cut, killed), daemon=True)
    killer.start()
    model = fit(config, cut, cluster, workers=2)
    killer.join(timeout=1)
    assert killed, "the run was over before a worker could be killed"
    assert losses_of(cut) == losses_of(whole)
    assert [step for step, _ in losses_of(cut)] == [2, 3, 4, 6, 8, 9, 10, 12, 14]
    for name in ("diffusion_transformer/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"):
        assert (model / name).read_bytes() == (whole / "model" / name).read_bytes()
    load_pipeline(model)
    with pytest.raises(ValueError, match=r"of a run with --workers 2, not 1"):
        fit(config, cut, cluster, workers=1)


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
