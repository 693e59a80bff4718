"""VBench's scoring in Ray tasks, with a stand-in for VBench in their environment: a task for each dimension."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from framegrove.evaluation.vbench import read_results, read_suite
from framegrove.media.writing import encode_mp4
from jobs.console import Display
from jobs.evaluations import vbench_scoring
from jobs.evaluations.vbench_scoring import Scoring
from tests.unit.test_benchmarks_job import save_weights
from tests.unit.test_vbench import suite

if TYPE_CHECKING:
    from framegrove.cluster.session import Cluster

pytestmark = pytest.mark.timeout(300)


def test_a_task_for_each_dimension(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    packages = tmp_path / "packages"
    packages.mkdir()
    (packages / "vbench.py").write_text("from tests.fakes import FakeVBench as VBench\n")
    root = Path(__file__).resolve().parents[2]
    places = {"env_vars": {"PYTHONPATH": f"{packages}:{root / 'platform'}:{root}"}}
    monkeypatch.setattr(vbench_scoring, "environment", lambda dimension, weights: places)
    videos = tmp_path / "videos"
    videos.mkdir()
    (videos / "a bird-0.mp4").write_bytes(encode_mp4(np.zeros((9, 32, 32, 3), np.uint8), 8))
    scoring = Scoring(videos, read_suite(suite(tmp_path)), tmp_path / "out")
    dimensions = ["color", "object_class"]
    with Display() as display:
        weights = save_weights(tmp_path / "weights", dimensions)
        vbench_scoring.score_by_vbench(scoring, suite(tmp_path), dimensions, weights, display)
    assert read_results(tmp_path / "out") == {"color": 0.05, "object_class": 0.12}
    assert scoring.missing(dimensions) == []
    assert json.loads(scoring.file("color").read_text()) == {"color": [0.05, []]}
