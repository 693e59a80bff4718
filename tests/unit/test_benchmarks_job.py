"""jobs.evaluate on other prompts than those of the digits world, its judges and videos, and public benchmarks."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

from framegrove.digits import world
from framegrove.digits.teacher_features import WIDTH, TeacherFeatures, reference_clips
from framegrove.errors import UserError
from framegrove.evaluation.frechet import Gaussian, frechet_distance
from framegrove.evaluation.vbench import DIMENSIONS, NATIVE, read_suite
from framegrove.media.writing import decode_mp4, encode_mp4
from jobs import evaluate
from jobs.console import Display
from jobs.evaluations import comparing, vbench_scoring
from jobs.evaluations.vbench_scoring import WEIGHTS, Scoring, environment, score_by_fastvideo, score_one
from tests import fakes
from tests.tiny import save_tiny
from tests.unit.test_evalcrafter import ORDER, PUBLISHED
from tests.unit.test_vbench import ENTRIES, SHARES, suite

JUDGES = """
verifiers:
  - {name: red, kind: callable, function: 'tests.fakes:redness'}
  - {name: signals, kind: signals}
"""
PANEL = "verifiers: [{name: inside, kind: callable, function: 'tests.unit.test_judging_job:undecided'}]\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny")


def run(*given: object, status: int = 0) -> Result:
    result = CliRunner().invoke(evaluate.app, [str(each) for each in given])
    assert result.exit_code == status, result.output
    return result


def searches(model: Path, folder: Path, *more: object) -> list[object]:
    (folder / "panel.yaml").write_text(PANEL)
    given = ["--policies", "linear", "--budgets", "1x,2x", "--model", model, "--verifier", folder / "panel.yaml"]
    return [*given, "--cache", folder / "cache", "--out", folder / "out", *more]


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / comparing.LEDGER).read_text().splitlines()[1:]]


def test_vbenchs_prompts_are_made_named_and_scored_as_far_as_can_be(model: Path, tmp_path: Path) -> None:
    dimensions = ["--suite", f"vbench:{suite(tmp_path)}", "--dimension", "temporal_flickering, color", "--seeds", 2]
    said = run(*searches(model, tmp_path, *dimensions))
    out = tmp_path / "out"
    names = [f"{prompt}-{take}.mp4" for prompt in ("In a still frame, a stop sign", "a bird") for take in range(2)]
    for setting in ("single", "linear 2x"):
        assert sorted(path.name for path in (out / "videos" / setting).iterdir()) == sorted(names)
    kept = rows(out)
    assert [(row["prompt_index"], row["take"], row["label"]) for row in kept[:4]] == [
        (0, 0, "single"), (0, 0, "linear 2x"), (0, 1, "single"), (0, 1, "linear 2x"),
    ]  # fmt: skip
    assert "oracle_score" not in kept[0]
    assert kept[0]["dimensions"] == ["temporal_flickering"]
    assert kept[0]["seed"] == kept[1]["seed"] != kept[2]["seed"]
    for row in kept:
        assert (out / row["video"]).is_file()
    result = out / "vbench" / "single" / "temporal_flickering_eval_results.json"
    score, each = json.loads(result.read_text())["temporal_flickering"]
    assert (len(each), score) == (2, pytest.approx(np.mean([one["video_results"] for one in each])))
    assert "not scored: color, which take VBench's weights (--weights DIR) or FastVideo" in " ".join(
        said.output.split()
    )
    found = json.loads((out / comparing.SUMMARY).read_text())
    assert set(found) == {"all", "temporal_flickering", "object_class", "color"}
    again = run(*searches(model, tmp_path, *dimensions))
    assert "8 of 8 videos are there already" in again.output
    assert rows(out) == kept
    run(*searches(model, tmp_path, *dimensions[:-1], 3))
    _, each = json.loads(result.read_text())["temporal_flickering"]
    assert len(each) == 3, "scored anew, with the videos that were added"
    total = run("--totals", f"vbench:{out / 'vbench' / 'single'}")
    assert "temporal flickering" in total.output
    assert "(6 dimensions missing)" in total.output


def test_what_was_killed_goes_on_and_nothing_counts_twice(model: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("a bird\n\n  a red house in the rain \n")
    given = searches(model, tmp_path, "--suite", f"prompts:{tmp_path / 'mine.txt'}")
    run(*given)
    out = tmp_path / "out"
    assert sorted(path.name for path in (out / "videos" / "single").iterdir()) == ["0000.mp4", "0001.mp4"]
    kept = rows(out)
    videos = {path: path.read_bytes() for path in (out / "videos").rglob("*.mp4")}
    lines = (out / comparing.LEDGER).read_text().splitlines(keepends=True)
    (out / comparing.LEDGER).write_text("".join(lines[:3]) + lines[3][:40])  # killed while it wrote the third row
    (out / comparing.SUMMARY).unlink()
    (out / "videos" / "single" / "0001.mp4").write_bytes(b"half a vid")  # and as if the disk had kept only this
    again = run(*given)
    assert "2 of 4 videos are there already" in again.output
    assert rows(out) == kept
    assert {path: path.read_bytes() for path in (out / "videos").rglob("*.mp4")} == videos
    assert "a finished evaluation is in" in run(*given, status=1).stderr
    (tmp_path / "mine.txt").write_text("a bird\nanother house\n")
    other = run(*given, "--seeds", 2, status=1)
    assert "holds results of another evaluation, its prompts is" in other.stderr


def test_judges_apart_are_columns_and_the_oracle_is_one_of_them(model: Path, tmp_path: Path) -> None:
    (tmp_path / "judges.yaml").write_text(JUDGES)
    given = searches(model, tmp_path, "--prompts", 2, "--digits", 1, "--seeds", 2, "--distances")
    said = run(*given, "--held-out", tmp_path / "judges.yaml")
    out = tmp_path / "out"
    kept = rows(out)
    assert len(kept) == 2 * 2 * 2
    for row in kept:
        red = decode_mp4(out / row["video"])[0][..., 0].mean() / 255
        (said_red,) = (score for name, score in row["held_out"].items() if name.startswith("red/"))
        assert said_red == pytest.approx(red, abs=0.02)
        assert row["oracle_score"] is not None
    assert "red" in said.output
    page = (out / "report.html").read_text()
    assert '"judges":["oracle","panel","red","signals"]' in page
    distances = json.loads((out / "distances.json").read_text())
    assert distances["single"]["videos"]["samples"] == [4, 4]
    assert distances["single"]["pictures"]["distance"] > 0
    refused = run(*given, "--held-out", tmp_path / "panel.yaml", status=1)
    assert "the judge held out, inside, is one of the panel" in refused.stderr


def test_a_prompt_that_is_too_long_is_told_before_anything_is_made(model: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text(f"a bird\n{'very ' * 2000}long\n")
    said = run(*searches(model, tmp_path, "--suite", f"prompts:{tmp_path / 'mine.txt'}"), status=1)
    assert "line 2 of" in said.stderr
    assert "characters: shorten it to" in " ".join(said.stderr.split())
    assert not (tmp_path / "out").exists()


def test_two_evaluations_do_not_write_to_one_folder(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with comparing.taken(out):
        said = run(*searches(model, tmp_path, "--prompts", 1), status=1)
    assert f"another evaluation writes to {out}: wait for its end, or give another --out" in said.stderr


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--suite", "prompts:{empty}"], "has no prompts in it: write one a line"),
        (["--suite", "prompts:{none}"], "no prompts can be read from"),
        (["--suite", "vbench:{none}"], "cannot be read: No such file"),
        (["--suite", "vbench:{suite}", "--dimension", "beauty"], "VBench has no dimension 'beauty'"),
        (["--suite", "vbench:{suite}", "--dimension", "scene"], "has no prompts for scene"),
        (
            ["--suite", "vbench:{suite}", "--weights", "{none}"],
            "VBench's weights for subject_consistency are not there",
        ),
        (["--suite", "vbench:{suite}", "--digits", "1"], "--digits applies only to prompts of the digits world"),
        (["--suite", "prompts:{empty}", "--dimension", "scene"], "--dimension is for VBench's suite"),
        (["--dimension", "scene"], "--dimension is for VBench's prompts"),
        (["--suite", "prompts:{suite}", "--weights", "{none}"], "--weights is for VBench's prompts"),
        (["--distances", "--prompts", "1"], "--distances takes 2 videos a setting at least"),
        (["--calibrate", "--cache", "c", "--held-out", "x.yaml"], "--held-out is not for --calibrate"),
        (["--calibrate", "--cache", "c", "--seeds", "2"], "--seeds is not for --calibrate"),
        (["--totals", "vbench:{none}"], "--out is not for --totals"),
    ],
)
def test_what_cannot_be_evaluated(tmp_path: Path, given: Sequence[str], said: str) -> None:
    (tmp_path / "empty").write_text("\n\n")
    places = {"empty": tmp_path / "empty", "none": tmp_path / "none", "suite": suite(tmp_path)}
    result = run(*(word.format(**places) for word in given), "--out", tmp_path / "out", status=1)
    assert said in " ".join(result.stderr.split())
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_totals_of_public_benchmarks(tmp_path: Path) -> None:
    (tmp_path / "scores.json").write_text(json.dumps(SHARES))
    said = run("--totals", f"vbench:{tmp_path / 'scores.json'}").output
    assert all(text in said for text in ("81.72", "84.75", "69.62", "95.00" if "95.00" in said else "85.60"))
    metrics = dict(zip(ORDER, PUBLISHED["Gen2 2023.09"][0], strict=True))
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    assert all(text in run("--totals", f"evalcrafter:{tmp_path / 'metrics.json'}").output for text in ("62.51", "244"))
    assert "--totals takes vbench:RESULTS or" in run("--totals", tmp_path / "scores.json", status=1).stderr
    assert "--out is missing" in run("--prompts", 1, status=1).stderr


# ---- VBench's own scoring


def save_weights(folder: Path, dimensions: Sequence[str] = DIMENSIONS) -> Path:
    for dimension in dimensions:
        for name in WEIGHTS.get(dimension, ()):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).touch()
    return folder


def test_weights_and_environments(tmp_path: Path) -> None:
    assert set(WEIGHTS) | set(NATIVE) == set(DIMENSIONS)
    vbench_scoring.check_weights(save_weights(tmp_path, ["scene", "color"]), ["scene", "color", "temporal_flickering"])
    with pytest.raises(
        UserError, match=r"VBench's weights for dynamic_degree are not there: .*raft-things.pth is missing"
    ):
        vbench_scoring.check_weights(tmp_path, DIMENSIONS[4:5])
    assert environment("scene", Path("w"))["pip"] == list(vbench_scoring.PACKAGES)
    assert vbench_scoring.DETECTRON in environment("color", Path("w"))["pip"]
    assert environment("color", Path("w"))["env_vars"] == {"VBENCH_CACHE_DIR": str(Path("w").absolute())}


def test_a_dimensions_results_appear_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vbench", _module("vbench", VBench=fakes.FakeVBench))
    (tmp_path / ".scene.partial").mkdir()  # of a task that died
    score_one("scene", "suite.json", "videos", str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["scene_eval_results.json"]
    scoring = Scoring(tmp_path, [], tmp_path)
    assert scoring.missing(["scene", "color"]) == ["scene", "color"], "of which videos it is, nobody has noted"
    scoring.done("scene")
    assert scoring.missing(["scene", "color"]) == ["color"]


def _module(name: str, **contents: Any) -> ModuleType:
    module = ModuleType(name)
    module.__dict__.update(contents)
    return module


def test_fastvideo_scores_where_it_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[fakes.FakeEvaluator] = []

    def create(**given: Any) -> fakes.FakeEvaluator:
        made.append(fakes.FakeEvaluator(**given))
        return made[-1]

    monkeypatch.setitem(sys.modules, "fastvideo.eval", _module("fastvideo.eval", create_evaluator=create))
    monkeypatch.setitem(sys.modules, "fastvideo", _module("fastvideo", eval=SimpleNamespace()))
    clip = encode_mp4(np.zeros((9, 32, 32, 3), np.uint8), 8)
    for name in ("a bird-0.mp4", "a bird-1.mp4", "a person swimming-0.mp4"):
        (tmp_path / name).write_bytes(clip)
    prompts = read_suite(suite(tmp_path))
    with Display() as display:
        scoring = Scoring(tmp_path, prompts, tmp_path / "out")
        score_by_fastvideo(scoring, ["color", "motion_smoothness"], display)
    assert scoring.missing(["color", "motion_smoothness"]) == ["motion_smoothness"]
    score, each = json.loads(scoring.file("color").read_text())["color"]
    assert (score, [one["video_results"] for one in each]) == (0.5, [0.25, 0.75])
    assert made[0].asked[0]["auxiliary_info"] == ENTRIES[3]["auxiliary_info"]["color"]


# ---- Fréchet distances by the digits teacher


def test_features_tell_the_worlds_own_clips_from_worse_ones() -> None:
    asked = [world.prompt(500, number, digits=1) for number in range(24)]
    clips = list(reference_clips(asked, 2))
    features = TeacherFeatures()
    real = features.of(clips)
    assert real.pictures.shape == (24 * 9, WIDTH)
    assert real.videos.shape == (24, 2 * WIDTH + 2)
    rng = np.random.default_rng(0)
    others = [world.render(objects, rng, split="heldout", units=2) for objects in asked]
    other = features.of(others)
    torn = features.of([np.concatenate([clip[:, :, ::2], clip[:, :, 1::2]], axis=2) for clip in others])
    still = features.of([np.repeat(clip[:1], 9, axis=0) for clip in others])
    blank = features.of([np.zeros_like(clip) for clip in clips])
    assert not blank.pictures.any()

    def apart(some: Any, kind: str) -> float:
        return frechet_distance(Gaussian.of(getattr(some, kind)), Gaussian.of(getattr(real, kind)))

    assert 3 * apart(other, "pictures") < min(apart(torn, "pictures"), apart(blank, "pictures"))
    assert apart(still, "videos") > 3 * apart(other, "videos")
