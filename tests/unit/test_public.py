"""Public checkpoint folders: both kinds, variants, shards, pickles, the hub's cache, text encoders, saving back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from framegrove.config.model import ModelSource
from framegrove.errors import UserError
from framegrove.generators.places import Place
from framegrove.models.files import PICKLE_FILE, WEIGHTS_FILE
from framegrove.models.flux import Flux
from framegrove.models.mmdit import MMDiT
from framegrove.models.pretrained import load_pipeline, load_transformer, save_pipeline
from framegrove.models.public import RELEASED_NORMS, local_folder
from framegrove.models.sources import find_model
from framegrove.models.text_public import PublicTextEncoder, count_tokens
from framegrove.training.step import Trainable
from tests.public_folder import CLIP_G, CLIP_L, T5, shard, write_public_folder

KINDS = ("sd3", "miniflux")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("public")
    variants = {"sd3": ("384p", "768p"), "miniflux": ("image",)}
    return {kind: write_public_folder(root / f"a {kind}", kind, variants[kind]) for kind in KINDS}


@pytest.fixture
def sd3(made: dict[str, Path], tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(made["sd3"], tmp_path / "sd3"))


def _same(a: nn.Module, b: nn.Module) -> bool:
    mine, theirs = a.state_dict(), b.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.parametrize("kind", KINDS)
def test_a_public_folder_loads_and_is_written_back(kind: str, made: dict[str, Path], tmp_path: Path) -> None:
    pipeline = load_pipeline(made[kind], torch.bfloat16)
    assert isinstance(pipeline.transformer, MMDiT if kind == "sd3" else Flux)
    assert next(pipeline.transformer.parameters()).dtype is torch.bfloat16
    assert pipeline.latent_norm == RELEASED_NORMS["mmdit" if kind == "sd3" else "flux"]
    save_pipeline(pipeline, tmp_path / "saved")
    folders = {path.name for path in made[kind].iterdir()}
    kept = folders - {"diffusion_transformer_384p"}  # of two variants one was loaded
    assert {path.name for path in (tmp_path / "saved").iterdir()} == kept | {"framegrove.json"}
    again = load_pipeline(tmp_path / "saved", torch.bfloat16)
    assert _same(again.transformer, pipeline.transformer)
    assert _same(again.vae, pipeline.vae)
    assert _same(again.text, pipeline.text)
    assert (again.recipe, again.latent_norm, again.variant) == (pipeline.recipe, pipeline.latent_norm, pipeline.variant)
    public = json.loads((made[kind] / pipeline.variant / "config.json").read_text(encoding="utf-8"))
    assert json.loads((tmp_path / "saved" / pipeline.variant / "config.json").read_text(encoding="utf-8")) == public
    for path in made[kind].glob("text_encoder*/model.safetensors"):
        assert load_file(tmp_path / "saved" / path.parent.name / path.name).keys() == load_file(path).keys()
    prompts = ["a red 3", ""]
    for before, after in zip(pipeline.text.encode(prompts), again.text.encode(prompts), strict=True):
        assert torch.equal(before.tokens_LD, after.tokens_LD)
        assert torch.equal(before.pooled_P, after.pooled_P)


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_are_encoded_as_released(kind: str, made: dict[str, Path]) -> None:
    """Against the models called by hand: T5 at 128 tokens under its mask; CLIP's projections joined, or its own."""
    folder = made[kind]
    text = PublicTextEncoder.load(folder)
    prompts = ["a red 3 moves", "", "blue " * 60]
    encoded = text.encode([*prompts, prompts[0]])
    assert encoded[3] is encoded[0]
    assert [len(e.tokens_LD) for e in encoded] == text.token_counts([*prompts, prompts[0]])
    assert [len(e.tokens_LD) for e in encoded[1:3]] == [1, 128]
    assert [count_tokens(folder, prompt) for prompt in prompts] == text.token_counts(prompts)
    assert encoded[0].pooled_P.shape == (CLIP_L + (CLIP_G if kind == "sd3" else 0),)
    assert encoded[0].tokens_LD.shape[1] == T5
    *clips, t5 = text.models.values()
    for prompt, embedding in zip(prompts, encoded, strict=False):
        rows = text.tokenizers[-1](prompt, max_length=128, truncation=True, return_tensors="pt")
        states = t5(input_ids=rows["input_ids"]).last_hidden_state[0]  # no padding, no mask
        torch.testing.assert_close(embedding.tokens_LD, states)
        pooled = []
        for clip, tokenizer in zip(clips, text.tokenizers, strict=False):
            ids = tokenizer(prompt, max_length=77, truncation=True, return_tensors="pt")["input_ids"]
            end = (clip if kind == "miniflux" else clip.text_model)(input_ids=ids).last_hidden_state[:, -1]
            pooled.append(end if kind == "miniflux" else clip.text_projection(end))
        torch.testing.assert_close(embedding.pooled_P, torch.cat(pooled, dim=-1)[0])
    with pytest.raises(UserError, match=r"set model\.train_text to false"):
        Trainable(load_transformer(next(folder.glob("diffusion_*"))), text, train_text=True)


