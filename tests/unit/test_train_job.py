"""jobs.train and jobs.prepare at the command line: bad input is one line, and nothing is left behind."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from jobs import prepare, train

CONFIG = str(Path(__file__).resolve().parents[2] / "jobs" / "configs" / "digits_sweep.yaml")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--config", "nowhere.yaml"], "no configuration file at nowhere.yaml"),
        (["--config", CONFIG, "--set", "phase=1"], "unknown key 'phase', did you mean 'phases'?"),
        (["--config", CONFIG, "--set", "data=nowhere", "--engine", "plain"], "the data folder nowhere is no folder"),
        (["--config", CONFIG, "--engine", "plain", "--workers", "2"], "not with --workers 2"),
    ],
)
def test_train(given: list[str], message: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(train.app, [*given, "--out", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_run_of_the_other_engine_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "ray").mkdir()
    result = CliRunner().invoke(train.app, ["--config", CONFIG, "--engine", "plain", "--out", str(tmp_path)])
    assert result.exit_code == 1
    assert "holds a run of the other engine (ray/)" in result.stderr


def test_prepare(tmp_path: Path) -> None:
    result = CliRunner().invoke(prepare.app, ["--clips", "2", "--vae", "nowhere", "--out", str(tmp_path / "clips")])
    assert result.exit_code == 1
    assert "nowhere is not a VAE folder" in result.stderr
    assert not (tmp_path / "clips").exists()
