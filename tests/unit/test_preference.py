"""Learning from pairs: the losses' closed forms, a pair's shared prefix, the reference, and whole runs."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from framegrove.config.flow import PreferenceConfig
from framegrove.config.train import PhaseConfig, TrainConfig
from framegrove.data.ingest import DataError, open_catalog
from framegrove.data.reading import ClipReader
from framegrove.data.schema import from_table, schema_of, table_of
from framegrove.errors import UserError
from framegrove.flow.objective import Cell, Choices, Contender, StageSample, build, sample_losses
from framegrove.flow.preference import contrast, prefer
from framegrove.flow.schedule import PyramidSchedule
from framegrove.models.packed import Prefix, Sample
from framegrove.models.pretrained import load_pipeline
from framegrove.training.engine import PlainEngine
from framegrove.training.loop import Hooks
from framegrove.training.run import run
from framegrove.training.setup import Setup
from framegrove.training.step import Trainable
from tests.tiny_training import PHASE, losses_of, make_config, make_pair_world, pair
from tests.unit.test_engine import CPU
from tests.unit.test_training import Stopped, stop_at

LORA = {"lora": {"rank": 4, "alpha": 8, "targets": ["*"]}}
PREFER = {"kind": "prefer", "beta": 50.0}
CONTRAST = {"kind": "contrast", "beta": 0.5}
CURVES = {"prefer": [0.02741, 0.02679, 0.02804, 0.02401, 0.02361], "contrast": [0.7750, 0.7248, 1.0267, 0.8628, 0.9043]}


def vector(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def test_preferring_is_the_logistic_loss_of_what_was_gained_and_pulls_as_the_errors_do() -> None:
    same = vector(0.3, 0.1)
    torch.testing.assert_close(prefer(same, same, same, same, 50), vector(math.log(2), math.log(2)) / 25)
    # The better one's error fell by 0.2, the worse one's rose by 0.1: -10 / 2 * -0.3 = 1.5.
    (loss,) = prefer(vector(0.5), vector(0.7), vector(0.6), vector(0.5), 10).tolist()
    assert loss == pytest.approx(math.log(1 + math.exp(-1.5)) / 5)
    own, rival = vector(0.5).requires_grad_(), vector(0.6).requires_grad_()
    gradients = torch.autograd.grad(prefer(own, vector(0.5), rival, vector(0.6), 700).sum(), [own, rival])
    assert [gradient.item() for gradient in gradients] == pytest.approx([0.5, -0.5])


@given(chance=st.floats(0, 1), beta=st.floats(0.1, 1), seed=st.integers(0, 99))
def test_what_contrast_pulls_to(chance: float, beta: float, seed: int) -> None:
    """Its minimum is v_ref + (2 r - 1) / beta (u - v_ref): u itself for what is right, as far away for what is not."""
    reference, target = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    best = (reference + (2 * chance - 1) / beta * (target - reference)).requires_grad_(True)
    loss = contrast([best], [reference], [target], vector(chance), beta)
    loss.sum().backward()
    assert best.grad is not None
    torch.testing.assert_close(best.grad, torch.zeros_like(best), atol=1e-6, rtol=0)


def test_contrast_of_what_is_certainly_right_is_flow_matching() -> None:
    v, reference, u = torch.randn(3, 2, 5).unbind(0)
    torch.testing.assert_close(contrast([v], [reference], [u], torch.ones(1), 1.0), sample_losses([v], [u]))


def test_pairs_come_back_from_a_file(tmp_path: Path) -> None:
    pairs = [pair(1), pair(2, units=1, chances=(0.75, 0.5), cut=False)]
    table = table_of(pairs, schema_of("v", made_by="m", pairs=True))
    for given_, back in zip(pairs, from_table(table), strict=True):
        assert given_.rival is not None
        assert back.rival is not None
        assert np.array_equal(given_.rival.latents, back.rival.latents)
        assert back.rival.chances == pytest.approx(given_.rival.chances)
        assert (back.rival.stage, back.rival.cut, back.rival.scores) == (2, given_.rival.cut, given_.rival.scores)
    assert table["depth"].to_pylist() == [2, 0]
    assert table["margin"].to_pylist() == pytest.approx([math.log(9 * 4), math.log(3)], rel=1e-6)
    pq.write_table(table, tmp_path / "clips-00000.parquet")
    catalog = open_catalog([tmp_path])
    assert catalog.pair_N.all()
    assert catalog.shards[0].made_by == "m"
    assert [clip.rival is not None for clip in ClipReader(catalog, 0).read([0, 1])] == [True, True]


def sample_of(unit: int, stage: int, own: Tensor, other: Tensor, history: list[Tensor]) -> StageSample:
    choices = Choices((Cell(unit, stage),), torch.tensor([300]), torch.tensor([0.2]), (False,))
    generators = [torch.Generator().manual_seed(3)]
    rivals = [Contender(other, (0.9, 0.2))]
    (made,) = build([[*history, own]], ["a prompt"], choices, PyramidSchedule(), generators, rivals=rivals)
    return made


@pytest.mark.parametrize("unit", [0, 2])
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_siblings_are_noised_alike(unit: int, stage: int) -> None:
    """What differs between them is what differed between the clean units, at this stage's resolution."""
    torch.manual_seed(unit)
    history = [torch.randn(16, 1, 8, 8) for _ in range(unit)]
    own, other = torch.randn(2, 16, 1, 8, 8).unbind(0)
    both = sample_of(unit, stage, own, other, history)
    swapped = sample_of(unit, stage, other, own, history)
    assert both.rival is not None
    assert swapped.rival is not None
    assert torch.equal(both.rival.noisy, swapped.noisy)
    assert torch.equal(both.rival.target, swapped.target)
    assert torch.equal(both.noisy, swapped.rival.noisy)
    assert all(map(torch.equal, both.history, swapped.history))
    same = sample_of(unit, stage, own, own, history).rival
    assert same is not None
    assert torch.equal(same.noisy, both.noisy)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pair_world(tmp_path_factory.mktemp("world"))