@pytest.mark.parametrize("kind", KINDS)
def test_the_end_of_a_long_prompt_that_t5_cannot_read_is_told(kind: str, made: dict[str, Path]) -> None:
    """The test's T5 has a token a letter and one a blank, so that 127 of them end inside a word."""
    text = PublicTextEncoder.load(made[kind])
    long = "blue " * 25 + "red balloons rise above the old town while children wave at them"
    read = text.readable(long)
    assert long.startswith(read)
    assert text.token_counts([read])[0] <= 128
    assert text.token_counts([f"{read} {text.unread(long).split()[0]}"]) == [128]
    assert f"{read} {text.unread(long)}" in long
    short = "a red balloon"
    assert (text.readable(short), text.unread(short)) == (short, None)
    # What is cut off changes nothing of what the transformer reads.
    whole, other = text.encode([long, long[: len(read)] + long[len(read) :].replace("town", "city")])
    assert torch.equal(whole.tokens_LD, other.tokens_LD)


def test_clip_reads_mended_prompts(made: dict[str, Path]) -> None:
    encoder = PublicTextEncoder.load(made["miniflux"])
    ligature, letters = encoder.encode(["a \ufb01sh", "a fish"])
    assert torch.equal(ligature.pooled_P, letters.pooled_P)


def test_variants(made: dict[str, Path]) -> None:
    assert load_pipeline(made["sd3"]).variant == "diffusion_transformer_768p"
    small = load_pipeline(made["sd3"], variant="384p")
    assert (small.variant, small.recipe.height, small.recipe.width) == ("diffusion_transformer_384p", 384, 640)
    assert _same(small.transformer, load_transformer(made["sd3"] / "diffusion_transformer_384p"))
    with pytest.raises(UserError, match="has no variant '1080p': choose one of diffusion_transformer_768p, "):
        load_pipeline(made["sd3"], variant="1080p")


def test_shards_are_read_like_one_file(made: dict[str, Path], sd3: Path) -> None:
    for part in ("diffusion_transformer_768p", "causal_video_vae"):
        shard(sd3 / part, "diffusion_pytorch_model")
    shard(sd3 / "text_encoder_3", "model")
    sharded, whole = load_pipeline(sd3), load_pipeline(made["sd3"])
    assert _same(sharded.transformer, whole.transformer)
    assert _same(sharded.vae, whole.vae)
    assert _same(sharded.text, whole.text)
    (sd3 / "diffusion_transformer_768p" / "diffusion_pytorch_model-00002-of-00003.safetensors").unlink()
    with pytest.raises(UserError, match=r"of 3 shards diffusion_pytorch_model-00002-of-00003\.safetensors is missing"):
        load_pipeline(sd3)


