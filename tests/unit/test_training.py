"""A run in one process: it learns, resumes bit for bit, is not changed by packing, and leaves a model."""

from __future__ import annotations

import json
import logging
import os
import pickle
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from framegrove import files
from framegrove.config.train import ModelConfig, TrainConfig
from framegrove.data.ingest import DataError
from framegrove.errors import UserError
from framegrove.flow.objective import StageSample
from framegrove.models.files import PICKLE_FILE, WEIGHTS_FILE
from framegrove.models.flux import Flux
from framegrove.models.pretrained import load_pipeline
from framegrove.models.text_public import PublicTextEncoder
from framegrove.training import checkpoint, curve
from framegrove.training.engine import PlainEngine
from framegrove.training.export import export
from framegrove.training.feed import Share
from framegrove.training.loop import Hooks
from framegrove.training.resume import HISTORY
from framegrove.training.run import alone, run
from framegrove.training.setup import Setup
from framegrove.training.skips import TrainingDiverged
from jobs import train
from tests.public_folder import write_public_folder
from tests.tiny_training import TRANSFORMER, losses_of, make_config, make_world


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"))


class Stopped(Exception):
    """Stands for whatever ends a run in the middle."""


def stop_at(step: int) -> Any:
    def on_step(done: int, loss: float) -> None:
        if done == step:
            raise Stopped

    return on_step


