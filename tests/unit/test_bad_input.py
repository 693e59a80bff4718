"""Bad input to the jobs that make videos: one line that says what was wrong, a failing exit, nothing left behind."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
from typer.testing import CliRunner

from jobs import demo, evaluate, generate, prepare, serve, sweep, train
from tests.tiny import save_tiny

PROMPT = ["--prompt", "a red 3 moves left and right"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--prompt", "  "], "the prompt is empty"),
        (["--prompt", "red " * 5000], "the prompt has 19,999 characters: shorten it"),
        ([*PROMPT, "--size", "64by64"], "not of the form WIDTHxHEIGHT"),
        ([*PROMPT, "--size", "64x72"], "width and height must be multiples of 64"),
        ([*PROMPT, "--size", "4096x4096"], "its sides are 256 at most"),
        ([*PROMPT, "--units", "1000"], "this model makes 1 to 32"),
        ([*PROMPT, "--units", "0"], "this model makes 1 to 32"),
        ([*PROMPT, "--policy", "none", "--budget", "8x"], "a budget of 8x buys nothing"),
        (
            [*PROMPT, "--policy", "single", "--until", "0.9"],
            "single does not stop at a video that is right with",
        ),
        ([*PROMPT, "--policy", "beam", "--set", "until=0.9"], "leave until out, or choose one of linear, dfs, evo"),
        ([*PROMPT, "--set", "budget=9x"], "--set budget has no effect here: give --budget"),
        ([*PROMPT, "--log-level", "loud"], "log level 'loud' is unknown"),
        ([*PROMPT, "--budget", "lots"], "a budget is a number of unsearched samples"),
        ([*PROMPT, "--budget", "0.5x"], "the smallest is 1x"),
        ([*PROMPT, "--image", "nowhere.png"], "the image nowhere.png cannot be read"),
        ([*PROMPT, "--policy", "tof", "--set", "options.tof.width=[2]"], "unknown key 'width', did you mean 'widths'?"),
        ([*PROMPT, "--policy", "dfs", "--set", "options.tof.width=[2]"], "options.tof: unknown key 'width', did you"),
        ([*PROMPT, "--set", "options.fdp.accept=0.5"], "there is no policy 'fdp': choose one of"),
        (["--plan", "--set", "options.dfs.accept=5"], "options.dfs: accept"),
        ([*PROMPT, "--model", "nowhere"], "no model folder at nowhere"),
    ],
)
def test_generate(given: list[str], message: str, model: Path, tmp_path: Path) -> None:
    arguments = given if "--model" in given else [*given, "--model", str(model)]
    result = CliRunner().invoke(generate.app, [*arguments, "--out", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_model_with_a_file_missing_is_named(tmp_path: Path) -> None:
    save_tiny(tmp_path / "model")
    (tmp_path / "model" / "framegrove.json").unlink()
    arguments = [*PROMPT, "--model", str(tmp_path / "model"), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(generate.app, arguments)
    assert result.exit_code == 1
    assert "framegrove.json is missing" in result.stderr


def test_a_file_in_the_way_is_named(model: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    result = CliRunner().invoke(generate.app, [*PROMPT, "--model", str(model), "--out", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert "no folder can be made" in result.stderr
    assert (tmp_path / "out").read_text() == "mine"


def test_a_finished_search_is_not_replaced_in_silence(model: Path, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text("{}")
    given, of_a_model = ["--out", str(tmp_path)], ["--model", str(model)]
    for more, message in (
        ([*PROMPT, *of_a_model], "a finished run is in"),
        (["--resume", *of_a_model], "--model is as it was when the search began: leave it out with --resume"),
        (["--resume", *PROMPT], "--prompt is as it was when the search began"),
        (["--resume"], "there is no interrupted search in"),
        (["--resume", "--overwrite"], "--resume continues a search, and --overwrite starts anew"),
        (
            [*PROMPT, *of_a_model, "--overwrite", "--units", "1000"],
            "this model makes 1 to 32",
        ),  # asked for wrongly, but let past
    ):
        result = CliRunner().invoke(generate.app, [*given, *more])
        assert result.exit_code == 1
        assert message in result.stderr
    assert (tmp_path / "report.json").read_text() == "{}"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--policies", "linear,bees"], "there is no policy 'bees'"),
        (["--policies", ","], "nothing to evaluate"),
        (["--budgets", "1x,many"], "a budget is a number"),
        (["--judge", "oracle"], "the oracle judges only searches over a cache, for a ceiling: add --cache DIR"),
        (["--judge", "nobody"], "there is no judge 'nobody': it is panel or oracle"),
    ],
)
def test_evaluate(given: list[str], message: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(evaluate.app, [*given, "--out", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert message in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--model", "nowhere"], "no model folder at nowhere"),
        (["--dtype", "half"], "dtype must be 'float32' or 'bfloat16', not 'half'"),
        (["--verifier", "nowhere.yaml"], "no configuration file at nowhere.yaml"),
        (["--verifier", "nowhere"], "no verifier at nowhere"),
        (["--set", "wating=3"], "unknown key 'wating', did you mean 'waiting'?"),
    ],
)
def test_serve(given: list[str], message: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(serve.app, [*given, "--folder", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_sweep(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    result = CliRunner().invoke(sweep.app, ["--study", "budget", "--out", str(tmp_path / "file")])
    assert result.exit_code == 1
    assert "no folder can be made" in result.stderr


@pytest.mark.parametrize("job", [prepare, train])
def test_a_folder_that_cannot_be_made_is_named(job: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    config = ["--config", "jobs/configs/digits_demo.yaml"] if job is train else []
    result = CliRunner().invoke(job.app, [*config, "--out", str(tmp_path / "file" / "x" / "y")])
    assert result.exit_code == 1
    assert "no folder can be made" in result.stderr


def test_demo(tmp_path: Path) -> None:
    result = CliRunner().invoke(demo.app, ["--prompt", "", "--out", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert "the prompt is empty" in result.stderr
    assert not (tmp_path / "out").exists()
