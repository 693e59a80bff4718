"""The memory estimate before a run: every shipped configuration has one; what will not fit is told with the keys."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from typer.testing import CliRunner

from framegrove.config.base import load
from framegrove.config.model import FluxConfig, TransformerConfig
from framegrove.config.train import TrainConfig
from framegrove.errors import UserError
from framegrove.models.sizes import parameter_count
from framegrove.models.transformers import build_transformer
from framegrove.training.memory import Model, estimate, estimate_plain, longest_sample, pass_tokens
from framegrove.training.plan import check_fits, check_heads, check_workers, model_of
from jobs import train
from tests import readme
from tests.public_folder import write_public_folder

CONFIGS = Path(__file__).resolve().parents[2] / "jobs" / "configs"
SHIPPED = sorted(path for path in CONFIGS.glob("*.yaml") if "phases" in yaml.safe_load(path.read_text("utf-8")))
SD3 = CONFIGS / "pyramid_flow_sd3.yaml"
GPU = 80 * 10**9


def fits(config: TrainConfig, workers: int | None, gpu_bytes: int = GPU) -> None:
    check_fits(config, model_of(config)[0], workers, gpu_bytes)


def overrides(path: Path) -> list[str]:
    """Runs that continue other runs of the digits world continue the shipped model, which has their shape."""
    start = yaml.safe_load(path.read_text("utf-8"))["model"].get("start")
    return ["model.start=shipped"] if start and start.startswith("runs/") else []


def test_there_are_configurations_to_plan() -> None:
    assert {"digits", "digits_demo", "miniflux_384p", "pyramid_flow_sd3"} <= {path.stem for path in SHIPPED}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_configuration_has_a_plan(path: Path) -> None:
    given = ["--config", str(path), "--plan", *(part for key in overrides(path) for part in ("--set", key))]
    result = CliRunner().invoke(train.app, [*given, "--workers", "8"], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.stderr
    for phase in yaml.safe_load(path.read_text("utf-8"))["phases"]:
        assert phase["name"] in result.stdout
    assert "8 workers at ZeRO" in result.stdout
    plain = CliRunner().invoke(train.app, [*given, "--engine", "plain"])
    assert "GB on each worker: the plain engine" in plain.stdout


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_configuration_fits_80_gb(path: Path) -> None:
    for workers in (8, 16, 128):
        fits(load(TrainConfig, path, overrides(path)), workers)


def test_readme_shows_what_its_command_prints() -> None:
    (arguments,) = (arguments for job, arguments in readme.jobs() if job == "jobs.train" and "--plan" in arguments)
    arguments = [str(SD3) if part.endswith(".yaml") else part for part in arguments]
    printed = CliRunner().invoke(train.app, arguments, env={"COLUMNS": "200"}).stdout
    shown = re.findall(r"^\| ([123]) \| (\d+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", readme.TEXT, re.MULTILINE)
    rows = [tuple(re.split(r"\s*│\s*", line.strip("│ \n"))) for line in printed.splitlines()]
    assert len(shown) == 6
    assert set(shown) <= set(rows)


LARGE = ["phases.3.recompute=false", "phases.3.pack_tokens=32768", "phases.3.batch_tokens=4194304"]


def test_without_recomputation_768p_does_not_fit_and_the_keys_are_named() -> None:
    config = load(TrainConfig, SD3, LARGE)
    with pytest.raises(UserError) as caught:
        fits(config, 8)
    said = str(caught.value)
    assert said.startswith("phase high-resolution needs about 80.2 GB on each of 8 workers")
    assert "\n" not in said
    for remedy in ("recompute: true (28.2 GB)", "pack_tokens: 16384 (51.1 GB)", "sequence_parallel: 2 (51.1 GB)"):
        assert remedy in said
    assert "zero: 3" not in said  # 78.6 GB
    last = load(TrainConfig, SD3, LARGE[1:]).phases[3:]
    with pytest.raises(UserError, match=r"needs about 40\.3 GB .*: any of these is enough: .*zero: 2 \(28\.2 GB\)"):
        fits(config.model_copy(update={"zero": 1, "phases": last}), 8, 35 * 10**9)
    # What is said to be enough is enough.
    fits(load(TrainConfig, SD3, ["phases.3.recompute=false", "sequence_parallel=2"]), 8)
    fits(load(TrainConfig, SD3, ["phases.3.recompute=false", "phases.3.pack_tokens=16384"]), 8)
    with pytest.raises(UserError, match="no key alone is enough, combine recompute: true, zero: 3"):
        fits(config, 8, 8 * 10**9)
    with pytest.raises(UserError, match=r"phase image needs about .* in this process"):
        fits(config, None, 40 * 10**9)


def test_a_model_that_is_here_is_read_and_one_that_is_not_is_taken_from_the_configuration(tmp_path: Path) -> None:
    folder = write_public_folder(tmp_path / "public", "miniflux")
    given = {"data": "none", "phases": [{"name": "only", "sizes": [[64, 64]], "steps": 1000, "batch": 4}]}
    here = TrainConfig.model_validate(given | {"model": {"start": str(folder), "train_text": False}})
    model, said = model_of(here)
    shape = json.loads((folder / "diffusion_transformer_384p" / "config.json").read_text("utf-8"))
    assert isinstance(model.shape, FluxConfig)
    assert model.shape.num_single_layers == shape["num_single_layers"]
    assert 0 < model.frozen < 10**6
    assert said.startswith(f"the shape in {folder}")
    absent = TrainConfig.model_validate(
        given | {"model": {"start": "/nowhere/sd3", "train_text": False, "transformer": {}}}
    )
    model, said = model_of(absent)
    assert model.shape == TransformerConfig()
    assert (model.trained, model.frozen) == (2_028_334_144, 5_580_620_800)
    assert "because /nowhere/sd3 is not here" in said
    with pytest.raises(UserError, match=r"no model folder at /nowhere/sd3, and the configuration does not say its"):
        model_of(TrainConfig.model_validate(given | {"model": {"start": "/nowhere/sd3"}}))


def test_only_what_is_trained_is_counted_beside_the_weights() -> None:
    """As counted by hand: an adapter of rank 8 on every linear layer of the attention, or one layer of the model."""
    shape = TransformerConfig()
    whole = parameter_count(shape)
    with torch.device("meta"):
        transformer = build_transformer(shape)
    sides = [
        sum(layer.weight.shape)
        for name, layer in transformer.named_modules()
        if isinstance(layer, nn.Linear) and ".attn." in name
    ]
    idle = 2 * shape.width  # of the last block
    config = load(TrainConfig, SD3, ["model.tune.lora.rank=8"])
    model, _ = model_of(config)
    assert (model.trained, model.whole) == (8 * (sum(sides) - idle), 8 * (sum(sides) - idle) + whole)
    assert model.frozen == 5_580_620_800
    of_all = model_of(load(TrainConfig, SD3))[0]
    small, large = (estimate(config, config.phases[3], each, 8) for each in (model, of_all))
    assert small.weights == 2 * model.whole
    for part in ("gradients", "masters", "moments", "averaged"):
        assert getattr(small, part) == pytest.approx(getattr(large, part) * model.trained / whole, rel=1e-3)
    parts, _ = model_of(load(TrainConfig, SD3, ["model.tune.parts=[transformer.proj_out.*]"]))
    assert (parts.trained, parts.whole) == (shape.width * 64 + 64, whole)
    assert estimate_plain(config, config.phases[3], parts).weights == 4 * whole


def test_learning_from_pairs_holds_a_second_model_unless_an_adapter_is_trained() -> None:
    """The copy is whole on every worker, in the run's precision, with the text encoders that belong to it."""
    pairs = ["phases.3.objective.preference={kind: prefer, beta: 500}"]
    config = load(TrainConfig, SD3, pairs)
    model, _ = model_of(config)
    copied = estimate(config, config.phases[3], model, 8)
    without = estimate(load(TrainConfig, SD3), config.phases[3], model, 8)
    assert copied.reference == 2 * (model.whole + model.frozen)
    assert copied.kept - without.kept == copied.reference
    adapted = load(TrainConfig, SD3, [*pairs, "model.tune.lora.rank=8"])
    assert estimate(adapted, adapted.phases[3], model_of(adapted)[0], 8).reference == 0
    assert estimate_plain(config, config.phases[3], model).reference == 4 * (model.whole + model.frozen)


