"""jobs.evaluate --judges: judges held against the oracle over a cache, and against people's choices between videos."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
from click.testing import Result
from typer.testing import CliRunner

from actors.model_files import ModelFiles
from framegrove.config.model import ModelSource
from framegrove.config.verifier import Calibration, VerifierConfig
from framegrove.errors import UserError
from framegrove.evaluation.human_pairs import read_pairs
from framegrove.media.writing import encode_mp4
from framegrove.types import Assessment, Cost, Scored, ScoreWork
from jobs import evaluate
from jobs.evaluations import comparing, judging
from tests.fakes import FakeChatServer
from tests.tiny import save_tiny
from tests.unit.test_endpoint_verifier import brightness_of, served
from tests.unit.test_latent_judge import save_judge_for


def undecided(frames: npt.NDArray[np.uint8], prompt: str) -> float:
    """A judge that never knows."""
    return 0.5


def write_judges(file: Path, *more: str) -> Path:
    entries = [
        "{name: red, kind: callable, function: 'tests.fakes:redness'}",
        "{name: undecided, kind: callable, function: 'tests.unit.test_judging_job:undecided'}",
        *more,
    ]
    file.write_text("verifiers:\n" + "".join(f"  - {entry}\n" for entry in entries))
    return file


def run(*given: object, status: int = 0) -> Result:
    result = CliRunner().invoke(evaluate.app, [str(each) for each in given])
    assert result.exit_code == status, result.output
    return result


def test_judges_are_held_against_the_oracle(tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "tiny")
    latent = save_judge_for(tmp_path / "judge", ModelFiles.read(ModelSource(name=str(model))).latents())
    judges = write_judges(tmp_path / "judges.yaml", f"{{name: latent, kind: latent, latent: {{model: {latent}}}}}")
    searches = ["--policies", "beam", "--budgets", "3x", "--prompts", 2, "--digits", 1, "--model", model]
    given = [
        "--judges",
        judges,
        *searches,
        "--judge",
        "oracle",
        "--cache",
        tmp_path / "cache",
        "--out",
        tmp_path / "out",
    ]
    result = run(*given)
    assert "Judges against the oracle" in result.output
    rows = pq.read_table(tmp_path / "out" / "results.parquet").to_pylist()
    assert {row["judge"] for row in rows} == {"red", "undecided", "latent"}
    assert all(row["flops"] > 0 for row in rows if row["judge"] == "latent")
    assert all(row["chance"] == 0.5 for row in rows if row["judge"] == "undecided")
    by_judge = {name: {(row["prompt"], row["which"], row["assessment"]) for row in rows if row["judge"] == name}
                for name in ("red", "latent")}  # fmt: skip
    assert by_judge["red"] == by_judge["latent"]
    found = json.loads((tmp_path / "out" / "judges.json").read_text())
    assert found["truth"] == "oracle"
    told = {(each["judge"], each["assessment"]): each for each in found["judges"]}
    assert ("red", "all") in told
    whole = told["undecided", "all"]
    assert whole["agreement"]["accuracy"]["mean"] == 0.5
    assert whole["flops"] == 0
    assert whole["agreement"]["verdicts"] == len(by_judge["red"])

    assert "a finished run is in" in run(*given, status=1).output
    again = run(*given, "--overwrite")
    assert "sampled 0 units and gave 0 verdicts" in again.output
    assert pq.read_table(tmp_path / "out" / "results.parquet").to_pylist() == rows


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            ["--judges", "j.yaml"],
            "--judges needs one reference: --cache DIR for the oracle, or --pairs FILE for people",
        ),
        (["--judges", "j.yaml", "--cache", "c", "--pairs", "p.csv"], "--judges needs one reference"),
        (["--judges", "j.yaml", "--pairs", "p.csv", "--prompts", "9"], "--prompts is not for --pairs: leave it out"),
        (["--verifier-speed", "2"], "--verifier-speed is for searches over a cache: add --cache DIR"),
        (["--pairs", "p.csv"], "--pairs is for judges: add --judges FILE"),
        (["--judges", "j.yaml", "--cache", "c", "--calibrate"], "--calibrate is not for --judges"),
        (["--judges", "j.yaml", "--cache", "c", "--suite", "digits-long"], "--judges is not for a suite"),
    ],
)
def test_options_that_do_not_go_together(tmp_path: Path, given: list[str], said: str) -> None:
    assert said in " ".join(run(*given, "--out", tmp_path, status=1).output.split())


def test_judges_leave_an_evaluation_as_it_is(tmp_path: Path) -> None:
    (tmp_path / comparing.LEDGER).write_text("{}")
    said = run("--judges", "j.yaml", "--cache", "c", "--out", tmp_path, status=1).output
    assert "an evaluation is in" in " ".join(said.split())


def video(folder: Path, name: str, red: int) -> str:
    frames = np.zeros((9, 32, 32, 3), np.uint8)
    frames[..., 0] = red
    (folder / name).write_bytes(encode_mp4(frames, 8))
    return name


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for red in (20, 90, 160, 230):
        video(folder, f"{red}.mp4", red)
    return folder


def test_judges_are_held_against_people(videos: Path, tmp_path: Path) -> None:
    """Three choices of four are for the redder video; a tie of the people's says nothing."""
    lines = ["prompt,a,b,choice", "one,20.mp4,90.mp4,b", "one,160.mp4,90.mp4,A", "two,230.mp4,20.mp4,a"]
    lines += ["two,230.mp4,160.mp4,b", "two,20.mp4,90.mp4,tie"]
    (videos / "pairs.csv").write_text("\n".join(lines))
    judges = write_judges(tmp_path / "judges.yaml")
    result = run("--judges", judges, "--pairs", videos / "pairs.csv", "--out", tmp_path / "out")
    assert "Judges against people" in result.output
    found = json.loads((tmp_path / "out" / "judges.json").read_text())
    assert (found["pairs"], found["decided"]) == (5, 4)
    red, undecided = (each["agreement"] for each in found["judges"])
    assert red["accuracy"]["mean"] == 0.75
    assert undecided["accuracy"]["mean"] == undecided["within"]["mean"] == undecided["across"]["mean"] == 0.5
    # Of the prompt one, {90, 160} are better and {20, 90} worse; of two, {230, 160} and {20, 230}.
    assert red["within"]["mean"] == pytest.approx((3.5 + 2.5) / 8)
    # 90 is above 20, level with 90; 160 above three; 230 above three and level with itself.
    assert red["across"]["mean"] == pytest.approx((2.5 + 3 + 3.5 + 3) / 16)
    rows = pq.read_table(tmp_path / "out" / "results.parquet").to_pylist()
    chances = {row["which"].rpartition("/")[2]: row["chance"] for row in rows if row["judge"] == "red"}
    assert chances["230.mp4"] == pytest.approx(230 / 255, abs=0.02)
    assert len([row for row in rows if row["judge"] == "red"]) == 3 + 4  # each video of each prompt once


