"""jobs.convert: a run's adapter merged and SD3 Medium converted become whole model folders; bad input is one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from framegrove.models.pretrained import load_pipeline
from framegrove.training.run import run
from jobs import convert
from tests.unit.test_lora import velocities
from tests.unit.test_sd3 import places
from tests.unit.test_tuning import tuned, world

__all__ = ["places", "world"]


def test_an_adapter_is_merged_into_a_whole_model(world: Path, tmp_path: Path) -> None:
    run(tuned(world, {"lora": {"rank": 2}}), tmp_path / "run")
    whole = tmp_path / "models" / "whole"
    result = CliRunner().invoke(convert.app, ["--model", str(tmp_path / "run"), "--out", str(whole)])
    assert result.exit_code == 0, result.stderr
    assert not (whole / "adapter_config.json").exists()
    (world / "base").rename(world / "away")  # it is needed no more
    try:
        with torch.no_grad():
            merged = velocities(load_pipeline(whole).transformer)
    finally:
        (world / "away").rename(world / "base")
    with torch.no_grad():
        assert torch.equal(merged, velocities(load_pipeline(tmp_path / "run").transformer))
        assert not torch.equal(merged, velocities(load_pipeline(world / "base").transformer))
    again = CliRunner().invoke(convert.app, ["--model", str(tmp_path / "run"), "--out", str(whole)])
    assert again.exit_code == 1
    assert again.stderr.count("\n") == 1
    assert "already exists: give another --out" in again.stderr


def test_sd3_medium_is_converted(places: Path, tmp_path: Path) -> None:
    given = ["--model", str(places / "sd3_medium.safetensors"), "--encoders", str(places / "sd3")]
    given += ["--vae", str(places / "world" / "vae"), "--save-as", "bf16", "--out", str(tmp_path / "sd3")]
    result = CliRunner().invoke(convert.app, given)
    assert result.exit_code == 0, result.stderr
    pipeline = load_pipeline(tmp_path / "sd3")
    assert pipeline.variant == "diffusion_transformer"
    assert len(pipeline.text.token_counts(["a red 3"])) == 1


@pytest.mark.parametrize(
    ("model", "message"),
    [("nowhere", "no model folder at nowhere"), ("a/b/c", "no model folder at a/b/c")],
)
def test_what_is_no_model(model: str, message: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(convert.app, ["--model", model, "--out", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert message in result.stderr
    assert not (tmp_path / "out").exists()
