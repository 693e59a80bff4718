"""The training loop in one process: it learns, resumes to the bit, and refuses what does not fit before it starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from framegrove.config.base import ConfigError, load
from framegrove.config.train import TrainConfig
from framegrove.config.vae import VaeConfig
from framegrove.data import digits
from framegrove.data.schema import LatentClip, to_table
from framegrove.models.pretrained import load_pipeline
from framegrove.models.vae import CausalVideoVae
from framegrove.models.vae_files import Affine, LatentNorm, save_vae
from framegrove.training import checkpoint, curve
from framegrove.training.encode import prepare_digits, vae_digest
from framegrove.training.run import Watch, run

TRANSFORMER = {
    "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16, "caption_projection_dim": 32,
    "pooled_projection_dim": 16, "joint_attention_dim": 16, "sample_size": 16, "pos_embed_max_size": 16,
    "max_num_frames": 8,
}  # fmt: skip
PHASE: dict[str, Any] = {"sizes": [[64, 64]], "batch": 12, "learning_rate": 3e-3, "warmup": 0, "ema": 0.9}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny VAE and shards of smooth random latents that it is said to have encoded."""
    folder = tmp_path_factory.mktemp("world")
    widths = (8, 8, 8, 8)
    torch.manual_seed(0)
    vae = CausalVideoVae(
        VaeConfig(
            encoder_block_out_channels=widths, decoder_block_out_channels=widths, encoder_norm_num_groups=4,
            decoder_norm_num_groups=4, encoder_layers_per_block=(1,) * 4, decoder_layers_per_block=(1,) * 4,
        )
    )  # fmt: skip
    plain = Affine((0.0,) * 16, 1.0)
    save_vae(folder / "vae", vae, LatentNorm(plain, plain))
    (folder / "clips").mkdir()
    clips = []
    for index in range(24):
        rng = np.random.default_rng(index)
        latents = np.repeat(rng.standard_normal((16, 3, 1, 1)), 64, axis=2).reshape(16, 3, 8, 8).astype(np.float16)
        caption = digits.caption(digits.draw_objects(rng, split="train"))
        clips.append(LatentClip(index, caption, 64, 64, 8.0, latents))
    for number in range(3):
        table = to_table(clips[8 * number : 8 * number + 8], vae_digest(vae))
        pq.write_table(table, folder / "clips" / f"{number}.parquet")
    return folder


def make_config(world: Path, **changes: Any) -> TrainConfig:
    model = {"start": None, "vae": str(world / "vae"), "transformer": TRANSFORMER, "text": {"layers": 1, "width": 16}}
    phases = [
        PHASE | {"name": "image", "steps": 6},
        PHASE | {"name": "low", "units": 3, "steps": 6, "objective": {"stage_weights": [1, 2, 0]}},
        PHASE | {"name": "high", "units": 3, "steps": 8, "decay": 0.5, "objective": {"stage_weights": [1, 2, 2]}},
    ]
    given = {"data": str(world / "clips"), "model": model, "phases": phases, "checkpoint_every": 4, "log_every": 2}
    return TrainConfig.model_validate(given | {"pool": {"clips": 10, "refresh": 1}} | changes)


def silent(on_step: Any = lambda done, loss: None) -> Watch:
    return Watch(lambda done: None, on_step, lambda point: None)


class Stopped(Exception):
    """Stands for whatever ends a run in the middle."""


def losses_of(out: Path) -> list[tuple[int, dict[str, float]]]:
    return [(line["step"], line["losses"]) for line in curve.read(out / curve.LINES)]


@pytest.mark.parametrize("changes", [{}, {"precision": "fp32"}])
def test_a_stopped_run_goes_on_along_the_undisturbed_curve(world: Path, tmp_path: Path, changes: Any) -> None:
    config = make_config(world, **changes)
    run(config, tmp_path / "whole", silent())

    def stop_at_11(done: int, loss: float) -> None:
        if done == 11:
            raise Stopped

    with pytest.raises(Stopped):
        run(config, tmp_path / "cut", silent(stop_at_11))
    assert not (tmp_path / "cut" / "model").exists() or curve.read(tmp_path / "cut" / curve.LINES)[-1]["step"] < 12
    started: list[int] = []
    run(config, tmp_path / "cut", Watch(started.append, lambda done, loss: None, lambda point: None))
    assert started == [8]
    assert losses_of(tmp_path / "cut") == losses_of(tmp_path / "whole")
    for name in ("diffusion_transformer/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"):
        assert (tmp_path / "cut/model" / name).read_bytes() == (tmp_path / "whole/model" / name).read_bytes()


def test_muon_learns_resumes_and_is_for_all_phases_or_none(world: Path, tmp_path: Path) -> None:
    phases = [phase.model_dump(mode="json") | {"matrix_learning_rate": 0.02} for phase in make_config(world).phases]
    config = make_config(world, phases=phases)
    run(config, tmp_path / "whole", silent())
    losses = losses_of(tmp_path / "whole")
    assert losses[-1][1]["image"] < losses[0][1]["image"]

    def stop_at_18(done: int, loss: float) -> None:
        if done == 18:
            raise Stopped

    with pytest.raises(Stopped):
        run(config, tmp_path / "cut", silent(stop_at_18))
    run(config, tmp_path / "cut", silent())
    assert losses_of(tmp_path / "cut") == losses
    phases[0]["matrix_learning_rate"] = None
    with pytest.raises(ValueError, match="every phase or to none"):
        make_config(world, phases=phases)