def prefers_red(asked: Any) -> list[tuple[str, dict[str, float]]]:
    """A model that finds the redder of two videos better, and likes the first place."""
    first, second = brightness_of(asked, 0), brightness_of(asked, -1)
    chance = 1 / (1 + math.exp(-((first - second) / 20 + 1)))
    return [("A", {"A": math.log(chance), "B": math.log(1 - chance)})]


def test_a_judge_that_compares_is_shown_pairs_of_people(videos: Path, tmp_path: Path) -> None:
    lines = ["prompt,a,b,choice", "one,20.mp4,90.mp4,b", "one,160.mp4,90.mp4,a", "two,230.mp4,160.mp4,b"]
    (videos / "two.csv").write_text("\n".join(lines))
    with served(FakeChatServer(prefers_red)) as url:
        judge = f"{{kind: endpoint, name: either, score: {{kind: pairwise}}, endpoint: {{url: '{url}', model: m}}}}"
        judges = write_judges(tmp_path / "judges.yaml", judge)
        run("--judges", judges, "--pairs", videos / "two.csv", "--out", tmp_path / "out")
    found = json.loads((tmp_path / "out" / "judges.json").read_text())["judges"][-1]["agreement"]
    assert found["accuracy"]["mean"] == pytest.approx(2 / 3)
    assert found["within"]["mean"] is None, "it says nothing of one video"
    rows = [row for row in pq.read_table(tmp_path / "out" / "results.parquet").to_pylist() if row["judge"] == "either"]
    assert [row["chance"] > 0.5 for row in rows] == [False, True, True]


def test_a_judge_that_compares_is_held_against_the_oracle_within_siblings(tmp_path: Path) -> None:
    searches = ["--policies", "beam", "--budgets", "3x", "--prompts", 2, "--digits", 1]
    given = [*searches, "--model", save_tiny(tmp_path / "tiny"), "--judge", "oracle", "--cache", tmp_path / "cache"]
    with served(FakeChatServer(prefers_red)) as url:
        judge = f"{{kind: endpoint, name: either, score: {{kind: pairwise}}, endpoint: {{url: '{url}', model: m}}}}"
        judges = write_judges(tmp_path / "judges.yaml", judge)
        run("--judges", judges, *given, "--out", tmp_path / "out")
    rows = pq.read_table(tmp_path / "out" / "results.parquet").to_pylist()
    siblings = Counter(row["group"] for row in rows if row["judge"] == "red")
    compared = Counter(row["group"] for row in rows if row["judge"] == "either")
    assert compared == {group: count for group, count in siblings.items() if count > 1}
    found = json.loads((tmp_path / "out" / "judges.json").read_text())["judges"]
    whole = next(each for each in found if (each["judge"], each["assessment"]) == ("either", "all"))
    assert whole["agreement"]["accuracy"]["mean"] is None