def learning(world: Path, preference: dict[str, Any] | None = None, **model: Any) -> TrainConfig:
    """A phase on clips and pairs, as many of both."""
    objective = {"stage_weights": [1, 1, 1], "preference": preference or PREFER}
    phase = PHASE | {"name": "pairs", "units": 3, "steps": 8, "images": 0.34, "batch": 8, "objective": objective}
    data = [{"path": str(world / name), "weight": 1.0} for name in ("clips", "pairs")]
    return make_config(world, data=data, model={"start": str(world / "base")} | model, phases=[phase], precision="fp32")


def packs_of(setup: Setup, step: int = 0) -> list[StageSample]:
    (samples,) = setup.feed().at(step).packs
    return samples


def test_a_step_draws_pairs_at_their_newest_unit_with_their_prompt(world: Path) -> None:
    setup = Setup.of(learning(world))
    assert setup.catalog is not None
    found = 0
    for step in range(8):
        plan = setup.plan(step)
        (samples,) = setup.feed().at(step).packs
        lengths = dict(enumerate(plan.tokens))
        for index, (row, sample) in enumerate(zip(plan.rows_N.tolist(), samples, strict=True)):
            is_pair = bool(setup.catalog.pair_N[row])
            assert (sample.rival is not None) == is_pair
            texts = setup.pipeline.text.max_tokens * (2 if is_pair and sample.cell.unit == 0 else 1)
            assert lengths[index] == sample.visual_tokens(setup.pipeline.transformer.config.patch_size) + texts
            if is_pair:
                found += 1
                assert sample.cell.unit == setup.catalog.units_N[row] - 1
                assert sample.prompt
    assert 20 <= found <= 44  # of 64


def in_two_passes(module: Trainable, sample: StageSample, transformer: Any) -> tuple[Tensor, Tensor]:
    """The errors of a pair, each sibling in a forward pass of its own."""
    assert sample.rival is not None
    (text,) = module.text.encode([sample.prompt])
    errors = []
    for noisy, target in ((sample.noisy, sample.target), (sample.rival.noisy, sample.rival.target)):
        (velocity,) = transformer(transformer.pack([Sample(Prefix(text, sample.history), noisy, sample.timestep)]))
        errors.append(sample_losses([velocity], [target]))
    return errors[0], errors[1]


