"""What a run shows of itself: held-out loss, samples, figures in a tracker; and that looking changes nothing."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from framegrove.config.base import ConfigError
from framegrove.config.train import TrainConfig
from framegrove.config.watch import TrackingConfig
from framegrove.errors import UserError
from framegrove.flow.objective import Cell, RivalSample, StageSample
from framegrove.models.flops import layout_flops, layout_tokens
from framegrove.training import checkpoint, curve, heldout, trackers
from framegrove.training.engine import PlainEngine
from framegrove.training.loop import Hooks
from framegrove.training.meter import Meter, peak_flops
from framegrove.training.resume import HISTORY
from framegrove.training.run import run
from framegrove.training.setup import Setup
from tests import fakes
from tests.tiny_training import PHASE, losses_of, make_config, make_world

PROMPTS = ("a red 3 moves left and right", "a blue 5 moves up and down")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"), heldout=8)


def short(world: Path, **changes: Any) -> TrainConfig:
    """Two phases of 3 steps each, watched at steps 2, 4 and 6; four of a batch's samples are held out."""
    phases = [PHASE | {"name": "image", "steps": 3}, PHASE | {"name": "video", "units": 3, "steps": 3}]
    given = {"phases": phases, "checkpoint_every": 2, "validate_on": 12, "precision": "fp32"}
    return make_config(world, **{**given, **changes})


def brightness(prompt: str, frames: Any) -> float:
    """A scorer."""
    assert prompt in PROMPTS
    assert frames.shape == (17, 64, 64, 3)
    return float(frames.mean() / 255)


def refusing(prompt: str, frames: Any) -> float:
    """A scorer that fails."""
    raise RuntimeError("no opinion")


def events_of(out: Path) -> list[dict[str, Any]]:
    return curve.read(out / HISTORY)


