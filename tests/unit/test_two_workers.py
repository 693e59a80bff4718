"""Two workers in one process group: together they make the steps of one process, on clips and on pairs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from framegrove.config.train import TrainConfig
from framegrove.training.engine import DeepSpeedEngine, PlainEngine
from framegrove.training.heldout import measure
from framegrove.training.loop import Hooks, Point, train
from framegrove.training.setup import Setup
from tests.tiny_training import PHASE, make_config, make_pair_world, make_world
from tests.workers import together

WORKERS, CPU = 2, torch.device("cpu")
# The gradients are above the clip, and the eps is not nothing beside them: so the steps of Adam depend on their scale.
ONLY = PHASE | {"name": "only", "units": 3, "steps": 6, "batch": 7, "clip": 0.1, "eps": 1e-3, "ema": 0.2}


def work(rank: int, folder: Path, config: TrainConfig) -> None:
    """One of the workers: trains, and leaves its curve and the averaged weights."""
    setup = Setup.of(config)
    engine = DeepSpeedEngine(setup.trainable(), config.precision, CPU, config.zero)
    points: list[Point] = []
    held_out, feed = [], setup.heldout_feed(rank, WORKERS)
    assert feed is not None

    def on_point(point: Point) -> None:
        points.append(point)
        held_out.append(measure(engine, feed, 0, setup.schedule.stages, config.phases[0].units))

    train(config, engine, setup.feed(rank, WORKERS), setup.schedule.stages, Hooks(on_point=on_point))
    curve = [(point.losses["loss"], point.gradient_norm) for point in points]
    left = {"curve": curve, "held_out": held_out, "weights": engine.averaged_weights()}
    torch.save(left, folder / f"{rank}.pt")


def of_clips(folder: Path, **changes: Any) -> TrainConfig:
    return make_config(make_world(folder, heldout=6), phases=[ONLY | {"pack_tokens": 100}], **changes)


def of_pairs(folder: Path, **changes: Any) -> TrainConfig:
    """As many pairs as clips; every worker makes a pass of the model of step 0, too."""
    make_pair_world(folder, heldout=6)
    objective = {"stage_weights": [1, 1, 1], "preference": {"kind": "prefer", "beta": 50.0}}
    data = [{"path": str(folder / name), "weight": 1.0} for name in ("clips", "pairs")]
    phases = [ONLY | {"pack_tokens": 200, "objective": objective}]
    return make_config(folder, data=data, model={"start": str(folder / "base")}, phases=phases, **changes)


@pytest.mark.parametrize(("zero", "of"), [(2, of_clips), (3, of_clips), (3, of_pairs)])
def test_two_workers_step_like_one_process(zero: int, of: Callable[..., TrainConfig], tmp_path: Path) -> None:
    """Losses, held-out ones too, gradient norms and averaged weights; they share the same samples out in other passes.

    The held-out loss is measured after every step, of which it leaves no trace.
    """
    config = of(tmp_path, precision="fp32", zero=zero, log_every=1, validate_on=11)
    wait = together(work, (tmp_path, config), WORKERS)
    setup, phase = Setup.of(config), config.phases[0]
    engine = PlainEngine(setup.trainable(), config.precision, CPU)
    engine.module.preference = phase.objective.preference
    averaged = [weight.detach().clone() for weight in engine.parameters]
    curve, feed, passes = [], setup.feed(), set()
    held_out, heldout_feed = [], setup.heldout_feed()
    assert heldout_feed is not None
    for step in range(phase.steps):
        share = feed.at(step)
        passes |= {len(share.packs), *(len(each) for each in setup.plan(step).share_out(WORKERS))}
        found = engine.update(share.packs, share.batch, phase, learning_rate_scale=1.0)
        curve.append((float(torch.cat(found.losses).mean()), found.gradient_norm))
        decay = min(phase.ema, (step + 1) / (10 + step))
        held_out.append(measure(engine, heldout_feed, 0, setup.schedule.stages, phase.units))
        averaged = [
            decay * old + (1 - decay) * new.detach() for old, new in zip(averaged, engine.parameters, strict=True)
        ]
    assert len(passes) > 1
    assert min(norm for _, norm in curve) > phase.clip
    wait()
    left = [torch.load(tmp_path / f"{rank}.pt") for rank in range(WORKERS)]
    for of_rank in left:
        for ours, theirs in zip(curve, of_rank["curve"], strict=True):
            assert ours == pytest.approx(theirs, rel=1e-4)
        for mine, other in zip(held_out, of_rank["held_out"], strict=True):
            assert mine == pytest.approx(other, rel=1e-5)
    for weight, (name, theirs) in zip(averaged, left[0]["weights"].items(), strict=True):
        torch.testing.assert_close(theirs, weight, atol=1e-5, rtol=0, msg=lambda text, name=name: f"{name}: {text}")
    assert left[1]["weights"] == {}  # only the worker that writes the model holds all of it
