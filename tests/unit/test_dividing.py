"""Two workers that divide a model or its packs: steps like one process, and what each of them has to hold."""

from __future__ import annotations

import copy
import gc
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from framegrove.config.model import TransformerConfig
from framegrove.config.train import PhaseConfig, TrainConfig
from framegrove.config.tune import LoraConfig, TuneConfig
from framegrove.flow.objective import StageSample
from framegrove.models.pretrained import load_transformer, save_transformer
from framegrove.models.transformers import Transformer, fresh_transformer
from framegrove.training import tuning
from framegrove.training.engine import DeepSpeedEngine, Parts, PlainEngine
from framegrove.training.memory import Model, estimate
from framegrove.training.step import Trainable
from tests.public_folder import FLUX
from tests.tiny import tiny_pipeline
from tests.tiny_training import PHASE
from tests.workers import together

ADAPTER = TuneConfig(lora=LoraConfig(rank=8))
WORKERS, CPU = 2, torch.device("cpu")
PIPELINE = tiny_pipeline()
# The gradients are above the clip, and the eps is not nothing beside them: so the steps of Adam depend on their scale.
CONFIG = TrainConfig.model_validate(
    {"data": "none", "phases": [PHASE | {"name": "only", "units": 3, "steps": 9, "clip": 0.1, "eps": 1e-3}]}
)
LARGE = TransformerConfig(
    num_layers=10, num_attention_heads=4, attention_head_dim=16, caption_projection_dim=64, pooled_projection_dim=16,
    joint_attention_dim=16, sample_size=16, pos_embed_max_size=16,
)  # fmt: skip
SHARED: list[tuple[str, Literal[2, 3], bool]] = [("mmdit", 2, True), ("flux", 2, False), ("mmdit", 3, False)]


def transformer_of(kind: str) -> Transformer:
    if kind == "mmdit":
        return copy.deepcopy(PIPELINE.transformer)
    transformer = fresh_transformer(FLUX.model_copy(update={"pooled_projection_dim": 16}))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in transformer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15)
    return transformer


def trainable(transformer: Transformer) -> Trainable:
    return Trainable(transformer, copy.deepcopy(PIPELINE.text), train_text=True).train()


def samples(step: int) -> list[StageSample]:
    """Six of a step, of odd numbers of tokens, with and without history."""
    generator = torch.Generator().manual_seed(step)
    found = []
    for index in range(6):
        sides, past = [(2, 2), (4, 6), (6, 10)][index % 3], index // 3
        history = tuple(torch.randn(16, 1, 2 * h, 2 * w, generator=generator) for h, w in [(1, 1), (2, 3)][:past])
        noisy, target = (torch.randn(16, 1, *sides, generator=generator) for _ in range(2))
        prompt = "a red 3 moves left and right"[: 20 + index]
        found.append(StageSample(prompt, history, noisy, 100.0 * index, target, (past, index % 3)))  # type: ignore[arg-type]
    return found


def curve(engine: DeepSpeedEngine | PlainEngine, count: int = 3) -> list[tuple[float, float]]:
    """Losses and gradient norms of some steps of two passes each."""
    found = []
    for step in range(count):
        drawn = samples(step)
        update = engine.update([drawn[:2], drawn[2:]], len(drawn), CONFIG.phases[0], learning_rate_scale=1.0)
        found.append((float(torch.cat(update.losses).mean()), update.gradient_norm))
    return found


def tensors() -> dict[int, Tensor]:
    """One of the tensors at each place in this process's memory that holds numbers."""
    gc.collect()
    held = (x for x in gc.get_objects() if isinstance(x, Tensor) and x.device.type == "cpu" and x.numel())
    return {x.untyped_storage().data_ptr(): x for x in held}


def bytes_of_weights(module: nn.Module, others: list[Tensor]) -> int:
    """What a worker holds of a module that is being cut up: whole weights, and parts."""
    tensors = list(others)
    for parameter in module.parameters():
        tensors += [parameter.data, getattr(parameter, "ds_tensor", parameter.new_empty(0))]
    return sum(t.numel() * t.element_size() for t in tensors if t.device.type != "meta")


def load_in_parts(folder: Path, precision: Literal["bf16", "fp32"]) -> tuple[DeepSpeedEngine, int, int]:
    """An engine of ZeRO 3 on a transformer that is never whole; the most bytes of weights at a time, and at the end."""
    parts = Parts(precision, CPU)
    pieces: list[nn.Module] = []
    most = 0

    def take(piece: nn.Module) -> None:
        nonlocal most
        pieces.append(piece)
        for step in (lambda: None, lambda: parts.take(piece)):
            step()
            most = max(most, bytes_of_weights(nn.ModuleList(pieces), [part for _, part in parts._exact]))

    transformer = load_transformer(folder, take=take)
    left = bytes_of_weights(transformer, [part for _, part in parts._exact])
    return DeepSpeedEngine(trainable(transformer), precision, CPU, 3, parts=parts), most, left


def work(rank: int, folder: Path) -> None:
    """One of the workers: leaves what it found."""
    found: dict[Any, Any] = {}
    for kind, zero, recompute in SHARED:
        module = trainable(transformer_of(kind))
        module.transformer.recompute = recompute
        engine = DeepSpeedEngine(module, "fp32", CPU, zero, sequence_parallel=WORKERS)
        found["reader"] = engine.data_rank, engine.data_world, engine.total(torch.ones(2)).tolist()
        found["shared", kind, zero] = curve(engine), engine.averaged_weights()
    engine, found["most"], found["left"] = load_in_parts(folder / "large", "bf16")
    found["loaded"] = engine.averaged_weights()
    found["steps"] = (
        curve(engine),
        curve(DeepSpeedEngine(trainable(load_transformer(folder / "large")), "bf16", CPU, 3)),
    )
    found["fresh"] = fresh_weights()
    torch.save(found, folder / f"{rank}.pt")


