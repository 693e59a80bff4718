"""SD3 Medium as a start: key by key from both of its layouts, and what is said where something else is given."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from framegrove.config.model import ModelSource, TransformerConfig
from framegrove.errors import UserError
from framegrove.models import sd3
from framegrove.models.files import CONFIG_FILE, WEIGHTS_FILE
from framegrove.models.mmdit import MMDiT, position_table
from framegrove.models.pretrained import load_pipeline, load_source, transformer_at
from framegrove.models.sources import find_model
from framegrove.training.run import run
from tests.public_folder import CLIP_G, CLIP_L, T5, write_public_folder
from tests.tiny_training import make_config, make_world

# As diffusers writes it for SD3 Medium, but small: two blocks of two heads.
CONFIG: dict[str, Any] = {
    "_class_name": "SD3Transformer2DModel", "_diffusers_version": "0.29.0.dev0", "attention_head_dim": 16,
    "caption_projection_dim": 32, "in_channels": 16, "joint_attention_dim": T5, "num_attention_heads": 2,
    "num_layers": 2, "out_channels": 16, "patch_size": 2, "pooled_projection_dim": CLIP_L + CLIP_G,
    "pos_embed_max_size": 192, "sample_size": 128,
}  # fmt: skip
WIDTH, PATCH = 32, 2
LINEAR = ("weight", "bias")


def linear(name: str, outputs: int, inputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def folder_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of diffusers' SD3Transformer2DModel of CONFIG, in its order (diffusers 0.42.1)."""
    shapes: dict[str, tuple[int, ...]] = {"pos_embed.pos_embed": (1, 192 * 192, WIDTH)}
    shapes |= {"pos_embed.proj.weight": (WIDTH, 16, PATCH, PATCH), "pos_embed.proj.bias": (WIDTH,)}
    for name, inputs in (("timestep_embedder", 256), ("text_embedder", CLIP_L + CLIP_G)):
        shapes |= linear(f"time_text_embed.{name}.linear_1", WIDTH, inputs)
        shapes |= linear(f"time_text_embed.{name}.linear_2", WIDTH, WIDTH)
    shapes |= linear("context_embedder", WIDTH, T5)
    for block in range(2):
        last = block == 1
        stem = f"transformer_blocks.{block}."
        shapes |= linear(f"{stem}norm1.linear", 6 * WIDTH, WIDTH)
        shapes |= linear(f"{stem}norm1_context.linear", (2 if last else 6) * WIDTH, WIDTH)
        for layer in ("to_q", "to_k", "to_v", "add_k_proj", "add_v_proj", "add_q_proj", "to_out.0"):
            shapes |= linear(f"{stem}attn.{layer}", WIDTH, WIDTH)
        if not last:
            shapes |= linear(f"{stem}attn.to_add_out", WIDTH, WIDTH)
        for ff in ("ff",) if last else ("ff", "ff_context"):
            shapes |= linear(f"{stem}{ff}.net.0.proj", 4 * WIDTH, WIDTH)
            shapes |= linear(f"{stem}{ff}.net.2", WIDTH, 4 * WIDTH)
    shapes |= linear("norm_out.linear", 2 * WIDTH, WIDTH)
    return shapes | linear("proj_out", PATCH * PATCH * 16, WIDTH)


def file_shapes() -> dict[str, tuple[int, ...]]:
    """The same model as the single file of its authors names it (what convert_sd3_to_diffusers.py reads)."""
    shapes: dict[str, tuple[int, ...]] = {"pos_embed": (1, 192 * 192, WIDTH)}
    shapes |= {"x_embedder.proj.weight": (WIDTH, 16, PATCH, PATCH), "x_embedder.proj.bias": (WIDTH,)}
    for name, inputs in (("t_embedder", 256), ("y_embedder", CLIP_L + CLIP_G)):
        shapes |= linear(f"{name}.mlp.0", WIDTH, inputs) | linear(f"{name}.mlp.2", WIDTH, WIDTH)
    shapes |= linear("context_embedder", WIDTH, T5)
    for block in range(2):
        for stream in ("x_block", "context_block"):
            stem, short = f"joint_blocks.{block}.{stream}.", block == 1 and stream == "context_block"
            shapes |= linear(f"{stem}attn.qkv", 3 * WIDTH, WIDTH)
            shapes |= linear(f"{stem}adaLN_modulation.1", (2 if short else 6) * WIDTH, WIDTH)
            if not short:
                shapes |= linear(f"{stem}attn.proj", WIDTH, WIDTH)
                shapes |= linear(f"{stem}mlp.fc1", 4 * WIDTH, WIDTH) | linear(f"{stem}mlp.fc2", WIDTH, 4 * WIDTH)
    shapes |= linear("final_layer.linear", PATCH * PATCH * 16, WIDTH)
    shapes |= linear("final_layer.adaLN_modulation.1", 2 * WIDTH, WIDTH)
    return {f"model.diffusion_model.{name}": shape for name, shape in shapes.items()}


