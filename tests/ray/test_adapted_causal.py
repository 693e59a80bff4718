"""Searches of chunk-wise causal generators and of remote ones, through the very actors and the job that users run."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import ray
import torch
from ray.util.state import list_objects

from actors.clients import UnitRef
from framegrove.cluster.session import Cluster
from framegrove.flow.sampler import StageLatent
from framegrove.media.writing import decode_mp4
from tests.ray.test_adapted import RED, made
from tests.video_server import FakeVideos, serving

CAUSAL = "kind: causal\nwhere: none\noptions: {model: 'tests.tiny_causal:TinyCausal', window: 1, sinks: 1}\n"


def asked(folder: Path, model: str) -> list[str]:
    (folder / "model.yaml").write_text(model)
    (folder / "panel.yaml").write_text(RED)
    return ["--prompt", "red", "--model", str(folder / "model.yaml"), "--verifier", str(folder / "panel.yaml")]


def test_a_search_over_chunks_is_the_same_on_any_number_of_actors(cluster: Cluster, tmp_path: Path) -> None:
    videos = []
    for generators in ("1", "2"):
        out = tmp_path / generators
        made([*asked(tmp_path, CAUSAL), "--policy", "beam", "--budget", "4x", "--generators", generators], out)
        videos.append((out / "video.mp4").read_bytes())
    assert videos[0] == videos[1]
    frames, fps = decode_mp4(videos[0])
    assert (frames.shape, fps) == ((21, 32, 32, 3), 8)
    report = json.loads((tmp_path / "2" / "report.json").read_text())
    assert {len(each["path"]) for each in report["branches"]} == {1, 2, 3}
    assert any(each["fate"] == "cut" for each in report["branches"])
    assert report["cost"]["total"]["nfe"] > 12, "of more than one sample"


def test_a_search_of_a_remote_server_makes_each_video_once_and_takes_the_best(cluster: Cluster, tmp_path: Path) -> None:
    fake = FakeVideos()
    with serving(fake.app()) as server:
        model = f"kind: remote\nwhere: {server.url}\noptions: {{width: 32, height: 32, frames: 9, fps: 8}}\n"
        made([*asked(tmp_path, model), "--policy", "linear", "--budget", "4x"], tmp_path / "one")
        assert len(fake.asked) == len({each["seed"] for each in fake.asked}) == 4
        fake.failing = dict.fromkeys(range(99), "no memory")
        output = made(
            [*asked(tmp_path, model), "--seed", "9", "--policy", "single", "--generators", "1"],
            tmp_path / "out",
            status=1,
        )
    assert f"the video server at {server.url} did not make the video: no memory" in output
    frames, fps = decode_mp4((tmp_path / "one" / "video.mp4").read_bytes())
    assert (frames.shape, fps) == ((9, 32, 32, 3), 8)
    reddest = max(int(each["seed"]) % 251 for each in fake.asked[:4])
    assert abs(int(np.median(frames[..., 0])) - reddest) < 8
    report = json.loads((tmp_path / "one" / "report.json").read_text())
    assert report["cost"]["total"]["nfe"] == 4, "a budget counts videos"


def test_a_dropped_branch_takes_its_part_of_the_cache_along(cluster: Cluster) -> None:
    unit = StageLatent(0, torch.zeros(1), {"kv/k0": torch.zeros(2**20)})
    kept, dropped = (UnitRef(0, ray.put(unit), ray.put(unit.x.numpy()), None) for _ in range(2))
    latents = {kept.latent.hex(), dropped.latent.hex()}
    assert soon_stored(cluster, latents, latents) == latents
    dropped.drop()
    assert soon_stored(cluster, latents, {kept.latent.hex()}) == {kept.latent.hex()}


def soon_stored(cluster: Cluster, among: set[str], expected: set[str]) -> set[str]:
    """Those of the given objects that this cluster holds, of the several that a machine may have, once they are the
    expected ones: the list that Ray gathers from its processes may lack one while objects of others come and go."""
    deadline = time.monotonic() + 20
    while True:
        listed = list_objects(address=cluster.address, limit=10_000, raise_on_missing_output=False)
        found = among & {each.object_id for each in listed}
        if found == expected or time.monotonic() > deadline:
            return found
        time.sleep(0.1)
