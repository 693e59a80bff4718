"""Fine-tuning runs: adapters and named parts, in both engines; what they leave, and what takes it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn

from actors.model_files import ModelFiles
from framegrove.config.base import ConfigError, validated
from framegrove.config.model import ModelSource
from framegrove.config.train import ModelConfig, TrainConfig
from framegrove.config.tune import LoraConfig, TuneConfig
from framegrove.errors import UserError
from framegrove.models.pretrained import load_pipeline, load_source, save_pipeline
from framegrove.models.sources import ADAPTER_CONFIG, ADAPTER_WEIGHTS, BASE
from framegrove.training import tuning
from framegrove.training.engine import DeepSpeedEngine, PlainEngine
from framegrove.training.fragments import Fragments, write
from framegrove.training.loop import Hooks
from framegrove.training.run import run
from framegrove.training.setup import Setup
from tests.public_folder import write_public_folder
from tests.tiny_training import losses_of, make_config, make_world
from tests.unit.test_engine import CPU, steps, trainable
from tests.unit.test_lora import velocities
from tests.unit.test_training import Stopped, stop_at

pytestmark = pytest.mark.usefixtures("group")

LORA = {"lora": {"rank": 4, "alpha": 8, "targets": ["*"]}}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards, and in ``base`` a whole model for them, whose weights all matter."""
    folder = make_world(tmp_path_factory.mktemp("world"))
    pipeline = Setup.of(make_config(folder)).pipeline
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(5)
        for parameter in pipeline.transformer.parameters():
            nn.init.normal_(parameter, std=0.15)
    save_pipeline(pipeline, folder / "base")
    return folder


def tuned(world: Path, tune: dict[str, Any], start: Path | None = None, **changes: Any) -> TrainConfig:
    model = {"start": str(start or world / "base"), "tune": tune}
    return make_config(world, model=model, **{"precision": "fp32", **changes})


