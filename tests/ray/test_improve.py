"""jobs.improve as a submitted job on a cluster: stopped in the middle and submitted again, it does nothing twice."""

from __future__ import annotations

import json
import os
import shlex
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.job_submission import JobStatus, JobSubmissionClient

from framegrove.cluster.session import Cluster
from framegrove.models.pretrained import load_pipeline
from tests.tiny import save_tiny
from tests.tiny_training import PHASE

ROOT = Path(__file__).resolve().parents[2]
PANEL = "verifiers: [{name: contrast, kind: callable, function: 'framegrove.verification.examples:contrast'}]\n"
_LIMIT_S = 240.0


def write_config(folder: Path) -> Path:
    """A loop of one round with a tiny model, in which everything has to be done by actors."""
    save_tiny(folder / "tiny")
    (folder / "panel.yaml").write_text(PANEL)
    (folder / "prompts.txt").write_text("a red 3\na blue 5\na green 2\n")
    (folder / "held.txt").write_text("a green 4\na red 7\n")
    objective = {"stage_weights": [1, 1, 1], "preference": {"kind": "prefer", "beta": 100}}
    phase = PHASE | {"name": "learn", "units": 2, "steps": 2, "objective": objective, "images": 0.5}
    config = {
        "rounds": 1,
        "units": 2,
        "verifier": str(folder / "panel.yaml"),
        "collect": {"prompts": str(folder / "prompts.txt"), "policy": "tree", "margin": 0, "least": 0},
        "guard": {
            "prompts": str(folder / "held.txt"),
            "judge": str(folder / "panel.yaml"),
            "varied": 1,
            "same": 2,
            "gain": -1,
        },
        "train": {
            "data": [{"path": f"collected/{name}", "weight": 1.0} for name in ("examples", "pairs")],
            "model": {"start": str(folder / "tiny")},
            "phases": [phase],
            "precision": "fp32",
            "tracking": {"to": "none"},
        },
    }
    path = folder / "improve.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def submitted(jobs: JobSubmissionClient, config: Path, out: Path) -> str:
    environment: dict[str, Any] = yaml.safe_load((ROOT / "jobs/runtime_env.yaml").read_text())
    environment["py_modules"] = [str(ROOT / module) for module in environment["py_modules"]]
    passed_on = {name: os.environ[name] for name in ("DS_ACCELERATOR", "OMP_NUM_THREADS") if name in os.environ}
    command = ["python", "-m", "jobs.improve", "--config", str(config), "--out", str(out), "--generators", "1"]
    return str(
        jobs.submit_job(
            entrypoint=shlex.join(command),
            runtime_env={**environment, "working_dir": str(ROOT), "env_vars": passed_on},
        )
    )


def ended(jobs: JobSubmissionClient, job: str) -> JobStatus:
    deadline = time.monotonic() + _LIMIT_S
    while not (status := jobs.get_job_status(job)).is_terminal():
        assert time.monotonic() < deadline, jobs.get_job_logs(job)
        time.sleep(0.2)
    return status


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


@pytest.mark.long
def test_a_submitted_loop_that_is_stopped_goes_on_and_does_nothing_twice(cluster: Cluster, tmp_path: Path) -> None:
    assert cluster.dashboard_url is not None
    jobs, config, out = JobSubmissionClient(cluster.dashboard_url), write_config(tmp_path), tmp_path / "out"
    searched = out / "round-1/collected/.collect/searches.jsonl"
    first = submitted(jobs, config, out)
    deadline = time.monotonic() + _LIMIT_S
    while not lines(searched):
        assert not jobs.get_job_status(first).is_terminal(), jobs.get_job_logs(first)
        assert time.monotonic() < deadline, jobs.get_job_logs(first)
        time.sleep(0.05)
    jobs.stop_job(first)
    assert ended(jobs, first) is JobStatus.STOPPED
    before = lines(searched)
    second = submitted(jobs, config, out)
    assert ended(jobs, second) is JobStatus.SUCCEEDED, jobs.get_job_logs(second)

    after = lines(searched)
    assert after[: len(before)] == before
    assert sorted(line["key"] for line in after) == sorted({line["key"] for line in after})
    assert len(after) == 3
    for number in (0, 1):
        _, *rows = lines(out / f"round-{number}/guards.jsonl")
        assert sorted(row["prompt"] for row in rows) == [0, 1]
    (report,) = json.loads((out / "report.json").read_text())["rounds"]
    assert report["training"]["steps"] == 2
    assert report["collected"]["pairs"] == sum(len(line["pairs"]) for line in after)
    assert load_pipeline(out).recipe.pyramid.stages == 3
    assert (out / "improved.png").stat().st_size > 10_000
