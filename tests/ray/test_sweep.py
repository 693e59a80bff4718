"""A sweep over pyramid stages: two short trainings through the real trainer, sampled, measured, and pictured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from framegrove.cluster.session import Cluster
from jobs import stages, sweep
from tests.tiny import save_tiny
from tests.tiny_training import PHASE, make_config, make_world


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    world = make_world(tmp_path_factory.mktemp("world"))
    given = make_config(world, phases=[PHASE | {"name": "only", "units": 2, "steps": 12}])
    held = given.model_dump(mode="json")
    held["model"]["recipe"] |= {"units": 1, "steps": {"first": [1, 1, 1], "others": [1, 1, 1]}}
    path = world / "sweep.yaml"
    path.write_text(yaml.safe_dump(held))
    return path


def test_stages_are_trained_and_compared(cluster: Cluster, config: Path, tmp_path: Path) -> None:
    arguments = ["--what", "stages", "--stages", "1,2", "--config", str(config), "--prompts", "1"]
    result = CliRunner().invoke(sweep.app, [*arguments, "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    one, two = json.loads((tmp_path / "sweep.json").read_text())
    assert (one["label"], two["label"]) == ("1 stage", "2 stages")
    assert one["flops"] > two["flops"] > 0  # as many steps, half of them on a quarter of the tokens
    assert one["loss"] > 0 < two["loss"]
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "stages-2" / "model" / "framegrove.json").exists()
    ends = [stages.marks(tmp_path / f"stages-{height}")[-1] for height in (1, 2)]
    assert ends[0].flops == pytest.approx(ends[1].flops, rel=0.2), "as nearly equal as whole steps can be"
    for name in ("learning.png", "samples.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_budgets_are_tried_with_the_model_that_is_named(cluster: Cluster, tmp_path: Path) -> None:
    tiny = save_tiny(tmp_path / "tiny")
    arguments = ["--what", "budget", "--budgets", "1x", "--prompts", "1", "--model", str(tiny), "--dtype", "bfloat16"]
    result = CliRunner().invoke(sweep.app, [*arguments, "--generators", "1", "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    (only,) = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert only["label"] == "1x"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--what", "stages", "--stages", "1,9"], "--stages must be numbers from 1 to 6"),
        (["--what", "stages", "--set", "model.start=shipped"], "set model.start=null"),
        (["--what", "budget", "--budgets", "lots"], "a budget is a number"),
        (["--what", "budget", "--model", "nowhere"], "no model folder at nowhere"),
        (["--what", "budget", "--verifier", "nowhere.yaml"], "no configuration file at nowhere.yaml"),
        (["--what", "budget", "--dtype", "half"], "dtype must be 'float32' or 'bfloat16', not 'half'"),
    ],
)
def test_bad_input_is_one_line(config: Path, given: list[str], message: str, tmp_path: Path) -> None:
    arguments = [*given, *(["--config", str(config)] if "stages" in given else [])]
    result = CliRunner().invoke(sweep.app, [*arguments, "--out", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
