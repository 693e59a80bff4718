"""Small real model folders in the layout of the public checkpoints, text encoders and tokenizers included."""

from __future__ import annotations

import json
import string
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from framegrove.config.model import FluxConfig, TransformerConfig
from framegrove.models.pretrained import save_transformer
from framegrove.models.public import RELEASED_NORMS
from framegrove.models.transformers import build_transformer
from framegrove.models.vae_files import NORM_FILE, save_vae
from tests.tiny import tiny_vae

CLIP_L, CLIP_G, T5 = 12, 20, 16  # widths of what each encoder gives
MMDIT = TransformerConfig(
    num_layers=2,
    num_attention_heads=2,
    attention_head_dim=16,
    caption_projection_dim=32,
    pooled_projection_dim=CLIP_L + CLIP_G,
    joint_attention_dim=T5,
    sample_size=16,
    pos_embed_max_size=16,
)
FLUX = FluxConfig(
    num_layers=1,
    num_single_layers=2,
    num_attention_heads=2,
    attention_head_dim=16,
    axes_dims_rope=(4, 6, 6),
    pooled_projection_dim=CLIP_L,
    joint_attention_dim=T5,
)


def write_public_folder(folder: Path, kind: str, variants: tuple[str, ...] = ("384p",)) -> Path:
    """A whole "sd3" or "miniflux" folder with random weights; each variant's differ."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        for variant in variants:
            transformer = build_transformer(MMDIT if kind == "sd3" else FLUX)
            for parameter in transformer.parameters():
                torch.nn.init.normal_(parameter, std=0.15)
            save_transformer(transformer, folder / f"diffusion_transformer_{variant}")
        save_vae(folder / "causal_video_vae", tiny_vae(), RELEASED_NORMS["mmdit"])
        (folder / "causal_video_vae" / NORM_FILE).unlink()  # public folders have none
        _clip(folder, "", CLIP_L, projected=kind == "sd3", pad="<|endoftext|>")
        if kind == "sd3":
            _clip(folder, "_2", CLIP_G, projected=True, pad="!")
        _t5(folder, "_3" if kind == "sd3" else "_2")
    return folder


def shard(folder: Path, stem: str, shards: int = 3) -> None:
    """Cut ``stem``.safetensors of a folder into shards with an index, as large public files are."""
    weights = load_file(folder / f"{stem}.safetensors")
    (folder / f"{stem}.safetensors").unlink()
    places = {}
    for number in range(shards):
        name = f"{stem}-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = {key: weights[key] for key in sorted(weights)[number::shards]}
        save_file(part, folder / name, {"format": "pt"})
        places.update(dict.fromkeys(part, name))
    index = {"metadata": {"total_size": 0}, "weight_map": places}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def _clip(folder: Path, suffix: str, width: int, projected: bool, pad: str) -> None:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    marks = ["<|startoftext|>", "<|endoftext|>"]
    letters = string.ascii_lowercase + string.digits
    vocabulary = ["!", *letters, *(f"{letter}</w>" for letter in letters), *marks]
    config = CLIPTextConfig(
        vocab_size=len(vocabulary),
        hidden_size=width if not projected else 16,
        intermediate_size=32,
        projection_dim=width,
        num_hidden_layers=1,
        num_attention_heads=2,
        bos_token_id=len(vocabulary) - 2,
        eos_token_id=len(vocabulary) - 1,
        pad_token_id=vocabulary.index(pad),
    )
    model = (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)
    model.save_pretrained(folder / f"text_encoder{suffix}")
    file = folder / f"text_encoder{suffix}" / "model.safetensors"
    # Public files name everything that stands in the text model so; later libraries do without where they can.
    named = {n if n.startswith("text_") else f"text_model.{n}": tensor for n, tensor in load_file(file).items()}
    save_file(named, file, {"format": "pt"})
    tokenizer = folder / f"tokenizer{suffix}"
    tokenizer.mkdir()
    vocab = {word: number for number, word in enumerate(vocabulary)}
    (tokenizer / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    (tokenizer / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    marked = {"bos_token": marks[0], "eos_token": marks[1], "unk_token": marks[1], "pad_token": pad}
    _json(tokenizer, {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, **marked})


def _t5(folder: Path, suffix: str) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import T5Config, T5EncoderModel

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
    pieces += [(letter, -3.0) for letter in string.ascii_lowercase + string.digits]
    config = T5Config(
        vocab_size=len(pieces),
        d_model=T5,
        d_kv=8,
        d_ff=32,
        num_layers=1,
        num_heads=2,
        feed_forward_proj="gated-gelu",
    )
    T5EncoderModel(config).save_pretrained(folder / f"text_encoder{suffix}")
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    (folder / f"tokenizer{suffix}").mkdir()
    tokenizer.save(str(folder / f"tokenizer{suffix}" / "tokenizer.json"))
    marked = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>", "extra_ids": 0}
    _json(folder / f"tokenizer{suffix}", {"tokenizer_class": "T5Tokenizer", "model_max_length": 512, **marked})


def _json(folder: Path, data: dict[str, object]) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps(data), encoding="utf-8")
