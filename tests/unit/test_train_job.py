"""jobs.train and jobs.prepare at the command line: bad input is one line, and nothing is left behind."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from framegrove.training.curve import Curve, Follower
from framegrove.training.resume import History
from framegrove.training.status import StatusFile, StatusReader
from jobs import prepare, train
from jobs.console import Display

CONFIG = str(Path(__file__).resolve().parents[2] / "jobs" / "configs" / "digits_sweep.yaml")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--config", "nowhere.yaml"], "no configuration file at nowhere.yaml"),
        (["--config", CONFIG, "--set", "phase=1"], "unknown key 'phase', did you mean 'phases'?"),
        (["--config", CONFIG, "--set", "data=nowhere", "--engine", "plain"], "the data folder nowhere is no folder"),
        (["--config", CONFIG, "--engine", "plain", "--workers", "2"], "not with --workers 2"),
        (["--config", CONFIG, "--workers", "8:2"], "--workers must be a number as 4 or a range as 2:8, not '8:2'"),
        (["--config", CONFIG, "--workers", "many"], "not 'many'"),
        ([], "to resume: give its --config"),
    ],
)
def test_train(given: list[str], message: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(train.app, [*given, "--out", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_prepare(tmp_path: Path) -> None:
    result = CliRunner().invoke(prepare.app, ["--clips", "2", "--vae", "nowhere", "--out", str(tmp_path / "clips")])
    assert result.exit_code == 1
    assert "nowhere is not a VAE folder" in result.stderr
    assert not (tmp_path / "clips").exists()


def test_help_explains_every_key_with_its_default() -> None:
    shown = " ".join(CliRunner().invoke(train.app, ["--help"], env={"COLUMNS": "200"}).stdout.split())
    for line in (
        "--set phases.0.learning_rate=1e-4",
        "phases.N.learning_rate (default 0.0001): peak learning rate of AdamW",
        "phases.N.sizes (required): [height, width] in pixels",
        "phases.N.betas (default [0.9, 0.95])",
        "cache_gib (default 4.0)",
        "model.variant (default null)",
        "zero (default 1): ZeRO stage",
        "tracking.to (default tensorboard): tensorboard: OUT/tensorboard",
        "samples.prompts (default []): what the samples should show",
    ):
        assert line in shown
    assert "None" not in shown


def test_a_terminal_shows_what_the_workers_are_doing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Display() as display:
        display.begin("checking the data and the model")
        progress = train._Progress(train._Steps(20, display), Follower(tmp_path), StatusReader(tmp_path), display)
        status = StatusFile(tmp_path)
        for doing in ("waiting for 2 workers to start", "loading the model", "building DeepSpeed's engine"):
            status.say(doing)
            progress.show()
        status.step(5)
        line = {"step": 5, "phase": "image", "losses": {"loss": 0.25}, "learning_rate": 1e-4, "samples_per_second": 12}
        Curve(tmp_path, 0).add(line)
        progress.show()
        progress.show()
        History(tmp_path).add("resumed", 3, "resumed after step 3 with the plain engine")
        progress.show()
        status.say("making samples after step 5")
        progress.show()
        status._step_written = float("-inf")  # a second later
        status.step(6)
        progress.show()
    assert capsys.readouterr().out.splitlines() == [
        "checking the data and the model ...",
        "waiting for 2 workers to start ...",
        "loading the model ...",
        "building DeepSpeed's engine ...",
        "training ...",
        "image 5: loss 0.2500  learning rate 1.00e-04  12 samples/s",
        "resumed after step 3 with the plain engine",
        "making samples after step 5 ...",
        "training ...",
    ]


@pytest.mark.parametrize(("logged", "shown"), [(False, "started\nworse\n"), (True, "started\n")])
def test_a_warning_is_seen_once(logged: bool, shown: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In the log of this process or, where a worker has logged it elsewhere, among the events."""
    with Display() as display:
        events = train._Events(tmp_path, display, logged=logged)
        for event in ("started", "worse"):
            History(tmp_path).add(event, 0, event)
        events.show()
    assert capsys.readouterr().out == shown


def test_a_point_in_one_line() -> None:
    point = {
        "step": 40, "phase": "video", "losses": {"loss": 0.25, "stage0": 0.25, "video": 0.25, "unit1": 0.25},
        "learning_rate": 1e-4, "samples_per_second": 12, "held_out": {"loss": 0.5, "stage0": 0.5},
        "seconds_left": 11_100.0,
        "speed": {
            "tokens_per_second": 5120.0, "flops_per_second": 2.5e12, "mfu": None, "data_wait": 0.02,
            "peak_memory": 3 * 2**29,
        },
    }  # fmt: skip
    start = (
        "video 40: loss 0.2500  stage0 0.2500  video 0.2500  held out 0.5000  learning rate 1.00e-04  12 samples/s  "
    )
    assert train.line_of(point) == start + "5120 tokens/s  2.5 TFLOP/s  waiting 2%  1.5 GiB  3 h 05 min left"
    point["speed"]["mfu"], point["seconds_left"] = 0.41, 95.0  # type: ignore[index]
    assert train.line_of(point) == start + "5120 tokens/s  MFU 41%  waiting 2%  1.5 GiB  95 s left"