@pytest.mark.parametrize("tune", [{}, {"tune": LORA}])
def test_a_pair_that_shares_its_prefix_is_two_separate_forwards(world: Path, tune: dict[str, Any]) -> None:
    """Losses and gradients alike, and fewer tokens; clips in the same pass have the loss of flow matching."""
    setup = Setup.of(learning(world, **tune))
    module = PlainEngine(setup.trainable(), "fp32", CPU).module
    base = load_pipeline(world / "base").transformer
    samples = packs_of(setup)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(7)
        for parameter in module.parameters():  # away from the reference
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.02)
    module.preference = PreferenceConfig.model_validate(PREFER)
    losses = module(samples)
    losses.sum().backward()
    gradients = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    module.zero_grad()

    module.preference = None
    plain = module(samples).detach()
    apart = []
    for index, sample in enumerate(samples):
        if sample.rival is None:
            assert losses[index].item() == plain[index].item()
            apart.append(module([sample])[0])
        else:
            with torch.no_grad():
                before = in_two_passes(setup_module_text(module, setup), sample, base)
            own, rival = in_two_passes(module, sample, module.transformer)
            apart.append(prefer(own, before[0], rival, before[1], 50.0)[0])
    torch.testing.assert_close(torch.stack(apart), losses, rtol=1e-4, atol=1e-4)
    torch.stack(apart).sum().backward()
    assert gradients
    for name, parameter in module.named_parameters():
        if name in gradients:
            torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-3, atol=1e-3)

    later = [sample for sample in samples if sample.rival is not None and sample.cell.unit]
    shared = sum(sample.visual_tokens(2) for sample in later)
    twice = sum(2 * replace(sample, rival=None).visual_tokens(2) for sample in later)
    assert shared < twice


def setup_module_text(module: Trainable, setup: Setup) -> Trainable:
    """A module whose text encoder is that of the model at step 0."""
    text = load_pipeline(str(setup.config.model.start)).text
    return Trainable(module.transformer, text, train_text=False)


@pytest.mark.parametrize("preference", [PREFER, CONTRAST])
@pytest.mark.parametrize("tune", [{}, {"tune": LORA}])
def test_a_run_learns_what_is_preferred_and_resumes_to_the_bit(
    world: Path, tmp_path: Path, preference: dict[str, Any], tune: dict[str, Any]
) -> None:
    config = learning(world, preference, **tune)
    run(config, tmp_path / "whole")
    with pytest.raises(Stopped):
        run(config, tmp_path / "stopped", Hooks(on_step=stop_at(5)))
    run(config, tmp_path / "stopped")
    curve = losses_of(tmp_path / "whole")
    assert losses_of(tmp_path / "stopped") == curve
    if not tune:  # as when this was written
        assert [losses["pairs"] for _, losses in curve] == pytest.approx(CURVES[preference["kind"]], rel=1e-3)
    assert (tmp_path / "whole" / "model").is_dir()

    setup = Setup.of(config)
    engine = PlainEngine(setup.trainable(), "fp32", CPU)
    engine.module.preference = config.phases[0].objective.preference
    pairs = [sample for sample in packs_of(setup) if sample.rival is not None]
    means = [float(engine.update([pairs], len(pairs), config.phases[0], 1.0).losses[0].mean()) for _ in range(12)]
    assert means[-1] < 0.99 * means[0]
    if preference is PREFER:
        assert means[0] == pytest.approx(2 * math.log(2) / PREFER["beta"], rel=1e-5)


def phase_without(config: TrainConfig) -> TrainConfig:
    phase: PhaseConfig = config.phases[0]
    objective = phase.objective.model_copy(update={"preference": None})
    return config.model_copy(update={"phases": (phase.model_copy(update={"objective": objective}),)})


def test_what_cannot_be_learned_from_is_told(world: Path, tmp_path: Path) -> None:
    config = learning(world)
    with pytest.raises(UserError, match="does not say how to learn from them"):
        Setup.of(phase_without(config))
    with pytest.raises(DataError, match=r"there are none in .*clips: collect some with python -m jobs.collect"):
        Setup.of(config.model_copy(update={"data": str(world / "clips")}))
    other = schema_of(Setup.of(config).vae, made_by="another", pairs=True)
    pq.write_table(table_of([pair(1)], other), tmp_path / "clips-00000.parquet")
    with pytest.raises(DataError, match=r"sampled by another model than model.start"):
        Setup.of(config.model_copy(update={"data": str(tmp_path)}))