def test_an_index_cannot_point_outside_its_folder(sd3: Path) -> None:
    folder = sd3 / "diffusion_transformer_768p"
    (folder / WEIGHTS_FILE).rename(folder.parent / WEIGHTS_FILE)
    (folder / f"{WEIGHTS_FILE}.index.json").write_text(json.dumps({"weight_map": {"a": f"../{WEIGHTS_FILE}"}}))
    with pytest.raises(UserError, match="names no shards beside it"):
        load_pipeline(sd3)


def test_a_pickle_is_read_only_where_the_caller_says_so(made: dict[str, Path], sd3: Path) -> None:
    """The public VAE comes as a .bin file."""
    vae = sd3 / "causal_video_vae"
    torch.save(load_file(vae / WEIGHTS_FILE), vae / PICKLE_FILE)
    (vae / WEIGHTS_FILE).unlink()
    with pytest.raises(UserError, match=r"holds its weights as a pickle .* or allow it \(--allow-pickle; "):
        load_pipeline(sd3)
    assert _same(load_pipeline(sd3, allow_pickle=True).vae, load_pipeline(made["sd3"]).vae)
    torch.save({"model": nn.Linear(2, 2)}, vae / PICKLE_FILE)  # what the restricted reader must not run
    with pytest.raises(UserError, match="cannot be read as weights"):
        load_pipeline(sd3, allow_pickle=True)


def test_text_encoders_of_older_libraries_and_incomplete_ones(made: dict[str, Path], sd3: Path) -> None:
    """Older files hold more than is needed; what is missing is told, never made up."""
    path = sd3 / "text_encoder" / "model.safetensors"
    weights = load_file(path)
    save_file({**weights, "text_model.embeddings.position_ids": torch.arange(77)[None]}, path, {"format": "pt"})
    assert _same(PublicTextEncoder.load(sd3), PublicTextEncoder.load(made["sd3"]))
    fewer = {name: tensor for name, tensor in weights.items() if "final_layer_norm" not in name}
    save_file(fewer, path, {"format": "pt"})
    with pytest.raises(UserError, match=r"2 missing keys: .*final_layer_norm"):
        PublicTextEncoder.load(sd3)
    path.unlink()
    with pytest.raises(UserError, match="text_encoder cannot be read as a text encoder in safetensors"):
        PublicTextEncoder.load(sd3)
    shutil.rmtree(sd3 / "tokenizer")
    shutil.copytree(made["sd3"] / "text_encoder", sd3 / "text_encoder", dirs_exist_ok=True)
    with pytest.raises(UserError, match="tokenizer cannot be read as a tokenizer"):
        PublicTextEncoder.load(sd3)


def test_a_vae_that_does_not_fit_names_its_keys(sd3: Path) -> None:
    path = sd3 / "causal_video_vae" / WEIGHTS_FILE
    weights = load_file(path)
    weights["quant_convs.conv.bias"] = weights.pop("quant_conv.conv.bias")
    save_file(weights, path)
    with pytest.raises(UserError, match=r"1 missing keys: quant_conv\.conv\.bias \(nearest: quant_convs\.conv\.bias"):
        load_pipeline(sd3)


def test_a_hub_id_is_found_in_the_hubs_cache(
    made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a network, what was downloaded before; what was not is one line."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    held = tmp_path / "models--somebody--pyramid-flow-miniflux"
    commit = "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(made["miniflux"], held / "snapshots" / commit)
    (held / "refs").mkdir()
    (held / "refs" / "main").write_text(commit)
    for name in ("somebody/pyramid-flow-miniflux", f"somebody/pyramid-flow-miniflux@{commit}"):
        pipeline = load_pipeline(name, variant="image")
        assert _same(pipeline.transformer, load_transformer(made["miniflux"] / "diffusion_transformer_image"))
    with pytest.raises(UserError, match="no model folder at nobody/nothing, and as a hub id, owner/name, it brings no"):
        load_pipeline("nobody/nothing")


def test_a_name_below_a_folder_that_is_here_is_no_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    assert local_folder("runs/nothing") == Path("runs/nothing")
    with pytest.raises(UserError, match="no model folder at runs/nothing"):
        find_model(ModelSource(name="runs/nothing"))
    assert Place.find("runs/nothing") is None
