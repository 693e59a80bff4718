"""Preparation as a stream of Ray Data: the same clips as in one process, resumed after the driver is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from framegrove.cluster.session import Cluster
from framegrove.data.schema import LatentClip, from_table, shard_paths
from framegrove.media.writing import encode_mp4
from tests.films import panned, scenery
from tests.public_folder import CLIP_L, T5, write_public_folder
from tests.tiny import save_tiny_verifier
from tests.tiny_training import make_world

ROOT = Path(__file__).resolve().parents[2]
PIPELINE = """
sizes: [[64, 128]]
units: 2
fps: 12
stride: 0.75
motion: {}
duplicates: {}
heldout: 0.3
captions: {required: false}
"""


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The preparation of nine films, of which two are near-duplicates and one is damaged."""
    folder = tmp_path_factory.mktemp("footage")
    for number in range(6):
        (folder / f"{number}.mp4").write_bytes(encode_mp4(panned(scenery(number), 36, 1), 12))
    for number in (0, 3):
        (folder / f"again-{number}.mp4").write_bytes(encode_mp4(panned(scenery(number), 36, 1) // 8 * 8, 12))
    (folder / "torn.mp4").write_bytes((folder / "0.mp4").read_bytes()[:900])
    (folder / "curate.yaml").write_text(PIPELINE)
    vae = make_world(tmp_path_factory.mktemp("world") / "tiny") / "vae"
    films = folder / "films"
    films.mkdir()
    for path in folder.glob("*.mp4"):
        path.rename(films / path.name)
    given = ["--videos", str(films), "--config", str(folder / "curate.yaml"), "--vae", str(vae)]
    return [sys.executable, "-m", "jobs.prepare", *given]


def run(command: list[str], out: Path, cluster: Cluster, *given: str) -> str:
    environment = os.environ | {"RAY_ADDRESS": cluster.address}
    done = subprocess.run(
        [*command, "--out", str(out), *given], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def clips_in(out: Path) -> dict[int, LatentClip]:
    clips = [clip for path in shard_paths(out) for clip in from_table(pq.read_table(path))]
    assert len({clip.id for clip in clips}) == len(clips)
    return {clip.id: clip for clip in clips}


def test_a_cluster_makes_the_clips_of_one_process(command: list[str], cluster: Cluster, tmp_path: Path) -> None:
    said = run(command, tmp_path / "ray", cluster)
    assert "9 of 9 files: " in said
    run(command, tmp_path / "plain", cluster, "--engine", "plain")
    many, one = clips_in(tmp_path / "ray"), clips_in(tmp_path / "plain")
    assert many.keys() == one.keys()
    assert list(many) == list(one)  # in the same order, because duplicates are compared in it
    for number, clip in one.items():
        np.testing.assert_allclose(many[number].latents.astype(float), clip.latents.astype(float), atol=2e-3)
        assert (many[number].source, many[number].split, many[number].start) == (clip.source, clip.split, clip.start)
    rejected = [pq.read_table(tmp_path / out / "rejects.parquet").to_pylist() for out in ("ray", "plain")]
    assert rejected[0] == rejected[1]
    assert len(rejected[0]) == 1 + 2 * 4


@pytest.mark.long
def test_a_driver_that_was_killed_is_gone_on_with(command: list[str], cluster: Cluster, tmp_path: Path) -> None:
    environment = os.environ | {"RAY_ADDRESS": cluster.address}
    journal = tmp_path / "clips" / ".prepare" / "journal.jsonl"
    with subprocess.Popen(
        [*command, "--out", str(tmp_path / "clips"), "--set", "decoders=1"],
        cwd=ROOT, env=environment, stdout=subprocess.DEVNULL,
    ) as driver:  # fmt: skip
        while driver.poll() is None:
            if journal.exists() and journal.read_text().count('"clip"') >= 5:
                driver.kill()
                break
            time.sleep(0.02)
    assert driver.returncode == -signal.SIGKILL
    done = journal.read_text().count('"clip"')
    said = run(command, tmp_path / "clips", cluster)
    assert f"; {24 - done} clips encoded in" in said
    assert len(clips_in(tmp_path / "clips")) == 24
    assert "; 0 clips encoded in" in run(command, tmp_path / "clips", cluster)


def test_captions_and_their_embeddings_are_made_on_the_way(
    command: list[str], cluster: Cluster, tmp_path: Path
) -> None:
    films, vae = (Path(command[command.index(option) + 1]) for option in ("--videos", "--vae"))
    (tmp_path / "films").mkdir()
    for name in ("0.mp4", "1.mp4", "2.mp4"):
        (tmp_path / "films" / name).write_bytes((films / name).read_bytes())
    (tmp_path / "films" / "1.txt").write_text("a scene of mine")
    verifier = save_tiny_verifier(tmp_path / "verifier")
    released = write_public_folder(tmp_path / "released", "miniflux")
    (tmp_path / "curate.yaml").write_text(
        "{sizes: [[64, 128]], units: 2, fps: 12, "
        f"captions: {{model: {verifier}, prompt: where is the red 3, frames: 4, max_tokens: 8}}, "
        f"text: {{model: {released}}}}}"
    )
    given = ["--videos", str(tmp_path / "films"), "--config", str(tmp_path / "curate.yaml"), "--vae", str(vae)]
    run([*command[:3], *given], tmp_path / "clips", cluster)
    clips = clips_in(tmp_path / "clips").values()
    assert len(clips) == 3
    assert [clip.caption for clip in clips].count("a scene of mine") == 1
    assert all(clip.caption for clip in clips)
    embedded = {clip.caption: clip.text for clip in clips}
    for caption, text in embedded.items():
        assert text is not None, caption
        assert text.tokens.shape == (len(caption) + 2, T5)  # its T5 reads letters
        assert text.pooled.shape == (CLIP_L,)


def test_a_mistake_that_a_task_finds_is_one_sentence(command: list[str], cluster: Cluster, tmp_path: Path) -> None:
    environment = os.environ | {"RAY_ADDRESS": cluster.address}
    given = [*command, "--out", str(tmp_path / "clips"), "--set", "stages=[tests.fakes:refuses]"]
    done = subprocess.run(given, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stderr.splitlines()[-1] == "error: nothing is good enough"
    assert "Traceback" not in done.stderr
