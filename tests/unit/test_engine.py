"""The engines in one process: DeepSpeed steps like plain torch and continues bit for bit from what it saved."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import pytest
import torch

from framegrove.config.train import PhaseConfig, TrainConfig
from framegrove.flow.objective import StageSample, build, choose
from framegrove.flow.schedule import PyramidSchedule
from framegrove.models.pretrained import load_pipeline
from framegrove.models.text_public import PublicTextEncoder
from framegrove.models.transformers import fresh_transformer
from framegrove.training import zero_internals
from framegrove.training.engine import (
    DeepSpeedEngine,
    Parts,
    PlainEngine,
)
from framegrove.training.fragments import Fragments, write
from framegrove.training.loop import Hooks
from framegrove.training.run import run, train_to_the_end
from framegrove.training.setup import Setup
from framegrove.training.step import Trainable
from tests.public_folder import FLUX, write_public_folder
from tests.tiny import tiny_pipeline
from tests.tiny_training import PHASE, losses_of, make_config, make_world

PIPELINE = tiny_pipeline()
PIPELINES = {
    "mmdit": PIPELINE,
    "flux": replace(PIPELINE, transformer=fresh_transformer(FLUX.model_copy(update={"pooled_projection_dim": 16}))),
}
CPU = torch.device("cpu")
CONFIG = TrainConfig.model_validate({"data": "none", "phases": [PHASE | {"name": "only", "units": 3, "steps": 9}]})


pytestmark = pytest.mark.usefixtures("group")


def trainable(kind: str = "mmdit") -> Trainable:
    return Trainable(*copy.deepcopy((PIPELINES[kind].transformer, PIPELINE.text)), train_text=True).train()


def samples_of(step: int) -> list[StageSample]:
    """The batch of a step."""
    schedule = PyramidSchedule(**PIPELINE.recipe.pyramid.model_dump())
    chance = torch.Generator().manual_seed(step)
    clips = [[torch.randn(16, 1, 8, 8, generator=chance) for _ in range(3)] for _ in range(6)]
    choices = choose([(1.0, 1.0, 1.0)] * 6, schedule, CONFIG.phases[0].objective, chance)
    return build(clips, ["a red 3 moves left and right"] * 6, choices, schedule, [chance] * 6)


def steps(
    engine: DeepSpeedEngine | PlainEngine, first: int, last: int, phase: PhaseConfig = CONFIG.phases[0]
) -> list[tuple[float, float]]:
    """Losses and gradient norms of some steps, each in two passes of unequal size."""
    found = []
    for step in range(first, last):
        samples = samples_of(step)
        update = engine.update([samples[:2], samples[2:]], len(samples), phase, learning_rate_scale=0.5)
        found.append((float(torch.cat(update.losses).mean()), update.gradient_norm))
    return found


def test_the_average_is_short_at_first_and_later_as_long_as_the_phase_says() -> None:
    engine = PlainEngine(trainable(), "fp32", CPU)
    phase = CONFIG.phases[0].model_copy(update={"ema": 0.15})
    for step, decay in enumerate((0.1, 0.15, 0.15)):  # of the first update 1 / (9 + 1), of the second less than 2 / 11
        before = [weight.clone() for weight in engine.averaged]
        steps(engine, step, step + 1, phase)
        for average, old, new in zip(engine.averaged, before, engine.parameters, strict=True):
            torch.testing.assert_close(average, decay * old + (1 - decay) * new.detach(), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("kind", "zero"), [("mmdit", 1), ("flux", 3)])
def test_zero_steps_like_plain_torch(kind: str, zero: Literal[1, 3]) -> None:
    plain, spread = PlainEngine(trainable(kind), "fp32", CPU), DeepSpeedEngine(trainable(kind), "fp32", CPU, zero)
    for ours, theirs in zip(steps(plain, 0, 4), steps(spread, 0, 4), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    expected = plain.averaged_weights()
    for name, weight in spread.averaged_weights().items():
        torch.testing.assert_close(weight, expected[name], atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", PIPELINES)
def test_recomputed_activations_change_nothing(kind: str) -> None:
    kept, remade = PlainEngine(trainable(kind), "fp32", CPU), PlainEngine(trainable(kind), "fp32", CPU)
    remade.module.transformer.recompute = True
    for ours, theirs in zip(steps(kept, 0, 2), steps(remade, 0, 2), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    spread = trainable(kind)
    spread.transformer.recompute = True
    found = steps(DeepSpeedEngine(spread, "fp32", CPU, 3), 0, 2)
    for ours, theirs in zip(steps(PlainEngine(trainable(kind), "fp32", CPU), 0, 2), found, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)


def test_a_run_that_loads_in_parts_is_like_one_in_one_piece(tmp_path: Path) -> None:
    config = make_config(make_world(tmp_path), precision="fp32", zero=3)
    setup, parts = Setup.of(config), Parts("fp32", CPU)
    engine = DeepSpeedEngine(setup.trainable(parts.take), "fp32", CPU, 3, parts=parts)
    (tmp_path / "parts").mkdir()
    train_to_the_end(setup, engine, tmp_path / "parts", Hooks())
    run(config, tmp_path / "whole")
    for (_, ours), (_, theirs) in zip(losses_of(tmp_path / "parts"), losses_of(tmp_path / "whole"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    ours, theirs = (load_pipeline(tmp_path / name / "model").transformer.state_dict() for name in ("parts", "whole"))
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], atol=1e-4, rtol=0)


@pytest.mark.parametrize("zero", [1, 3])
def test_frozen_text_encoders_stay_whole(zero: Literal[1, 3], tmp_path: Path) -> None:
    """They are written beside the transformer at the end of a phase, and read in every pass."""
    pipeline = load_pipeline(write_public_folder(tmp_path / "public", "miniflux"), text_dtype=torch.bfloat16)
    before = {name: value.clone() for name, value in pipeline.text.state_dict().items()}
    module = Trainable(pipeline.transformer, pipeline.text, train_text=False).train()
    engine = DeepSpeedEngine(module, "bf16", CPU, zero)
    assert steps(engine, 0, 1)[0][1] > 0
    assert not any(hasattr(parameter, "ds_id") for parameter in pipeline.text.parameters())  # what ZeRO 3 cuts up
    assert all(name.startswith("transformer.") for name in engine.averaged_weights())
    pipeline.text.save(tmp_path)
    saved = PublicTextEncoder.load(tmp_path, torch.bfloat16).state_dict()
    assert saved.keys() == before.keys()
    assert all(torch.equal(saved[name], value) for name, value in before.items())
    module.to("meta")
    assert {value.device.type for value in pipeline.text.state_dict().values()} == {"meta"}


@pytest.mark.parametrize(("zero", "precision"), [(1, "bf16"), (2, "fp32"), (3, "bf16")])
def test_a_loaded_engine_goes_on_to_the_bit(zero: int, precision: str, tmp_path: Path) -> None:
    engine = DeepSpeedEngine(trainable(), precision, CPU, zero)  # type: ignore[arg-type]
    steps(engine, 0, 2)
    held, counts = Fragments(tmp_path, write(tmp_path, 0, engine.fragments())), engine.counts()
    whole = steps(engine, 2, 4)
    assert all(norm > 0 for _, norm in whole)
    loaded = DeepSpeedEngine(trainable(), precision, CPU, zero)  # type: ignore[arg-type]
    loaded.restore(held, counts)
    assert steps(loaded, 2, 4) == whole
    expected = engine.averaged_weights()
    assert expected.keys() == dict(trainable().named_parameters()).keys()
    for name, weight in loaded.averaged_weights().items():
        assert weight.dtype is torch.float32
        assert torch.equal(weight, expected[name])


@pytest.mark.parametrize(("zero", "precision"), [(1, "bf16"), (2, "fp32"), (3, "bf16")])
def test_measured_losses_are_of_the_averages_and_leave_no_trace(zero: int, precision: str) -> None:
    engines = [DeepSpeedEngine(trainable(), precision, CPU, zero) for _ in range(2)]  # type: ignore[arg-type]
    plain = PlainEngine(trainable(), precision, CPU)  # type: ignore[arg-type]
    whole, watched, _ = (steps(engine, 0, 2) for engine in (*engines, plain))
    samples = samples_of(9)
    packs = [samples[:2], samples[2:]]
    found, expected = (torch.cat(engine.losses(packs)).float() for engine in (engines[1], plain))
    torch.testing.assert_close(found, expected, rtol=1e-4 if precision == "fp32" else 0.05, atol=1e-5)
    assert watched + steps(engines[1], 2, 4) == whole + steps(engines[0], 2, 4)
    with torch.no_grad():
        trained = plain.module(samples[:2])
    assert not torch.allclose(trained, expected[:2], rtol=1e-3)


@pytest.mark.parametrize(("zero", "precision"), [(1, "fp32"), (1, "bf16"), (2, "fp32"), (3, "bf16"), (3, "fp32")])
def test_what_is_used_of_deepspeed_beyond_its_public_interface(zero: int, precision: str) -> None:
    """The masters are the float32 weights, the clipping norm takes effect, and no library is compiled."""
    import deepspeed

    engine = DeepSpeedEngine(trainable(), precision, CPU, zero)  # type: ignore[arg-type]
    assert deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] is False
    weights = torch.cat([parameter.detach().flatten() for parameter in trainable().parameters()])
    masters = torch.cat(zero_internals.masters(engine.adamw))
    assert masters.dtype is torch.float32
    # In an order, and with zeros at the end of a part, as DeepSpeed likes.
    assert torch.equal(masters[masters != 0].sort().values, weights[weights != 0].sort().values)
    phase = CONFIG.phases[0].model_copy(update={"learning_rate": 1e-3, "eps": 1.0, "weight_decay": 0.0})
    moved = []
    for clip in (1e-3, 1e-1):  # with so large an eps, Adam's first step is in proportion to the gradient
        fresh = DeepSpeedEngine(trainable(), precision, CPU, zero)  # type: ignore[arg-type]
        before = torch.cat(zero_internals.masters(fresh.adamw)).clone()
        steps(fresh, 0, 1, phase.model_copy(update={"clip": clip}))
        moved.append(float((torch.cat(zero_internals.masters(fresh.adamw)).double() - before.double()).norm()))
    assert moved[1] > 10 * moved[0]


def test_another_deepspeed_is_told_by_what_it_lacks() -> None:
    other = SimpleNamespace(__version__="1.0", ops=SimpleNamespace(__compatible_ops__={}))
    with pytest.raises(RuntimeError, match=r"DeepSpeed 1\.0 no longer lists deepspeed_shm_comm"):
        zero_internals.do_without_shared_memory_library(other)
    with pytest.raises(RuntimeError, match="no longer keeps its clipping norm in clip_grad"):
        zero_internals.set_clip(object(), 1.0)
    with pytest.raises(RuntimeError, match="has its float32 weights in none of fp32_partitioned_groups_flat"):
        zero_internals.masters(object())


def test_the_masters_come_back_when_gathering_the_averages_fails() -> None:
    engine = DeepSpeedEngine(trainable(), "bf16", CPU, 1)
    steps(engine, 0, 2)
    masters = [part.clone() for part in zero_internals.masters(engine.adamw)]
    averages = [part.clone() for part in engine.averaged]
    with pytest.raises(MemoryError), engine._averages_as_masters():
        raise MemoryError
    assert all(map(torch.equal, zero_internals.masters(engine.adamw), masters))
    assert all(map(torch.equal, engine.averaged, averages))
    assert not all(map(torch.equal, masters, averages))
