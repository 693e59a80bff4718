"""jobs.collect on real actors leaves what it leaves over a cache, and what another one has begun is not begun again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from framegrove.cluster.session import Cluster
from framegrove.data.schema import LatentClip, from_table
from jobs import collect
from tests.tiny import save_tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("collect")
    save_tiny(made / "tiny")
    (made / "panel.yaml").write_text("verifiers: [{name: red, kind: callable, function: 'tests.fakes:redness'}]\n")
    (made / "prompts.txt").write_text("a red 3\na blue 5\na green 2\n")
    return made


def run(folder: Path, out: Path, *more: str) -> dict[str, dict[int, LatentClip]]:
    given = [
        "--prompts",
        str(folder / "prompts.txt"),
        "--model",
        str(folder / "tiny"),
        "--units",
        "3",
        "--budget",
        "6x",
    ]
    given += ["--policy", "tree", "--margin", "0", "--least", "0", "--verifier", str(folder / "panel.yaml")]
    result = CliRunner().invoke(collect.app, [*given, "--out", str(out), *more])
    assert result.exit_code == 0, result.output
    return {name: rows(out / name) for name in ("examples", "pairs")}


def rows(folder: Path) -> dict[int, LatentClip]:
    return {clip.id: clip for path in folder.glob("*.parquet") for clip in from_table(pq.read_table(path))}


def test_actors_leave_what_a_cache_does(cluster: Cluster, folder: Path, tmp_path: Path) -> None:
    alone = ("--generators", "1", "--searches", "1")  # packed with other searches, a unit's last bits are others
    ours = run(folder, tmp_path / "ray", *alone)
    theirs = run(folder, tmp_path / "cache", *alone, "--cache", str(folder / "branches"))
    assert len(ours["examples"]) == 3
    assert ours["pairs"]
    for name, clips in ours.items():
        assert clips.keys() == theirs[name].keys()
        for number, clip in clips.items():
            np.testing.assert_allclose(clip.latents, theirs[name][number].latents, rtol=0.01, atol=0.01)
    lines = [json.loads(line) for line in (tmp_path / "ray/.collect/searches.jsonl").read_text().splitlines()]
    assert all(line["flops"] > 0 and line["seconds"] > 0 for line in lines)
    before = (tmp_path / "ray/pairs/clips-00000.parquet").read_bytes()
    run(folder, tmp_path / "ray", *alone)
    assert (tmp_path / "ray/pairs/clips-00000.parquet").read_bytes() == before
