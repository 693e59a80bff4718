"""Starting from another run: its newest checkpoint is taken, once, and not the older model in its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from framegrove.config.train import TrainConfig
from framegrove.errors import UserError
from framegrove.models.pretrained import load_pipeline
from framegrove.training.export import export
from framegrove.training.loop import Hooks
from framegrove.training.run import run
from framegrove.training.setup import Setup
from framegrove.training.starting import from_newest
from tests.tiny_training import losses_of, make_config, make_world
from tests.unit.test_training import Stopped, stop_at


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards, and in ``other`` a run that was stopped in mid-phase: its model is of step 4, its checkpoint of 6."""
    folder = make_world(tmp_path_factory.mktemp("world"))
    with pytest.raises(Stopped):
        run(make_config(folder), folder / "other", Hooks(on_step=stop_at(8)))
    return folder


def config_of(world: Path, start: Path | None, **model: Any) -> TrainConfig:
    return make_config(world, model={"start": str(start)} | model)


def same(one: Path, other: Path) -> bool:
    first, second = (load_pipeline(path).transformer.state_dict() for path in (one, other))
    return all(torch.equal(first[name], second[name]) for name in first)


def test_a_run_starts_from_anothers_newest_checkpoint_and_keeps_that_start(world: Path, tmp_path: Path) -> None:
    export(world / "other", tmp_path / "newest")
    assert not same(tmp_path / "newest", world / "other" / "model")
    config, step = from_newest(config_of(world, world / "other"), tmp_path / "out")
    assert (step, config.model.start) == (6, str(tmp_path / "out" / "start"))
    assert same(tmp_path / "out" / "start", tmp_path / "newest")
    loaded = Setup.of(config).pipeline.transformer.state_dict()
    newest = load_pipeline(tmp_path / "newest").transformer.state_dict()
    assert all(torch.equal(loaded[name], newest[name]) for name in newest)
    with pytest.raises(Stopped):
        run(config, tmp_path / "out", Hooks(on_step=stop_at(5)))
    run(make_config(world), world / "other")  # the other one goes on to its end
    again, step = from_newest(config_of(world, world / "other"), tmp_path / "out")
    assert (step, again) == (None, config)
    assert from_newest(config, tmp_path / "out") == (config, None)
    run(again, tmp_path / "out")
    run(config_of(world, tmp_path / "newest"), tmp_path / "undisturbed")
    assert losses_of(tmp_path / "out") == losses_of(tmp_path / "undisturbed")
    (tmp_path / "out").rename(tmp_path / "moved")
    moved, _ = from_newest(again, tmp_path / "moved")
    assert moved.model.start == str(tmp_path / "moved" / "start")


def test_other_starts_are_left_as_they_are(world: Path, tmp_path: Path) -> None:
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    for start in ("shipped", "an/id", str(world / "other" / "model"), str(tmp_path / "empty")):
        config = make_config(world, model={"start": start})
        assert from_newest(config, tmp_path / "out") == (config, None)
    assert from_newest(make_config(world), tmp_path / "out") == (make_config(world), None)
    assert not (tmp_path / "out").exists()


def test_a_damaged_newest_checkpoint_is_named(world: Path, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        run(make_config(world), tmp_path / "other", Hooks(on_step=stop_at(4)))
    (path,) = (tmp_path / "other" / "checkpoints").glob("step-*/worker-*.safetensors")
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(UserError, match=r"step-0000003 is damaged"):
        from_newest(config_of(world, tmp_path / "other"), tmp_path / "out")
    assert not (tmp_path / "out" / "start").exists()
