"""Model folders: bit-identical round trips, and one-line errors for what does not fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from framegrove.errors import UserError
from framegrove.models.pretrained import Pipeline, load_pipeline, load_transformer, save_pipeline
from tests.tiny import tiny_pipeline

WEIGHTS = "diffusion_transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return tiny_pipeline()


@pytest.fixture
def folder(pipeline: Pipeline, tmp_path: Path) -> Path:
    save_pipeline(pipeline, tmp_path / "a model")
    return tmp_path / "a model"


def _same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    mine, theirs = a.state_dict(), b.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_a_saved_model_reloads_bit_identically(pipeline: Pipeline, folder: Path) -> None:
    loaded = load_pipeline(folder)
    assert _same(loaded.transformer, pipeline.transformer)
    assert _same(loaded.vae, pipeline.vae)
    assert _same(loaded.text, pipeline.text)
    assert loaded.recipe == pipeline.recipe
    assert loaded.latent_norm == pipeline.latent_norm
    assert loaded.transformer.config == pipeline.transformer.config
    assert not any(p.requires_grad for p in loaded.transformer.parameters())


def test_the_layout_is_that_of_public_checkpoints(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {
        "diffusion_transformer",
        "causal_video_vae",
        "text_encoder",
        "tokenizer",
        "framegrove.json",
    }
    config = json.loads((folder / "diffusion_transformer" / "config.json").read_text(encoding="utf-8"))
    assert config["_class_name"] == "PyramidDiffusionMMDiT"
    assert "transformer_blocks.0.attn.to_out.0.weight" in load_file(folder / WEIGHTS)


def test_saving_again_replaces_and_leaves_nothing_beside(pipeline: Pipeline, folder: Path) -> None:
    save_pipeline(pipeline, folder, torch.bfloat16)
    assert load_file(folder / WEIGHTS)["proj_out.weight"].dtype is torch.bfloat16
    assert load_pipeline(folder).transformer.proj_out.weight.dtype is torch.float32
    assert [path.name for path in folder.parent.iterdir()] == ["a model"]


def test_a_loaded_transformer_can_be_trained_on(folder: Path) -> None:
    assert all(p.requires_grad for p in load_transformer(folder / "diffusion_transformer").parameters())


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no model folder at .*nowhere: give a folder that holds"):
        load_pipeline(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("framegrove.json", "is not a whole model: framegrove.json is missing"),
        ("diffusion_transformer/config.json", "is not a whole model: diffusion_transformer/config.json is missing"),
        (WEIGHTS, "holds no weights: diffusion_pytorch_model.safetensors is missing"),
    ],
)
def test_a_missing_file(folder: Path, name: str, message: str) -> None:
    (folder / name).unlink()
    with pytest.raises(UserError, match=message):
        load_pipeline(folder)


def test_keys_that_do_not_fit_are_named_with_the_nearest(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    weights["transformer_blocks.0.attn.to_kk.weight"] = weights.pop("transformer_blocks.0.attn.to_k.weight")
    save_file(weights, folder / WEIGHTS)
    with pytest.raises(UserError, match="does not fit") as caught:
        load_pipeline(folder)
    message = str(caught.value)
    assert "1 missing keys: transformer_blocks.0.attn.to_k.weight (nearest: transformer_blocks.0.attn.to_kk" in message
    assert "1 unexpected keys: transformer_blocks.0.attn.to_kk.weight" in message
    assert "\n" not in message


def test_a_wrong_shape(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    weights["proj_out.bias"] = torch.zeros(3)
    save_file(weights, folder / WEIGHTS)
    with pytest.raises(UserError, match=r"proj_out.bias has shape \(3,\), config.json asks for \(64,\)"):
        load_pipeline(folder)


def test_weights_that_are_no_safetensors(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"a pickle, perhaps")
    with pytest.raises(UserError, match="cannot be read as safetensors"):
        load_pipeline(folder)


def test_a_configuration_that_contradicts_itself(folder: Path) -> None:
    path = folder / "diffusion_transformer" / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**config, "caption_projection_dim": 7}), encoding="utf-8")
    with pytest.raises(UserError, match="caption_projection_dim is 7, it must be"):
        load_pipeline(folder)
    path.write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="cannot be read as JSON"):
        load_pipeline(folder)