def filled(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Random weights in half precision, as released, around SD3's own position table."""
    generator = torch.Generator().manual_seed(0)
    weights = {name: (0.15 * torch.randn(shape, generator=generator)).half() for name, shape in shapes.items()}
    table = position_table(TransformerConfig.model_validate(own_keys(CONFIG))).half()
    return {name: table if name.endswith("pos_embed") else value for name, value in weights.items()}


def own_keys(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if not key.startswith("_") and key != "out_channels"}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``sd3``, a folder as diffusers has it; ``sd3_medium.safetensors``; and ``world`` with shards and their VAE."""
    root = tmp_path_factory.mktemp("sd3")
    public = write_public_folder(root / "public", "sd3", ())
    shutil.copytree(public, root / "sd3", ignore=shutil.ignore_patterns("causal_video_vae"))
    (root / "sd3" / "transformer").mkdir()
    (root / "sd3" / "transformer" / CONFIG_FILE).write_text(json.dumps(CONFIG))
    save_file(filled(folder_shapes()), root / "sd3" / "transformer" / WEIGHTS_FILE)
    others = {"first_stage_model.decoder.conv_in.bias": (4,), "text_encoders.clip_l.logit_scale": (1,)}
    save_file(filled(file_shapes() | others), root / "sd3_medium.safetensors")
    (root / "world").mkdir()
    make_world(root / "world")
    return root


def source(place: Path, world: Path, **more: Any) -> ModelSource:
    return ModelSource(name=str(place), vae=str(world / "world" / "vae"), **more)


@pytest.mark.parametrize("single", [False, True])
def test_every_key_is_used_once_and_every_parameter_is_filled_or_new(single: bool) -> None:
    """Each number of the source stands in one place of ours; what is left are the position table and our RMS norms."""
    config = TransformerConfig.model_validate(own_keys(CONFIG))
    shapes = file_shapes() if single else folder_shapes()
    shapes = {name.removeprefix("model.diffusion_model."): shape for name, shape in shapes.items()}
    pieces = sd3.pieces(config, single)
    assert set(shapes) - {piece.key for piece in pieces.values()} == {"pos_embed" if single else "pos_embed.pos_embed"}
    for key, count in Counter((piece.key, piece.part) for piece in pieces.values()).items():
        assert count == 1, key
    used = Counter(piece.key for piece in pieces.values())
    assert {used[key] for key in used} == ({1, 3} if single else {1})
    assert all(piece.parts == used[piece.key] for piece in pieces.values())
    ours = {name: tuple(value.shape) for name, value in MMDiT(config).named_parameters()}
    new = ours.keys() - pieces.keys()
    assert new == {f"transformer_blocks.{b}.attn.norm_{n}.weight" for b in (0, 1) for n in ("q", "k", "add_q", "add_k")}
    for name, piece in pieces.items():
        outputs, *rest = shapes[piece.key]
        assert ours[name] == (outputs // piece.parts, *rest)


def test_both_layouts_of_the_same_weights_become_the_same_model(places: Path) -> None:
    """The folder's weights, put together as the single file has them, come out as they went in."""
    weights = load_file(places / "sd3" / "transformer" / WEIGHTS_FILE)
    config = sd3.load_config(places / "sd3" / "transformer")
    stacked: dict[str, list[Tensor]] = {}
    for name, piece in sd3.pieces(config, single=True).items():  # q, k, v come in order
        value = weights[name]
        stacked.setdefault(piece.key, []).append(torch.cat(value.chunk(2)[::-1]) if piece.halves_exchanged else value)
    single = {f"model.diffusion_model.{key}": torch.cat(parts) for key, parts in stacked.items()}
    save_file(single | {"model.diffusion_model.pos_embed": weights["pos_embed.pos_embed"]}, places / "same.safetensors")
    assert sd3.load_config(places / "same.safetensors") == config
    mine = sd3.load_weights(places / "sd3" / "transformer", config)
    theirs = sd3.load_weights(places / "same.safetensors", config)
    assert mine.keys() == theirs.keys() == MMDiT(config).state_dict().keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    for name in weights.keys() - {"pos_embed.pos_embed"}:
        assert torch.equal(mine[name], weights[name].float())
    assert torch.equal(mine["pos_embed.pos_embed"], position_table(config))  # not rounded to half precision
    assert all((value == 1).all() for name, value in mine.items() if ".norm_" in name)


def test_scale_and_shift_are_exchanged_where_the_file_has_them_the_other_way_round(places: Path) -> None:
    weights = load_file(places / "sd3_medium.safetensors")
    config = sd3.load_config(places / "sd3_medium.safetensors")
    state = sd3.load_weights(places / "sd3_medium.safetensors", config)
    for ours, theirs in (
        ("norm_out.linear", "final_layer.adaLN_modulation.1"),
        ("transformer_blocks.1.norm1_context.linear", "joint_blocks.1.context_block.adaLN_modulation.1"),
    ):
        shift, scale = weights[f"model.diffusion_model.{theirs}.weight"].float().chunk(2)
        assert torch.equal(state[f"{ours}.weight"], torch.cat([scale, shift]))
    first = weights["model.diffusion_model.joint_blocks.0.context_block.adaLN_modulation.1.weight"].float()
    assert torch.equal(state["transformer_blocks.0.norm1_context.linear.weight"], first)


def test_training_starts_from_either_layout(places: Path, tmp_path: Path) -> None:
    for name, more in (("sd3", {}), ("sd3_medium.safetensors", {"encoders": str(places / "sd3")})):
        model = {"start": str(places / name), "vae": str(places / "world" / "vae"), "train_text": False, **more}
        config = make_config(places / "world", model=model)
        run(config.model_copy(update={"phases": config.phases[:1]}), tmp_path / name)
        trained = load_pipeline(tmp_path / name)
        start = transformer_at(find_model(source(places / name, places, **more)))
        assert trained.recipe.pyramid.stages == 3
        assert trained.variant == "diffusion_transformer"
        moved = trained.transformer.proj_out.weight - start.state_dict()["proj_out.weight"]
        assert 0 < moved.abs().max() < 0.1


def test_what_is_not_sd3_medium(places: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is SD3 Medium, which makes images .* with the folder of a video VAE as vae"):
        load_pipeline(places / "sd3")
    with pytest.raises(UserError, match=r"holds a transformer alone: name a folder with .*\(encoders\)"):
        load_source(source(places / "sd3_medium.safetensors", places))
    with pytest.raises(UserError, match="has a VAE and text encoders of its own: leave vae and encoders out"):
        load_source(ModelSource(name=str(places / "public"), vae="shipped"))
    shutil.copytree(places / "sd3", tmp_path / "sd3")
    folder = tmp_path / "sd3" / "transformer"
    (folder / CONFIG_FILE).write_text(json.dumps(CONFIG | {"qk_norm": "rms_norm"}))
    with pytest.raises(UserError, match="qk_norm is set, as in later models: only SD3 Medium can be started from"):
        load_source(source(tmp_path / "sd3", places))
    (folder / CONFIG_FILE).write_text(json.dumps(CONFIG))
    weights = load_file(folder / WEIGHTS_FILE)
    save_file(weights | {"transformer_blocks.0.attn2.to_q.bias": torch.zeros(3)}, folder / WEIGHTS_FILE)
    with pytest.raises(UserError, match=r"0 keys are missing \(none\), 1 are unknown \(transformer_blocks\.0\.attn2"):
        load_source(source(tmp_path / "sd3", places))
    save_file({**weights, "pos_embed.pos_embed": weights["pos_embed.pos_embed"] + 1}, folder / WEIGHTS_FILE)
    with pytest.raises(UserError, match=r"its position table \(pos_embed\.pos_embed\) is another one"):
        load_source(source(tmp_path / "sd3", places))
    save_file({"something": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="is neither SD3 Medium's file nor a model folder"):
        load_source(source(tmp_path / "other.safetensors", places, encoders=str(places / "sd3")))