@pytest.fixture(scope="module")
def whole(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    run(make_config(world, save_as="fp16"), out)
    return out


def test_a_stopped_run_goes_on_along_the_undisturbed_curve(world: Path, whole: Path, tmp_path: Path) -> None:
    config = make_config(world, save_as="fp16")
    with pytest.raises(Stopped):
        run(config, tmp_path, Hooks(on_step=stop_at(8)))
    started: list[int] = []
    run(config, tmp_path, Hooks(on_start=started.append))
    assert started == [6]
    assert losses_of(tmp_path) == losses_of(whole)
    for name in ("diffusion_transformer/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"):
        assert (tmp_path / "model" / name).read_bytes() == (whole / "model" / name).read_bytes()


def test_a_run_leaves_a_model_that_loads_and_a_picture(whole: Path) -> None:
    pipeline = load_pipeline(whole / "model")
    assert pipeline.recipe.pyramid.stages == 3
    assert all(torch.isfinite(p).all() for p in pipeline.transformer.parameters())
    assert (whole / curve.PICTURE).stat().st_size > 5000
    names = {name for _, losses in losses_of(whole) for name in losses}
    assert names == {"loss", "stage0", "stage1", "stage2", "image", "video", "unit1", "unit2"}
    best = checkpoint.best(whole / "checkpoints")
    assert best is not None
    names = {path.name for path in (whole / "checkpoints").iterdir()}
    assert names == {"step-0000012", "step-0000014", best.name}


def test_miniflux_from_scratch_beside_public_text_encoders(world: Path, tmp_path: Path) -> None:
    public = write_public_folder(tmp_path / "public", "miniflux", ("768p", "384p"))
    shutil.copytree(world / "vae", public / "causal_video_vae", dirs_exist_ok=True)
    weights = public / "causal_video_vae" / WEIGHTS_FILE
    torch.save(load_file(weights), weights.with_name(PICKLE_FILE))  # as which the released VAEs come
    weights.unlink()
    model = {"start": str(public), "variant": "384p", "fresh": True, "train_text": False}
    with pytest.raises(UserError, match="as a pickle"):
        Setup.of(make_config(world, model=model))
    model["allow_pickle"] = True
    text = Setup.of(make_config(world, model=model)).trainable().text
    first, again = (text.encode(["a red 3"])[0] for _ in range(2))
    assert torch.equal(first.tokens_LD, again.tokens_LD)  # T5's dropout is off
    run(make_config(world, model=model, save_as="bf16"), tmp_path / "out")
    start = {"start": str(tmp_path / "out" / "model"), "train_text": False}
    Setup.of(make_config(world, model=start))
    other = make_config(world, model={**start, "transformer": {"use_temporal_causal": False}})
    with pytest.raises(UserError, match=r"model.transformer.use_temporal_causal is False, and True in the model"):
        Setup.of(other)
    losses = [found["loss"] for _, found in losses_of(tmp_path / "out")]
    assert losses[-1] < losses[0]
    trained = load_pipeline(tmp_path / "out" / "model")
    assert trained.variant == "diffusion_transformer_384p"
    assert isinstance(trained.transformer, Flux)
    assert isinstance(trained.text, PublicTextEncoder)


def test_a_new_flux_style_transformer(world: Path, tmp_path: Path) -> None:
    shape = {
        "num_layers": 1, "num_single_layers": 1, "num_attention_heads": 2, "attention_head_dim": 8,
        "axes_dims_rope": [4, 2, 2], "joint_attention_dim": 16, "pooled_projection_dim": 16,
    }  # fmt: skip
    model = make_config(world).model.model_dump(exclude={"transformer"}) | {"flux": shape}
    run(make_config(world, model=model), tmp_path / "out")
    assert isinstance(load_pipeline(tmp_path / "out" / "model").transformer, Flux)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            {"flux": {}, "transformer": TRANSFORMER},
            "of an MM-DiT \\(transformer\\) or of a FLUX-style one \\(flux\\), not both",
        ),
        ({"flux": {"joint_attention_dim": 16}}, "reads text of width 768 \\(pooled_projection_dim\\), .* writes 16"),
        ({"transformer": TRANSFORMER | {"joint_attention_dim": 8}}, "width 8 \\(joint_attention_dim\\), .* writes 16"),
    ],
)
def test_a_shape_that_cannot_be_trained(model: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig.model_validate({"start": None, "vae": "shipped", "text": {"layers": 1, "width": 16}} | model)


def test_muon_learns_and_resumes(world: Path, tmp_path: Path) -> None:
    phase = make_config(world).phases[0].model_dump(mode="json")
    phases = [phase | {"steps": 12, "batch": 24, "matrix_learning_rate": 0.02}]
    config = make_config(world, phases=phases, precision="fp32", checkpoint_every=5)
    run(config, tmp_path / "whole")
    losses = losses_of(tmp_path / "whole")
    assert losses[-1][1]["loss"] < losses[0][1]["loss"]
    with pytest.raises(Stopped):
        run(config, tmp_path / "cut", Hooks(on_step=stop_at(7)))
    run(config, tmp_path / "cut")
    assert losses_of(tmp_path / "cut") == losses


def test_packing_changes_the_passes_and_not_the_result(world: Path, tmp_path: Path) -> None:
    curves = []
    for name, pack_tokens in (("one", None), ("many", 100)):
        phases = [phase.model_dump(mode="json") | {"pack_tokens": pack_tokens} for phase in make_config(world).phases]
        run(make_config(world, phases=phases[2:], precision="fp32"), tmp_path / name)
        curves.append(losses_of(tmp_path / name))
    for (_, one), (_, many) in zip(*curves, strict=True):
        assert one == pytest.approx(many, rel=1e-4)


def test_a_run_tells_its_speed_and_its_wait_for_data(world: Path, tmp_path: Path) -> None:
    told: list[tuple[float, float]] = []
    points: list[int] = []
    config = make_config(world)
    config = config.model_copy(update={"phases": config.phases[:1]})
    run(config, tmp_path, Hooks(on_point=lambda at: points.append(at.step), on_speed=lambda *at: told.append(at)))
    assert len(told) == len(points) > 1
    assert all(tokens > 0 < waited for tokens, waited in told)


def samples_of(share: Share) -> dict[str, StageSample]:
    return {f"{sample.origin} {sample.cell} {sample.timestep}": sample for pack in share.packs for sample in pack}


def test_any_number_of_workers_draws_the_same_samples_and_reads_its_own(world: Path) -> None:
    setup: Setup = pickle.loads(pickle.dumps(Setup.of(make_config(world))))  # as it is sent to the workers
    alone = setup.feed()
    feeds = [setup.feed(rank, 3) for rank in range(3)]
    for step in (0, 1, 4, 9, 13):
        whole, shares = samples_of(alone.at(step)), [feed.at(step) for feed in feeds]
        assert {share.batch for share in shares} == {6}
        parts = [samples_of(share) for share in shares]
        assert sorted(name for part in parts for name in part) == sorted(whole)
        for name, sample in (pair for part in parts for pair in part.items()):
            assert torch.equal(sample.noisy, whole[name].noisy)
            assert all(map(torch.equal, sample.history, whole[name].history))


def test_the_next_steps_clips_are_read_ahead_and_a_reader_that_stands_still_is_told(
    world: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    setup = Setup.of(make_config(world))
    feed = setup.feed()
    feed.at(0)
    assert feed._ahead is not None
    feed._ahead[1].result(timeout=60)  # nobody has asked for it yet
    stands_still, real = threading.Event(), feed._reader.read
    monkeypatch.setattr("framegrove.training.feed._SAID_EVERY", 0.02)
    monkeypatch.setattr("framegrove.training.feed._LONGEST", 0.1)
    monkeypatch.setattr(feed._reader, "read", lambda rows: stands_still.wait(60) and real(rows))
    feed.at(1)  # was read before
    with pytest.raises(DataError, match="clips of step 2 were not read within 0 s: see that the data's storage"):
        feed.at(2)
    assert "still waiting for the clips of step 2" in caplog.text
    stands_still.set()


def test_a_damaged_clip_ends_the_run_with_its_name(world: Path, tmp_path: Path) -> None:
    shutil.copytree(world / "clips", tmp_path / "clips")
    setup = Setup.of(make_config(world, data=str(tmp_path / "clips")))
    for path in (tmp_path / "clips").iterdir():
        path.write_bytes(b"PAR1" + bytes(100))
    with pytest.raises(DataError, match=r"\.parquet cannot be read"):
        setup.feed().at(0)


def test_the_engine_trains_the_model_itself_and_the_folder_has_its_tables(world: Path, tmp_path: Path) -> None:
    """No second copy of the transformer is kept, and what an engine rounds does not reach the model folder."""
    setup = Setup.of(make_config(world))
    engine = PlainEngine(setup.trainable(), "fp32", torch.device("cpu"))
    assert engine.module.transformer is setup.pipeline.transformer
    table = engine.module.transformer.get_buffer("pos_embed.pos_embed")
    expected = table.clone()
    table.data = table.data.bfloat16()
    with torch.no_grad():
        for average in engine.averaged:
            average.fill_(0.25)
    setup.save_model(engine, tmp_path)
    saved = load_pipeline(tmp_path / "model")
    assert torch.equal(saved.transformer.get_buffer("pos_embed.pos_embed"), expected)
    assert all((weight == 0.25).all() for part in (saved.transformer, saved.text) for weight in part.parameters())
    assert not all((weight == 0.25).all() for weight in engine.parameters)


def changed(config: TrainConfig, **phase: Any) -> TrainConfig:
    """The same run with another last phase."""
    phases = [each.model_dump(mode="json") for each in config.phases]
    return TrainConfig.model_validate(config.model_dump(mode="json") | {"phases": [*phases[:2], phases[2] | phase]})


def events(out: Path) -> list[tuple[str, int]]:
    return [(line["event"], line["step"]) for line in map(json.loads, (out / HISTORY).read_text().splitlines())]


def test_a_damaged_newest_checkpoint_costs_the_steps_since_the_one_before(
    world: Path, whole: Path, tmp_path: Path
) -> None:
    config = make_config(world, save_as="fp16")
    with pytest.raises(Stopped):
        run(config, tmp_path, Hooks(on_step=stop_at(8)))
    newest = tmp_path / "checkpoints" / "step-0000006"
    os.truncate(newest / "worker-00000-000.safetensors", 1000)
    run(config, tmp_path)
    assert losses_of(tmp_path) == losses_of(whole)
    assert events(tmp_path) == [("started", 0), ("damaged", 3), ("resumed", 3)]
    assert f"{newest} is damaged (worker-00000-000.safetensors has 1000 bytes" in (tmp_path / HISTORY).read_text()
    assert not list((tmp_path / "checkpoints").glob("damaged*"))


def test_a_finished_run_goes_on_elsewhere_with_more_steps_and_another_rate(
    world: Path, whole: Path, tmp_path: Path
) -> None:
    """Moved away from its VAE, to other data, whose captions have other words; the text encoder reads the first."""
    shutil.copytree(whole, tmp_path / "moved")
    shutil.copytree(world / "clips", tmp_path / "clips")
    for path in (tmp_path / "clips").glob("*.parquet"):
        table = pq.read_table(path)
        captions = pa.array(["a violet cube stands still"] * len(table))
        pq.write_table(table.set_column(table.schema.names.index("caption"), "caption", captions), path)
    config = changed(make_config(world, save_as="fp16", data=str(tmp_path / "clips")), steps=10, learning_rate=1e-3)
    gone = config.model.model_copy(update={"vae": str(tmp_path / "no longer there")})
    own = train._own(tmp_path / "moved", ["phases.2.steps=10", "phases.2.learning_rate=1e-3", f"data={config.data}"])
    assert own == config
    started: list[int] = []
    run(config.model_copy(update={"model": gone}), tmp_path / "moved", Hooks(on_start=started.append))
    assert started == [14]
    assert [step for step, _ in losses_of(tmp_path / "moved")][-3:] == [15, 16, 18]
    assert losses_of(tmp_path / "moved")[: len(losses_of(whole))] == losses_of(whole)
    history = [json.loads(line) for line in (tmp_path / "moved" / HISTORY).read_text().splitlines()]
    assert set(history[-1]["changes"]) == {"data", "model.vae", "phases.2.learning_rate", "phases.2.steps"}
    assert history[-1]["changes"]["phases.2.steps"] == [6, 10]
    assert "phases.2.steps 6 became 10" in history[-1]["says"]


def test_a_run_does_not_become_another_one(world: Path, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "copy")
    with pytest.raises(UserError, match="is 14 steps along with seed 0, which cannot become 1 now"):
        run(make_config(world, seed=1), tmp_path / "copy")
    other = make_world(tmp_path / "other", widths=(8, 4, 4, 4))
    with pytest.raises(UserError, match="is of latents of another VAE"):
        run(make_config(other), tmp_path / "copy")


def test_two_processes_cannot_train_in_one_folder(world: Path, tmp_path: Path) -> None:
    config = make_config(world)
    with alone(tmp_path), pytest.raises(UserError, match=f"another process trains in {tmp_path}: wait for it"):
        run(config, tmp_path)
    assert not (tmp_path / "checkpoints").exists()


def test_the_weights_of_any_checkpoint_become_a_model_folder(world: Path, whole: Path, tmp_path: Path) -> None:
    assert export(whole, tmp_path / "averaged") == 14
    name = "diffusion_transformer/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "averaged" / name).read_bytes() == (whole / "model" / name).read_bytes()
    assert export(whole, tmp_path / "raw", "raw", "12") == 12
    raw = load_pipeline(tmp_path / "raw").transformer.state_dict()
    newest = load_pipeline(whole / "model").transformer.state_dict()
    assert raw.keys() == newest.keys()
    assert not all(torch.equal(raw[key], newest[key]) for key in raw)
    with pytest.raises(UserError, match=r"step-0000001 cannot be read .*; checkpoints there: step-"):
        export(whole, tmp_path / "none", which="1")


def test_steps_with_a_clip_that_is_no_number_are_skipped_and_in_a_row_they_end_the_run(
    world: Path, tmp_path: Path
) -> None:
    config = make_config(world, most_skipped=1)
    spoiled: list[int] = []

    def spoil(step: int) -> Any:
        def update(self: PlainEngine, packs: Any, *given: Any) -> Any:
            done = self.updates + len(spoiled) + 1
            if done in (step, step + 1, 13, 14)[: 1 if step == 2 else 4]:
                spoiled.append(done)
                packs[0][0] = replace(packs[0][0], target=packs[0][0].target * float("inf"))
            return honest(self, packs, *given)

        return update

    honest = PlainEngine.update
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PlainEngine, "update", spoil(2))
        run(config, tmp_path / "one")
    assert events(tmp_path / "one") == [("started", 0), ("skipped", 2)]
    lines = curve.read(tmp_path / "one" / curve.LINES)
    assert [line["skipped"] for line in lines] == [1] * len(lines)
    spoiled.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PlainEngine, "update", spoil(5))
        with pytest.raises(TrainingDiverged, match="2 steps in a row had an infinite loss"):
            run(config, tmp_path / "two")
    newest = checkpoint.newest(tmp_path / "two" / "checkpoints")
    assert newest is not None
    assert newest.about.step == 3


def test_storage_that_is_gone_for_a_while_is_waited_for(
    world: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The whole folder of the run: curve, checkpoints, and model."""
    monkeypatch.setattr(files, "_PAUSE_S", 0.05)
    out, away = tmp_path / "out", tmp_path / "away"

    def lose_storage(done: int, loss: float) -> None:
        if done == 5:
            out.rename(away)
            threading.Timer(1.0, lambda: away.rename(out)).start()

    with caplog.at_level(logging.WARNING):
        run(make_config(world, save_as="fp16"), out, Hooks(on_step=lose_storage))
    assert "writing the loss curve failed" in caplog.text
    assert losses_of(out) == losses_of(whole)
    assert not away.exists()
