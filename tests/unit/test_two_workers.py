"""Two workers in one process group: together they make the steps that one process makes alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from framegrove.config.train import TrainConfig
from framegrove.training.engine import DeepSpeedEngine, PlainEngine
from framegrove.training.heldout import measure
from framegrove.training.loop import Hooks, Point, train
from framegrove.training.setup import Setup
from tests.tiny_training import PHASE, make_config, make_world
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


@pytest.mark.parametrize("zero", [2, 3])
def test_two_workers_step_like_one_process(zero: int, tmp_path: Path) -> None:
    """Losses, held-out ones too, gradient norms and averaged weights; they share the same samples out in other passes.

    The held-out loss is measured after every step, of which it leaves no trace.
    """
    phases, world = [ONLY | {"pack_tokens": 100}], make_world(tmp_path, heldout=6)
    config = make_config(world, phases=phases, precision="fp32", zero=zero, log_every=1, validate_on=11)
    wait = together(work, (tmp_path, config), WORKERS)
    setup, phase = Setup.of(config), config.phases[0]
    engine = PlainEngine(setup.trainable(), config.precision, CPU)
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