def test_workers_and_heads_that_cannot_be_grouped() -> None:
    check_heads(5, FluxConfig())
    with pytest.raises(UserError, match=r"does not divide the model's 30 attention heads: choose one of 1, 2, 3, 5, 6"):
        check_heads(4, FluxConfig())
    check_workers(2, 8)
    with pytest.raises(UserError, match=r"7 workers cannot share sequences in groups of 2"):
        check_workers(2, 7)
    digits = CONFIGS / "digits.yaml"
    given = ["--config", str(digits), "--workers", "9", "--set", "sequence_parallel=2", "--plan"]
    assert "7 attention heads" in CliRunner().invoke(train.app, given).stderr
    nowhere = CliRunner().invoke(train.app, ["--config", str(digits), "--engine", "plain"])
    assert "--out is missing" in nowhere.stderr


@given(
    workers=st.integers(1, 64), zero=st.sampled_from([1, 2, 3]), phase=st.integers(0, 3),
    sharing=st.sampled_from([1, 2, 4]), recompute=st.booleans(),
)  # fmt: skip
def test_every_key_saves_what_it_is_named_for(
    workers: int, zero: int, phase: int, sharing: int, recompute: bool
) -> None:
    config = load(TrainConfig, SD3, [f"zero={zero}", f"phases.{phase}.recompute={recompute}".lower()])
    config = config.model_copy(update={"sequence_parallel": sharing})
    model, of_phase = Model(TransformerConfig(), 3, 128, frozen=10**9), config.phases[phase]
    workers *= sharing
    memory = estimate(config, of_phase, model, workers)
    assert longest_sample(of_phase, model) <= memory.tokens == pass_tokens(config, of_phase, model, workers)
    assert estimate(config, of_phase, model, 2 * workers).kept <= memory.kept
    if zero < 3:
        assert estimate(config.model_copy(update={"zero": zero + 1}), of_phase, model, workers).kept <= memory.kept
    if not recompute:
        remade = of_phase.model_copy(update={"recompute": True})
        assert estimate(config, remade, model, workers).activations < memory.activations / 8
    wider = config.model_copy(update={"sequence_parallel": 2 * sharing})
    if workers % (2 * sharing) == 0:
        split = estimate(wider, of_phase, model, workers)
        assert split.activations <= 0.65 * memory.activations * split.tokens / memory.tokens
