"""Studies on a cluster, with tiny models: trials side by side, some that fail, a kill, winners that are used."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from typer.testing import CliRunner

from framegrove.cluster.session import Cluster
from framegrove.config.study import HalvingConfig, Parameter, Params, StudyConfig
from framegrove.evaluation.study_results import Trial, Video, read_parquet
from jobs import generate, sweep, train
from jobs.console import Display
from jobs.studies import stages
from jobs.studies.notes import Begun, Notes
from jobs.studies.tuning import Report, Work, carry_out
from tests.tiny import save_tiny
from tests.tiny_training import PHASE, make_config, make_world

ROOT = Path(__file__).resolve().parents[2]
LEFT = ("results.parquet", "report.html", "front.png", "parallel.png", "costs.png")


@pytest.fixture(scope="module")
def searches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of searches with a tiny model and two judges that cost nothing."""
    folder = tmp_path_factory.mktemp("searches")
    save_tiny(folder / "tiny")
    functions = {"redness": "tests.fakes:redness", "contrast": "framegrove.verification.examples:contrast"}
    judges = [{"name": name, "kind": "callable", "function": function} for name, function in functions.items()]
    (folder / "panel.yaml").write_text(yaml.safe_dump({"verifiers": judges}))
    study = {
        "kind": "search",
        "prompts": ["a red 3 moves left and right", "a blue 5 moves up and down"],
        "units": 2,
        "trials": 3,
        "verifier": "panel.yaml",
        "space": {
            "policy": {"choice": ["beam", "linear"]},
            "cap": {"low": 2, "high": 4},
            "panel": {"choice": [["redness"], None]},
            "steps": {"choice": [1, 2]},
        },
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    return folder


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of pyramids in a tiny world."""
    world = make_world(tmp_path_factory.mktemp("world"))
    given = make_config(world, phases=[PHASE | {"name": "only", "units": 2, "steps": 12}])
    held = given.model_dump(mode="json")
    held["model"]["recipe"] |= {"units": 2, "steps": {"first": [1, 1, 1], "others": [1, 1, 1]}}
    (world / "train.yaml").write_text(yaml.safe_dump(held))
    return world


def sweeping(*arguments: object) -> str:
    result = CliRunner().invoke(sweep.app, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    return result.output


def results(out: Path) -> list[Trial]:
    return read_parquet(out / "results.parquet")[1]


def test_searches_share_a_pool_and_their_winners_are_used(cluster: Cluster, searches: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    study = ("--study", searches / "study.yaml", "--model", searches / "tiny", "--generators", 2, "--out", out)
    assert "3 trials: 3 finished" in sweeping(*study)
    assert [trial.number for trial in results(out)] == [1, 2, 3]
    for trial in results(out):
        assert [video.prompt for video in trial.videos] == [0, 1]
        assert all(video.flops > 0 for video in trial.videos)
    assert all((out / name).is_file() for name in LEFT)
    assert not (out / ".tune").exists()
    # More trials add to it, with those that are there as they were.
    before = results(out)
    assert "4 trials: 4 finished" in sweeping(*study, "--trials", 4, "--resume")
    assert results(out)[:3] == before
    winner = min((out / "winners").glob("*.yaml"))
    video = tmp_path / "video"
    arguments = ["--config", str(winner), "--prompt", "a red 3 moves left and right", "--seed", "95000"]
    made = CliRunner().invoke(generate.app, [*arguments, "--units", "2", "--generators", "1", "--out", str(video)])
    assert made.exit_code == 0, made.output
    report = json.loads((video / "report.json").read_text())
    number = int(winner.stem.removeprefix("trial-"))
    first = next(trial for trial in results(out) if trial.number == number).videos[0]
    assert report["cost"]["total"]["flops"] + report["cost"]["total"]["decoding_flops"] == pytest.approx(first.flops)


@pytest.mark.long
def test_pyramids_are_trained_for_the_same_flops(cluster: Cluster, trainings: Path, tmp_path: Path) -> None:
    study: dict[str, Any] = {
        "kind": "pyramid",
        "train": "train.yaml",
        "grid": True,
        "prompts": 1,
        "space": {"stages": {"choice": [1, 2]}},
    }
    (trainings / "stages.yaml").write_text(yaml.safe_dump(study))
    out = tmp_path / "out"
    assert "2 trials: 2 finished" in sweeping("--study", trainings / "stages.yaml", "--out", out)
    one, two = results(out)
    assert one.mean("flops").mean > two.mean("flops").mean > 0  # as many steps, half of them on a quarter of the tokens
    assert one.training_flops == pytest.approx(two.training_flops, rel=0.2), "as nearly equal as whole steps can be"
    assert len(stages.marks(out / "trials" / "0001" / "run")) > 2
    for name in ("learning.png", "samples.png", *LEFT[1:]):
        assert (out / name).is_file()
    winner = min((out / "winners").glob("*.yaml"))
    arguments = ["--config", str(winner), "--engine", "plain", "--out", str(tmp_path / "again")]
    again = CliRunner().invoke(train.app, arguments)
    assert again.exit_code == 0, again.output
    assert (tmp_path / "again" / "model" / "framegrove.json").is_file()


@pytest.mark.long
def test_a_trial_that_fails_is_counted(
    cluster: Cluster, trainings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = {
        "kind": "pyramid",
        "train": "train.yaml",
        "grid": True,
        "prompts": 1,
        "stop": {"after": 0.25, "keep": 0.5},
        "space": {"phases.0.learning_rate": {"choice": [1e-3, 1e-4, 1e30]}, "phases.0.clip": {"choice": [1.0]}},
        "settings": {"most_skipped": 0},
    }
    (trainings / "failing.yaml").write_text(yaml.safe_dump(study))
    out = tmp_path / "out"
    said = sweeping("--study", trainings / "failing.yaml", "--out", out)
    last = results(out)[-1]
    assert last.state == "failed"
    assert last.why in said
    assert last.why in (out / "report.html").read_text()
    assert len([trial for trial in results(out) if trial.state != "failed"]) == 2


def test_a_training_whose_samples_fall_behind_is_stopped(cluster: Cluster, tmp_path: Path) -> None:
    config = StudyConfig(
        kind="pyramid",
        train="train.yaml",
        grid=True,
        prompts=1,
        objectives=("score",),
        stop=HalvingConfig(after=0.25, keep=0.5),
        space={"corruption": Parameter(choice=(0.8, 0.2, 0.9))},
    )
    notes = Notes(tmp_path, {})
    work = Work(config, rising, (), lambda name, params: True, finished, at_once=1)
    with Display() as display:
        carry_out(work, notes, display)
    assert [(each.params["corruption"], each.state) for each in notes.trials] == [
        (0.8, "finished"),
        (0.2, "stopped"),
        (0.9, "finished"),
    ]
    assert notes.trials[1].why == "fell behind after step 20 with a score of 0.050"


def rising(number: int, params: Params, given: tuple[Any, ...], report: Report) -> None:
    """A training whose samples become better, up to a level, in so many marks."""
    for mark in range(1, stages.MARKS + 1):
        report({"mark": mark, "step": 10 * mark, "score": params["corruption"] * mark / stages.MARKS})


def finished(begun: Begun) -> Trial:
    score = begun.params["corruption"] if begun.state == "finished" else 0.0
    video = Video(0, "", score, right=True, motion=1, travel=1, sampling=1, decoding=0, judging=0, wasted=0, seconds=1)
    return Trial(begun.number, begun.params, begun.state or "finished", videos=(video,))


def test_what_is_killed_goes_on_and_counts_once(cluster: Cluster, searches: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "jobs.sweep", "--study", str(searches / "study.yaml"), "--generators", "1"]
    command += ["--model", str(searches / "tiny"), "--out", str(out)]
    environment = os.environ | {"RAY_ADDRESS": cluster.address, "PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as job:
        deadline = time.monotonic() + 240
        while not list(out.glob("trials/*/videos.jsonl")) and time.monotonic() < deadline:
            time.sleep(0.1)
        os.kill(job.pid, signal.SIGKILL)
    begun = [json.loads(line) for line in (out / "trials.jsonl").read_text().splitlines()[1:]]
    assert begun
    assert any("begun" in line for line in begun)
    model = ("--model", searches / "tiny")
    output = sweeping("--study", searches / "study.yaml", "--generators", 1, *model, "--resume", "--out", out)
    assert "resuming: " in output
    found = results(out)
    assert [trial.number for trial in found] == [1, 2, 3]
    assert found[0].params == begun[0]["params"]
    assert all(len(trial.videos) == 2 for trial in found)


def test_a_lost_pool_fails_no_trial(cluster: Cluster, searches: Path, tmp_path: Path) -> None:
    """The actor that all trials share is killed in the middle of the first one's work."""
    out = tmp_path / "out"
    study = ["--study", searches / "study.yaml", "--model", searches / "tiny", "--generators", 1, "--out", out]

    def kill_the_pool() -> None:
        deadline = time.monotonic() + 240
        while not list(out.glob("trials/*/videos.jsonl")) and time.monotonic() < deadline:
            time.sleep(0.02)
        (pool,) = (
            each for each in ray.util.list_named_actors(all_namespaces=True) if each["name"].startswith("study-")
        )
        ray.kill(ray.get_actor(pool["name"], namespace=pool["namespace"]))

    killer = threading.Thread(target=kill_the_pool)
    killer.start()
    result = CliRunner().invoke(sweep.app, list(map(str, study)))
    killer.join()
    assert result.exit_code == 1, result.output
    assert "generators and verifiers were lost" in result.stderr
    assert "failed" not in (out / "trials.jsonl").read_text()
    assert "3 trials: 3 finished" in sweeping(*study, "--resume")
    assert all(len(trial.videos) == 2 for trial in results(out))


def test_what_does_not_fit_is_said_at_once(cluster: Cluster, searches: Path, tmp_path: Path) -> None:
    study = ["--study", str(searches / "study.yaml"), "--model", str(searches / "tiny"), "--out", str(tmp_path)]
    result = CliRunner().invoke(sweep.app, [*study, "--generators", "500"])
    assert result.exit_code == 1
    assert "a study with 500 generators and 2 verifiers needs 502 CPU" in result.stderr
    assert json.loads((tmp_path / "trials.jsonl").read_text())["version"] == 1, "and no trial was begun"
