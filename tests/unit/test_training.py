"""A run in one process: it learns, resumes bit for bit, is not changed by packing, and leaves a model."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from framegrove.config.train import ModelConfig
from framegrove.errors import UserError
from framegrove.models.files import PICKLE_FILE, WEIGHTS_FILE
from framegrove.models.flux import Flux
from framegrove.models.pretrained import load_pipeline
from framegrove.models.text_public import PublicTextEncoder
from framegrove.training import checkpoint, curve
from framegrove.training.engine import PlainEngine
from framegrove.training.loop import Hooks
from framegrove.training.run import Setup, run
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
    assert names == {"loss", "stage0", "stage1", "stage2", "image", "video"}
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
    Setup.of(make_config(world, model={"start": str(tmp_path / "out" / "model"), "train_text": False}))
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
    phases = [phase | {"steps": 12, "matrix_learning_rate": 0.02}]
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


def test_a_worker_reads_the_shards_of_its_share_and_no_others(world: Path, tmp_path: Path) -> None:
    """As it is sent to the workers, a setup needs neither the other shards nor the data's sizes again."""
    shutil.copytree(world / "clips", tmp_path / "clips")
    config = make_config(world, data=str(tmp_path / "clips"))
    sent = pickle.dumps(Setup.of(config))
    shares = []
    for rank in range(3):
        whole = Setup.of(make_config(world)).pools(rank, 3)(config.phases[0], 0).at(0)
        mine = {clip.id // 8 for clip in whole}  # of which shard
        for number in {0, 1, 2} - mine:
            (tmp_path / "clips" / f"{number}.parquet").rename(tmp_path / f"{number}.hidden")
        received: Setup = pickle.loads(sent)
        pool = received.pools(rank, 3)(config.phases[0], 0).at(0)
        assert [clip.id for clip in pool] == [clip.id for clip in whole]
        shares.append(mine)
        for hidden in tmp_path.glob("*.hidden"):
            hidden.rename(tmp_path / "clips" / f"{hidden.stem}.parquet")
    assert sorted(number for share in shares for number in share) == [0, 1, 2]


def test_clips_that_are_held_for_good_are_not_read_ahead(world: Path) -> None:
    def read(*_: Any) -> Any:
        raise Stopped

    held = Setup.of(make_config(world, pool={"clips": 24, "refresh": 1}))
    assert len(held.pools(read=read)(held.config.phases[0], 0).at(0)) == 24
    moving = Setup.of(make_config(world, pool={"clips": 23, "refresh": 1}))
    with pytest.raises(Stopped):
        moving.pools(read=read)(moving.config.phases[0], 0)


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