def weigh(rank: int, folder: Path) -> None:
    """One of the workers: leaves what engines hold. Engines that were there before would be counted now and then."""
    kinds = {"held": TuneConfig(), "held with an adapter": ADAPTER}
    found = {(kind, zero): held_by_an_engine(zero, tune) for zero in (1, 2, 3) for kind, tune in kinds.items()}
    torch.save(found, folder / f"{rank}.held.pt")


def fresh_weights() -> dict[str, Tensor]:
    parts = Parts("fp32", CPU)
    transformer = fresh_transformer(LARGE, 7, parts.take)
    return DeepSpeedEngine(trainable(transformer), "fp32", CPU, 3, parts=parts).averaged_weights()


def held_by_an_engine(zero: Literal[1, 2, 3], tune: TuneConfig) -> int:
    """Bytes that an engine holds after the passes of a step and before its update, when all of its state is there."""
    before = tensors()  # kept alive, so that no other tensor comes to stand at the same place
    module = Trainable(fresh_transformer(LARGE), copy.deepcopy(PIPELINE.text), train_text=tune.all).train()
    engine = DeepSpeedEngine(tuning.restrict(module, tune, seed=4), "bf16", CPU, zero)
    curve(engine, 1)
    found: list[int] = []
    step = engine.engine.step

    def measured() -> Any:
        found.extend(x.untyped_storage().nbytes() for place, x in tensors().items() if place not in before)
        return step()

    engine.engine.step = measured
    curve(engine, 1)
    return sum(found)


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    """What both workers have left."""
    folder = tmp_path_factory.mktemp("workers")
    save_transformer(fresh_transformer(LARGE, 3), folder / "large")
    for part in (work, weigh):
        together(part, (folder,), WORKERS)()
    names = ("{}.pt", "{}.held.pt")
    return [
        {key: value for name in names for key, value in torch.load(folder / name.format(rank)).items()}
        for rank in range(WORKERS)
    ]


@pytest.mark.parametrize(("kind", "zero"), [case[:2] for case in SHARED])
def test_workers_that_share_a_sequence_step_like_one_process(left: list[dict[Any, Any]], kind: str, zero: int) -> None:
    engine = PlainEngine(trainable(transformer_of(kind)), "fp32", CPU)
    expected = curve(engine)
    for of_rank in left:
        for ours, theirs in zip(expected, of_rank["shared", kind, zero][0], strict=True):
            assert ours == pytest.approx(theirs, rel=1e-5)
        assert of_rank["reader"] == (0, 1, [1.0, 1.0])  # one reader of data, whose sums count once
    weights = engine.averaged_weights()
    for name, theirs in left[0]["shared", kind, zero][1].items():
        torch.testing.assert_close(theirs, weights[name], atol=1e-5, rtol=0)


def test_no_worker_holds_a_model_whole_that_zero_3_cuts_up(left: list[dict[Any, Any]]) -> None:
    transformer = fresh_transformer(LARGE, 3)
    whole = sum(4 * p.numel() for p in transformer.parameters())
    for of_rank in left:
        # At the end a bfloat16 and a float32 half: 2 + 4 bytes for every second weight.
        assert of_rank["left"] == pytest.approx(0.75 * whole, rel=0.01)
        assert of_rank["most"] < 0.9 * whole
    for name, value in transformer.named_parameters():
        assert torch.equal(left[0]["loaded"][f"transformer.{name}"], value), name
    for name, value in fresh_transformer(LARGE, 7).named_parameters():
        assert torch.equal(left[0]["fresh"][f"transformer.{name}"], value), name
    in_parts, at_once = left[0]["steps"]
    assert in_parts == at_once


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_what_an_engine_holds_is_as_estimated(left: list[dict[Any, Any]], zero: Literal[1, 2, 3]) -> None:
    phase: PhaseConfig = CONFIG.phases[0]
    trained_text = sum(p.numel() for p in PIPELINE.text.parameters())
    model = Model(LARGE, 3, 10, trained_text)
    memory = estimate(CONFIG.model_copy(update={"zero": zero}), phase, model, WORKERS)
    # ZeRO 3 never lets its bucket go, nor so few weights as these, once gathered: both are among the buffers.
    buffers = (2 + 2) * model.trained if zero == 3 else 0
    for of_rank in left:
        assert of_rank["held", zero] == pytest.approx(memory.kept + buffers, rel=0.03)


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_what_an_engine_holds_of_a_frozen_model_is_as_estimated(
    left: list[dict[Any, Any]], zero: Literal[1, 2, 3]
) -> None:
    """The weights alone; gradients, masters, moments and averages are those of the adapter."""
    added, held = tuning.weights(ADAPTER, LARGE)
    frozen = sum(p.numel() for p in PIPELINE.text.parameters())
    model = Model(LARGE, 3, 10, frozen=frozen, held=held, added=added)
    assert model.trained == added < held / 4
    memory = estimate(CONFIG.model_copy(update={"zero": zero}), CONFIG.phases[0], model, WORKERS)
    # As above; and an adapter's matrices, which are too small for ZeRO 3 to divide, are whole on every worker.
    buffers = 4 * added + 2 * (held + added) if zero == 3 else 0
    for of_rank in left:
        assert of_rank["held with an adapter", zero] == pytest.approx(memory.kept + buffers, rel=0.03)