@pytest.fixture(scope="module")
def watched(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was watched in every way, and stopped after step 4 in the middle."""

    class Stopped(Exception):
        pass

    def on_step(done: int, loss: float) -> None:
        if done == 5:
            raise Stopped

    out = tmp_path_factory.mktemp("watched")
    samples = {"prompts": PROMPTS, "every": 4, "scorer": "tests.unit.test_watch:brightness"}
    config = short(world, samples=samples, tracking={"to": "tensorboard"}, log_every=1)
    with pytest.raises(Stopped):
        run(config, out, Hooks(on_step=on_step))
    run(config, out)
    return out


def test_watching_changes_nothing(world: Path, watched: Path, tmp_path: Path) -> None:
    run(short(world, log_every=1), tmp_path)
    assert losses_of(tmp_path) == losses_of(watched)
    weights = "model/diffusion_transformer/diffusion_pytorch_model.safetensors"
    assert (tmp_path / weights).read_bytes() == (watched / weights).read_bytes()


def test_what_a_run_does_between_its_steps_is_told(world: Path, tmp_path: Path) -> None:
    told: list[str | int] = []
    hooks = Hooks(on_step=lambda done, loss: told.append(done), on_pause=told.append)
    run(short(world, samples={"prompts": PROMPTS, "every": 4}, checkpoint_every=6), tmp_path, hooks)
    assert told == [
        *(
            "measuring the held-out loss before training",
            1,
            2,
            3,
            "writing the model",
            4,
            "making samples after step 4",
        ),
        *(5, 6, "making samples after step 6", "writing the model"),
    ]


def test_the_held_out_loss_is_of_the_same_samples_every_time(world: Path) -> None:
    config = short(world)
    setup = Setup.of(config)
    engine, feed = PlainEngine(setup.trainable(), "fp32", CPU), setup.heldout_feed()
    assert feed is not None
    first, again = (heldout.measure(engine, feed, 1, 3, 3) for _ in range(2))
    assert first == again
    assert {"loss", "stage0", "stage1", "stage2", "image", "video", "unit1", "unit2"} == set(first)
    assert {int(row) for row in setup.heldout_plan(1).rows_N} <= set(range(8))
    assert all(sample.prompt for pack in feed.at(1).packs for sample in pack)
    other_run = Setup.of(short(world, seed=3))
    assert np.array_equal(other_run.heldout_plan(1).rows_N, setup.heldout_plan(1).rows_N)


def test_the_held_out_loss_is_of_the_averaged_weights(world: Path) -> None:
    setup = Setup.of(short(world))
    engine, feed = PlainEngine(setup.trainable(), "fp32", CPU), setup.heldout_feed()
    assert feed is not None
    before = heldout.measure(engine, feed, 0, 3, 3)
    held = [p.detach().clone() for p in engine.parameters]
    with torch.no_grad():
        for parameter in engine.parameters:
            parameter.add_(1.0)
    assert heldout.measure(engine, feed, 0, 3, 3) == before
    for parameter, value in zip(engine.parameters, held, strict=True):
        assert torch.equal(parameter, value + 1.0)
    for average in engine.averaged:
        average.add_(1.0)
    assert heldout.measure(engine, feed, 0, 3, 3) != before


def test_the_best_checkpoint_goes_by_the_held_out_loss(watched: Path) -> None:
    lines = {line["step"]: line for line in curve.read(watched / curve.LINES)}
    assert [step for step, line in lines.items() if line["held_out"]] == [2, 4, 6]
    for path in (watched / "checkpoints").iterdir():
        about = checkpoint.opened(path).about
        assert about.losses[checkpoint.HELD_OUT] == lines[about.step]["held_out"]["loss"]


def test_the_curve_shows_held_out_losses(watched: Path) -> None:
    by_stage, _ = curve.figure_of(curve.read(watched / curve.LINES)).axes
    drawn = {line.get_label(): line for line in by_stage.lines}
    assert list(drawn["loss, held out"].get_xdata()) == [2, 4, 6]
    assert drawn["loss, held out"].get_color() == drawn["loss"].get_color()


def test_every_line_says_how_fast_it_went(watched: Path) -> None:
    *_, before, last = curve.read(watched / curve.LINES)
    assert set(last["speed"]) == {
        "seconds", "tokens_per_second", "flops_per_second", "mfu", "data_wait", "peak_memory",
    }  # fmt: skip
    assert last["speed"]["mfu"] is None
    assert 0 <= last["speed"]["data_wait"] <= 1
    assert last["speed"]["peak_memory"] > 2**26
    assert before["seconds_left"] > 0 == last["seconds_left"]


def test_a_run_without_held_out_clips_has_no_held_out_loss(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(short(make_world(tmp_path)), out)
    assert not any(line["held_out"] for line in curve.read(out / curve.LINES))
    assert checkpoint.best(out / "checkpoints") is not None
    assert [event["event"] for event in events_of(out)] == ["started"]


def test_a_phase_without_held_out_clips_of_its_length_has_none(
    world: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = heldout.open_heldout([world / "clips"])
    assert held is not None
    held.units_N[:] = 1
    monkeypatch.setattr(heldout, "open_heldout", lambda _: held)
    found = heldout.HeldOut.of(short(world))
    assert found is not None
    assert [clips is None for clips in found.clips] == [False, True]
    assert "phase video has no held-out loss: phase video trains 3 units, the longest clip" in caplog.text


def test_a_run_that_becomes_worse_says_so_once(world: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    phase = PHASE | {"name": "wild", "units": 3, "steps": 8, "learning_rate": 0.3, "ema": 0.1}
    config = short(world, phases=[phase], checkpoint_every=2)
    run(config.model_copy(update={"phases": (config.phases[0].model_copy(update={"steps": 4}),)}), tmp_path)
    run(config, tmp_path)
    started = next(event for event in events_of(tmp_path) if event["event"] == "held-out")
    worse = [event for event in events_of(tmp_path) if event["event"] == "worse"]
    assert len(worse) == 1
    measured = {line["step"]: line["held_out"] for line in curve.read(tmp_path / curve.LINES)}
    assert measured[worse[0]["step"]]["loss"] > 1.01 * started["losses"]["wild"]
    assert "the model has become worse than at its start" in worse[0]["says"]
    assert [record.message for record in caplog.records if "worse" in record.message] == [worse[0]["says"]]


def test_samples_are_strips_with_their_scores(watched: Path) -> None:
    folders = sorted(path.name for path in (watched / "samples").iterdir())
    assert folders == ["reconstructions", "step-0000004", "step-0000006"]
    last = watched / "samples" / "step-0000006"
    entries = json.loads((last / "samples.json").read_text())
    assert [entry["text"] for entry in entries] == list(PROMPTS)
    assert all(0 < entry["score"] < 1 for entry in entries)
    assert entries[0]["picture"] == "00-a-red-3-moves-left-and-right.png"
    with Image.open(last / entries[0]["picture"]) as picture:
        assert picture.size == (9 * 128 + 8 * 2, 128)
    assert len(list((watched / "samples" / "reconstructions").glob("*.png"))) == 4
    told = [event for event in events_of(watched) if event["event"] == "samples"]
    assert [event["step"] for event in told] == [4, 6]


def test_samples_that_fail_do_not_end_the_run(world: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    samples = {"prompts": PROMPTS[:1], "scorer": "tests.unit.test_watch:refusing", "every": 6}
    run(short(world, samples=samples), tmp_path)
    assert (tmp_path / "model").is_dir()
    failed = [event for event in events_of(tmp_path) if event["event"] == "unseen"]
    assert [event["says"] for event in failed] == [
        "no samples after step 6 (RuntimeError: no opinion); training goes on"
    ]
    assert any(record.exc_info for record in caplog.records if record.levelno == logging.WARNING)


def test_a_scorer_that_is_not_there_is_named_before_the_start(world: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the module nowhere cannot be imported"):
        run(short(world, samples={"scorer": "nowhere:score"}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_tensorboard_goes_on_in_the_same_log(watched: Path) -> None:
    log = EventAccumulator(str(watched / "tensorboard"), size_guidance={"images": 0})
    log.Reload()
    lines = curve.read(watched / curve.LINES)
    losses = log.Scalars("train/loss")
    assert [event.step for event in losses] == [1, 2, 3, 4, 5, 6]
    assert [event.value for event in losses] == pytest.approx([line["losses"]["loss"] for line in lines])
    assert [event.step for event in log.Scalars("phase_image/loss")] == [1, 2, 3]
    assert [event.step for event in log.Scalars("held_out/loss")] == [2, 4, 6]
    assert [event.step for event in log.Scalars("train/unit2")][-1] == 6
    assert {event.step for event in log.Images("samples/00")} == {4, 6}
    assert log.Scalars("samples/score")[-1].step == 6
    assert log.Images("reconstructions/03")


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_another_tracker_goes_on_in_the_same_run(
    name: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = fakes.FakeTracking()
    for package, module in service.modules().items():
        monkeypatch.setitem(sys.modules, package, module)
    samples = {"prompts": PROMPTS[:1], "every": 6}
    config = short(world, samples=samples, tracking={"to": name, "project": "films", "name": "first"})
    stop = config.model_copy(update={"phases": config.phases[:1]})
    run(stop, tmp_path)
    run(config, tmp_path)
    assert service.begun == [("films", "first", None), ("films", "first", "run 1")] or service.begun == [
        ("films", "first", None),
        ("films", None, "run 1"),
    ]
    assert [step for step, names in service.figures if "train/loss" in names] == [2, 3, 4, 6]
    assert any("held_out/loss" in names for _, names in service.figures)
    assert (6, "samples/00" if name == "wandb" else "samples-00") in service.pictures
    assert service.ended == 2


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_named_with_its_extra(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UserError, match=rf"package {name} is not installed: .*pip install 'framegrove\[{name}\]'"):
        trackers.check(TrackingConfig.model_validate({"to": name}))


def test_a_tracker_that_cannot_begin_is_a_users_matter(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = ModuleType("wandb")
    monkeypatch.setitem(sys.modules, "wandb", broken)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: object())
    with pytest.raises(UserError, match=r"is wandb, which cannot be begun .*choose tensorboard or none"):
        run(short(world, tracking={"to": "wandb"}), tmp_path)


def test_flops_are_counted_from_exact_tokens(world: Path) -> None:
    setup = Setup.of(short(world))
    module = setup.trainable()
    engine = PlainEngine(module, "fp32", CPU)
    meter = Meter(engine.module)
    clip = torch.zeros(16, 1, 4, 4)
    samples = [
        StageSample("a red 3 moves left and right", (clip, clip), clip, 500.0, clip, Cell(2, 1)),
        StageSample("", (), clip, 500.0, clip, Cell(0, 1)),
        StageSample("", (clip,), clip, 500.0, clip, Cell(1, 2), rival=RivalSample(clip, clip, (0.9, 0.2))),
    ]
    meter.add([samples], waited=0.25)
    shape = module.transformer.config
    lengths = [len(text.tokens_LD) for text in module.text.encode([sample.prompt for sample in samples])]
    unit = (1, 4, 4)
    layouts = [(lengths[0], [unit] * 2, unit), (lengths[1], [], unit)]
    pair = (lengths[2], [unit], unit, 2)
    assert meter.tokens == sum(layout_tokens(shape, *layout) for layout in (*layouts, pair))
    trained = 3 * sum(layout_flops(shape, *layout) for layout in layouts)
    assert meter.flops == trained + (3 + 1) * layout_flops(shape, *pair)  # the reference goes forwards alone
    speed = meter.read(engine)
    assert speed.flops_per_second == pytest.approx(meter.flops / speed.seconds)
    assert speed.data_wait == pytest.approx(0.25 / speed.seconds)
    meter.restart()
    assert (meter.tokens, meter.flops, meter.waited) == (0, 0, 0.0)


@pytest.mark.parametrize(
    ("device", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989.4e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA GeForce RTX 4090", None),
    ],
)
def test_peak(device: str, peak: float | None) -> None:
    assert peak_flops(device) == peak