@pytest.fixture(scope="module")
def adapted(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that trained an adapter on every layer."""
    before = {path: path.read_bytes() for path in (world / "base").rglob("*") if path.is_file()}
    out = tmp_path_factory.mktemp("runs") / "adapted"
    run(tuned(world, LORA), out)
    assert {path: path.read_bytes() for path in (world / "base").rglob("*") if path.is_file()} == before
    return out


def test_base_and_adapter_are_the_trained_model(world: Path, adapted: Path, tmp_path: Path) -> None:
    """As peft itself loads them they are that to the bit; merged into whole weights, within their rounding."""
    folder = adapted / "model"
    assert {path.name for path in folder.iterdir()} == {ADAPTER_CONFIG, ADAPTER_WEIGHTS, BASE}
    engine = PlainEngine(Setup.of(tuned(world, LORA)).trainable(), "fp32", CPU)
    with torch.no_grad():
        fresh = velocities(engine.module.transformer)
        held = load_file(folder / ADAPTER_WEIGHTS)
        for name, parameter in engine.module.transformer.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(held.pop(f"base_model.model.{name.replace('.default', '')}"))
        assert not held
        trained = velocities(engine.module.transformer)
        base = load_pipeline(world / "base").transformer
        assert torch.equal(velocities(base), fresh)
        assert (trained - fresh).abs().max() > 0.1
        assert torch.equal(velocities(PeftModel.from_pretrained(base, str(folder)).eval().base_model.model), trained)
        merged = load_pipeline(adapted)
        torch.testing.assert_close(velocities(merged.transformer), trained, rtol=1e-4, atol=1e-4)
    assert not any(parameter.requires_grad for parameter in merged.transformer.parameters())
    save_pipeline(merged, tmp_path / "whole")
    whole = load_pipeline(tmp_path / "whole").transformer.state_dict()
    assert all(map(torch.equal, whole.values(), merged.transformer.state_dict().values()))
    assert whole.keys() == load_pipeline(world / "base").transformer.state_dict().keys()


def test_only_the_adapter_is_in_checkpoints_and_averages(world: Path, adapted: Path) -> None:
    trained = sum(weight.numel() for weight in load_file(adapted / "model" / ADAPTER_WEIGHTS).values())
    engine = PlainEngine(Setup.of(tuned(world, LORA)).trainable(), "fp32", CPU)
    assert sum(average.numel() for average in engine.averaged) == trained
    assert sum(parameter.numel() for group in engine.adamw.param_groups for parameter in group["params"]) == trained
    newest = sorted((adapted / "checkpoints").iterdir())[-1]
    size = sum(path.stat().st_size for path in newest.rglob("*") if path.is_file())
    assert size < 4 * 4 * trained * 1.5 + 2e5  # weights, averages and two moments, and what a file has around them


def test_a_stopped_run_goes_on_to_the_bit_even_with_dropout(world: Path, tmp_path: Path) -> None:
    config = tuned(world, {"lora": {"rank": 2, "dropout": 0.3}})
    run(config, tmp_path / "whole")
    with pytest.raises(Stopped):
        run(config, tmp_path / "cut", Hooks(on_step=stop_at(8)))
    torch.manual_seed(17)
    run(config, tmp_path / "cut")
    assert losses_of(tmp_path / "cut") == losses_of(tmp_path / "whole")
    files = [tmp_path / name / "model" / ADAPTER_WEIGHTS for name in ("whole", "cut")]
    assert files[0].read_bytes() == files[1].read_bytes()
    run(tuned(world, {"lora": {"rank": 2}}), tmp_path / "none")
    assert losses_of(tmp_path / "none") != losses_of(tmp_path / "whole")


def test_an_adapter_on_top_of_an_adapter(world: Path, adapted: Path, tmp_path: Path) -> None:
    run(tuned(world, {"lora": {"rank": 2}}, start=adapted), tmp_path / "second")
    below, top = load_pipeline(adapted).transformer, load_pipeline(tmp_path / "second" / "model").transformer
    with torch.no_grad():
        assert not torch.allclose(velocities(below), velocities(top), rtol=1e-2)
    files = ModelFiles.read(ModelSource(name=str(tmp_path / "second")))
    assert files.place.folder == world / "base"
    assert files.place.adapters == (adapted / "model", tmp_path / "second" / "model")
    others = [ModelFiles.read(ModelSource(name=str(place))).fingerprint() for place in (adapted, world / "base")]
    assert len({files.fingerprint(), *others}) == 3


def test_an_adapter_for_a_public_model(world: Path, tmp_path: Path) -> None:
    """Its variant comes along, and the text encoders stay frozen without being told to."""
    public = write_public_folder(tmp_path / "public", "miniflux", ("768p", "384p"))
    shutil.copytree(world / "vae", public / "causal_video_vae", dirs_exist_ok=True)
    model = {"start": str(public), "variant": "384p", "tune": {"lora": {"rank": 2}}}
    run(make_config(world, model=model), tmp_path / "out")
    loaded = load_source(ModelSource(name=str(tmp_path / "out"), dtype="bfloat16"))
    assert loaded.variant == "diffusion_transformer_384p"
    assert {weight.dtype for weight in loaded.transformer.parameters()} == {torch.bfloat16}
    with pytest.raises(UserError, match=r"is for the variant '384p', not '768p': leave that out"):
        load_pipeline(tmp_path / "out", variant="768p")


# What goes wrong


def test_the_wrong_base_is_refused(world: Path, adapted: Path, tmp_path: Path) -> None:
    adapter, base = tmp_path / "adapter", tmp_path / "base"
    shutil.copytree(adapted / "model", adapter)
    shutil.copytree(world / "base", base)
    facts = json.loads((adapter / BASE).read_text())
    (adapter / BASE).write_text(json.dumps(facts | {"name": str(base)}))
    load_pipeline(adapter)  # the same weights elsewhere
    run(tuned(world, {"parts": ["transformer.proj_out.*"]}), tmp_path / "other")
    shutil.rmtree(base)
    shutil.copytree(tmp_path / "other" / "model", base)
    with pytest.raises(UserError, match=r"was trained on other weights than those in .*base.*: name the right model"):
        load_pipeline(adapter)
    shutil.rmtree(base)
    with pytest.raises(UserError, match=r"the model that the adapter .* is for cannot be used \(no model folder at"):
        load_pipeline(adapter)
    (adapter / BASE).unlink()
    (adapter / ADAPTER_CONFIG).write_text(
        json.dumps(json.loads((adapter / ADAPTER_CONFIG).read_text()) | {"base_model_name_or_path": None})
    )
    with pytest.raises(UserError, match=r"does not say which model it is for: name it in .*base\.json"):
        load_pipeline(adapter)


def test_an_adapter_that_does_not_fit(world: Path, adapted: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(adapted / "model", adapter)
    weights = load_file(adapter / ADAPTER_WEIGHTS)
    lost = dict(sorted(weights.items())[1:])
    save_file(lost, adapter / ADAPTER_WEIGHTS)
    with pytest.raises(UserError, match=r"does not fit its model: 1 keys are missing and 0 unknown"):
        load_pipeline(adapter)
    facts = json.loads((adapter / ADAPTER_CONFIG).read_text())
    (adapter / ADAPTER_CONFIG).write_text(json.dumps(facts | {"target_modules": ["nothing"]}))
    with pytest.raises(UserError, match=r"cannot be used as an adapter of this model \(.*nothing"):
        load_pipeline(adapter)


@pytest.mark.parametrize(
    ("tune", "message"),
    [
        (
            {"parts": ["transformer.proj_out.*", "transformer.mlp.*"]},
            r"'transformer\.mlp\.\*' matches no parameter; there are transformer\.pos_embed\.proj\.weight, ",
        ),
        (
            {"lora": {"targets": ["*.mlp"]}},
            r"'\*\.mlp' matches no linear layer of the transformer, which has time_text_",
        ),
    ],
)
def test_a_pattern_without_a_match_ends_a_run_before_it_begins(
    world: Path, tmp_path: Path, tune: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        run(tuned(world, tune), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_pattern_for_the_text_encoder_without_a_match(world: Path) -> None:
    with pytest.raises(UserError, match=r"'text\.none' matches no parameter; .*text\.model\.embeddings"):
        Setup.of(tuned(world, {"parts": ["text.none"]})).trainable()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tune": {"lora": {}, "parts": ["*"]}}, "give lora or parts, not both"),
        (
            {"tune": {"lora": {}}, "start": None, "vae": "shipped"},
            "of an untrained transformer cannot be trained alone",
        ),
        ({"tune": {"parts": ["*"]}, "fresh": True}, "of an untrained transformer cannot be trained alone"),
        ({"tune": {"lora": {"rank": 0}}}, "tune.lora.rank must be greater than 0, not 0"),
        ({"tune": {"lora": {"targets": []}}}, "tune.lora.targets must have at least 1 entry"),
    ],
)
def test_what_cannot_be_tuned(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validated(ModelConfig, given, "model")


def test_muon_is_for_whole_models(world: Path) -> None:
    phases = [phase.model_dump(mode="json") | {"matrix_learning_rate": 0.02} for phase in make_config(world).phases]
    with pytest.raises(ValueError, match=r"for a model that is trained whole: remove it, or model\.tune"):
        tuned(world, LORA, phases=phases)


# Named parts


def test_only_the_named_parts_are_trained(world: Path, tmp_path: Path) -> None:
    patterns = ["transformer.*.attn.to_?.weight", "text.*.embeddings.*"]
    config = tuned(world, {"parts": patterns})
    engine = PlainEngine(Setup.of(config).trainable(), "fp32", CPU)
    assert len(engine.averaged) == 3 + 2
    run(config, tmp_path / "out")
    before, after = load_pipeline(world / "base"), load_pipeline(tmp_path / "out")
    for part, same in (("transformer", ".attn.to_"), ("text", ".embeddings.")):
        mine, theirs = (getattr(pipeline, part).state_dict() for pipeline in (before, after))
        moved = {name for name, value in mine.items() if not torch.equal(value, theirs[name])}
        assert moved
        assert all(same in name for name in moved)


# DeepSpeed


@pytest.mark.parametrize("tune", [TuneConfig(lora=LoraConfig(rank=2)), TuneConfig(parts=("*.attn.*", "*.linear.*"))])
@pytest.mark.parametrize(("kind", "zero"), [("mmdit", 1), ("flux", 2), ("mmdit", 3), ("flux", 3)])
def test_zero_trains_frozen_models_like_plain_torch(
    kind: str, zero: Literal[1, 2, 3], tune: TuneConfig, tmp_path: Path
) -> None:
    modules = [tuning.restrict(trainable(kind), tune, seed=4) for _ in range(3)]
    plain, spread = PlainEngine(modules[0], "fp32", CPU), DeepSpeedEngine(modules[1], "fp32", CPU, zero)
    for ours, theirs in zip(steps(plain, 0, 3), steps(spread, 0, 3), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    expected, found = plain.averaged_weights(), spread.averaged_weights()
    assert found.keys() == expected.keys()
    for name, weight in found.items():
        torch.testing.assert_close(weight, expected[name], atol=1e-4, rtol=0)
    held, counts = Fragments(tmp_path, write(tmp_path, 0, spread.fragments())), spread.counts()
    whole = steps(spread, 3, 5)
    loaded = DeepSpeedEngine(modules[2], "fp32", CPU, zero)
    loaded.restore(held, counts)
    assert steps(loaded, 3, 5) == whole


@pytest.mark.parametrize("zero", [1, 3])
def test_an_adapter_in_bfloat16_under_zero(zero: Literal[1, 3]) -> None:
    engine = DeepSpeedEngine(tuning.restrict(trainable(), TuneConfig(lora=LoraConfig(rank=2)), 4), "bf16", CPU, zero)
    assert all(norm > 0 for _, norm in steps(engine, 0, 3))
    assert all(weight.dtype is torch.float32 for weight in engine.averaged_weights().values())