def test_a_run_leaves_a_model_that_loads_and_a_picture(world: Path, tmp_path: Path) -> None:
    model = run(make_config(world, save_as="fp16"), tmp_path / "run", silent())
    pipeline = load_pipeline(model)
    assert pipeline.recipe.pyramid.stages == 3
    assert all(torch.isfinite(p).all() for p in pipeline.transformer.parameters())
    assert (tmp_path / "run" / curve.PICTURE).stat().st_size > 5000
    names = {name for _, losses in losses_of(tmp_path / "run") for name in losses}
    assert names == {"loss", "stage0", "stage1", "stage2", "image", "video"}
    held = [path.name for path in (tmp_path / "run/checkpoints").iterdir()]
    assert sorted(held) == ["step-0000016", "step-0000020"]


def test_packing_changes_the_passes_and_not_the_result(world: Path, tmp_path: Path) -> None:
    curves = []
    for name, pack_tokens in (("one", None), ("many", 120)):
        phases = [phase.model_dump(mode="json") | {"pack_tokens": pack_tokens} for phase in make_config(world).phases]
        run(make_config(world, phases=phases, precision="fp32"), tmp_path / name, silent())
        curves.append(losses_of(tmp_path / name))
    for (_, one), (_, many) in zip(*curves, strict=True):
        assert one == pytest.approx(many, rel=1e-4)


def test_a_checkpoint_of_another_configuration_is_refused(world: Path, tmp_path: Path) -> None:
    run(make_config(world), tmp_path, silent())
    with pytest.raises(ValueError, match=r"another configuration \(seed differ\)"):
        run(make_config(world, seed=3), tmp_path, silent())
    newest = checkpoint.newest(tmp_path / "checkpoints")
    assert newest is not None
    (newest / "run.json").write_text("{")
    with pytest.raises(ValueError, match="is not a checkpoint"):
        run(make_config(world), tmp_path, silent())


@pytest.mark.parametrize(
    ("phase", "message"),
    [
        ({"sizes": [[64, 64], [72, 64]]}, "72x64 pixels do not fit.*multiples of 64"),
        ({"objective": {"stage_weights": [1, 1]}}, "2 stage_weights for a pyramid of 3"),
        ({"units": 9}, "trains 9 units, the longest clip .* has 3"),
        ({"sizes": [[128, 128]]}, "no clips of 128x128"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    world: Path, tmp_path: Path, phase: dict[str, Any], message: str
) -> None:
    config = make_config(world, phases=[PHASE | {"name": "only", "steps": 2} | phase])
    with pytest.raises(ValueError, match=message) as caught:
        run(config, tmp_path / "run", silent())
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_clips_of_another_vae_are_refused(world: Path, tmp_path: Path) -> None:
    clip = LatentClip(0, "a red 3 moves up and down", 64, 64, 8.0, np.zeros((16, 3, 8, 8), np.float16))
    pq.write_table(to_table([clip], "somebody else's"), tmp_path / "0.parquet")
    with pytest.raises(ValueError, match="encoded by another VAE"):
        run(make_config(world, data=str(tmp_path)), tmp_path / "run", silent())


def test_prepared_clips_are_whole_or_not_there(world: Path, tmp_path: Path) -> None:
    from framegrove.models.vae_files import load_vae

    vae, _ = load_vae(world / "vae")
    paths = prepare_digits(vae, tmp_path / "clips", 5, units=2, pairs=0.4)
    rows = pq.read_table(paths[0]).to_pylist()
    assert [row["shape"] for row in rows] == [[16, 2, 8, 8]] * 5
    assert sum(" and a " in row["caption"] for row in rows) == 2
    with pytest.raises(ValueError, match="already exists"):
        prepare_digits(vae, tmp_path / "clips", 5)

    def break_off(done: int) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        prepare_digits(vae, tmp_path / "torn", 5, units=2, on_clips=break_off)
    assert not (tmp_path / "torn").exists()


@pytest.mark.parametrize("path", sorted(Path("jobs/configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_training_configurations_load(path: Path) -> None:
    if "phases:" in path.read_text():
        assert load(TrainConfig, path).steps > 0


def test_a_torn_line_of_the_curve_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / curve.LINES
    path.write_text(json.dumps({"step": 1}) + "\n" + '{"step": 2')
    assert curve.read(path) == [{"step": 1}]


def test_an_unknown_key_is_named() -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'phases\.0\.unit', did you mean 'units'"):
        load(
            TrainConfig,
            None,
            ["data=x", "phases=[{name: a, sizes: [[64, 64]], steps: 1, batch: 1, warmup: 0, unit: 1}]"],
        )