def test_a_latent_judge_is_shown_no_videos(videos: Path, tmp_path: Path) -> None:
    (videos / "one.jsonl").write_text(json.dumps({"prompt": "p", "a": "20.mp4", "b": "90.mp4", "choice": "a"}) + "\n")
    (tmp_path / "judge.json").write_text("{}")
    judges = write_judges(tmp_path / "judges.yaml", f"{{name: latent, kind: latent, latent: {{model: {tmp_path}}}}}")
    result = run("--judges", judges, "--pairs", videos / "one.jsonl", "--out", tmp_path / "out", status=1)
    assert "verifier latent judges latents, and pairs are videos" in result.output


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("x.csv", "prompt,a,b\np,20.mp4,90.mp4\n", "line 2 of .* is no pair: it needs prompt, a, b, choice"),
        ("x.csv", "prompt,a,b,choice\np,20.mp4,90.mp4,c\n", "the choice is 'c', and must be a, b or tie"),
        ("x.csv", "prompt,a,b,choice\np,20.mp4,91.mp4,a\n", "line 2 of .*: there is no video at .*91.mp4"),
        ("x.csv", "prompt,a,b,choice\n", "has no pair in it"),
        ("x.csv", "prompt,a,b,choice\n,20.mp4,90.mp4,a\n", "line 2 of .* has no prompt"),
        ("x.CSV", "prompt,a,b,choice\np,20.mp4,20.mp4,a\n", "line 2 of .* compares .*20.mp4 with itself"),
        ("x.csv", f"prompt,a,b,choice\np,{'x' * 5000},20.mp4,a\n", "line 2 of .*: there is no video at .*xxx"),
        ("x.csv", f"prompt,a,b,choice\n{'x' * 140_000},20.mp4,90.mp4,a\n", "line . of .* is no CSV"),
        ("x.csv", "prompt,a,b,choice\np,20.mp4,90.mp4,tie\n", "nothing but ties"),
        ("x.jsonl", "{\n", "line 1 of .* is no JSON"),
        ("x.jsonl", "[" * 100_000 + "\n", "line 1 of .* is no JSON"),
        ("x.jsonl", "[1]\n", "line 1 of .* is no pair"),
    ],
)
def test_a_faulty_file_of_pairs_is_one_sentence(videos: Path, name: str, text: str, said: str) -> None:
    (videos / name).write_text(text)
    with pytest.raises(UserError, match=said):
        read_pairs(videos / name)
    with pytest.raises(UserError, match="no pairs can be read"):
        read_pairs(videos / "absent.csv")


def test_prompts_of_pairs_may_hold_any_character(videos: Path) -> None:
    row = {"prompt": "a cat\u2028or two\x85run", "a": "red.mp4", "b": "dark.mp4", "choice": "a"}
    row |= {which: file.name for which, file in zip("ab", sorted(videos.glob("*.mp4")), strict=False)}
    (videos / "odd.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    (videos / "odd.csv").write_text(
        f'prompt,a,b,choice\r\n"a cat\nruns",{row["a"]},{row["b"]},b\r\n', encoding="utf-8-sig", newline=""
    )
    assert [pair.prompt for pair in read_pairs(videos / "odd.jsonl")] == [row["prompt"]]
    assert [pair.prompt for pair in read_pairs(videos / "odd.csv")] == ["a cat\nruns"]


def test_a_calibration_counts_and_a_weight_does_not() -> None:
    work = ScoreWork((0,), Assessment.FINAL, "own")
    scored = Scored(work, (("whole", 0.8),), Cost())
    plain = VerifierConfig(name="own", kind="callable", function="a:b")
    assert judging.chance_of(plain, scored) == pytest.approx(0.8)
    assert judging.chance_of(plain.model_copy(update={"weight": 0.0}), scored) == pytest.approx(0.8)
    fitted = Calibration(bias=1.0, slopes={"whole": 2.0})
    calibrated = plain.model_copy(update={"calibration": {Assessment.FINAL: fitted}})
    odds = 1.0 + 2.0 * math.log(0.8 / 0.2)
    assert judging.chance_of(calibrated, scored) == pytest.approx(1 / (1 + math.exp(-odds)))
