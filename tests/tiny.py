"""Real but tiny pipelines with random weights, for tests in which quality does not matter."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from framegrove.config.engine import shipped_folder
from framegrove.config.flow import GuidanceConfig, StepsConfig
from framegrove.config.model import Recipe, TextConfig, TransformerConfig
from framegrove.config.vae import VaeConfig
from framegrove.models.mmdit import MMDiT
from framegrove.models.pretrained import Pipeline, save_pipeline
from framegrove.models.text import TextEncoder
from framegrove.models.vae import CausalVideoVae
from framegrove.models.vae_files import Affine, LatentNorm

WORDS = (*"0123456789", *["a", "red", "green", "blue", "moves", "left", "and", "right", "up", "down"])


def tiny_pipeline(seed: int = 0, steps: int = 2) -> Pipeline:
    """A whole pipeline for 64x64 pixels, three stages of ``steps`` steps; random weights that let everything matter."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = MMDiT(
            TransformerConfig(
                num_layers=2,
                num_attention_heads=2,
                attention_head_dim=16,
                caption_projection_dim=32,
                pooled_projection_dim=16,
                joint_attention_dim=16,
                sample_size=16,
                pos_embed_max_size=16,
                max_num_frames=32,
            )
        )
        for parameter in transformer.parameters():
            torch.nn.init.normal_(parameter, std=0.15)
        vae = tiny_vae()
    text = TextEncoder.fresh(TextConfig(layers=1, width=16, heads=2), WORDS, seed)
    norm = LatentNorm(Affine((0.1,), 0.8), Affine((-0.2,), 0.5))
    recipe = Recipe(
        guidance=GuidanceConfig(first=3.0, others=1.5),
        steps=StepsConfig(first=(steps,) * 3, others=(steps,) * 3),
        fps=8,
        height=64,
        width=64,
        units=4,
    )
    for module in (transformer, vae, text):
        module.eval().requires_grad_(False)
    return Pipeline(transformer, vae, norm, text, recipe)


def tiny_vae() -> CausalVideoVae:
    """A public VAE in small, 8 x 8 x 8."""
    return CausalVideoVae(
        VaeConfig(
            encoder_layers_per_block=(1, 1, 1, 1),
            encoder_block_out_channels=(8, 8, 8, 8),
            encoder_norm_num_groups=4,
            decoder_layers_per_block=(1, 1, 1, 1),
            decoder_block_out_channels=(8, 8, 8, 8),
            decoder_norm_num_groups=4,
        )
    )


def save_tiny_verifier(folder: Path) -> Path:
    """Write a verifier that vLLM serves and whose opinions are random."""
    from framegrove.digits.config import VerifierArchitecture
    from framegrove.digits.verifier_model import build_model, build_tokenizer, save_folder

    shape = VerifierArchitecture(
        vision_width=32, vision_layers=1, vision_heads=2, text_width=64, text_layers=2, text_heads=2
    )
    tokenizer = build_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_folder(build_model(shape, tokenizer), tokenizer, shape, folder)
    return folder


def save_tiny_judge(folder: Path, outputs: int = 0, seed: int = 0, extra: tuple[str, ...] = ()) -> Path:
    """A random vision-language model of the shipped verifier's class, whose tokens are bytes, so that it can write.

    With ``outputs`` it is saved as a sequence classifier, with a head of so many; ``extra`` tokens are special.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration

    folder.mkdir(parents=True, exist_ok=True)
    for name in ("chat_template.jinja", "processor_config.json", "tokenizer_config.json"):
        shutil.copy(shipped_folder() / name, folder / name)
    special = ["<pad>", "<unk>", "<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", *extra]
    tokens = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({token: at for at, token in enumerate(tokens)}, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    tokenizer.save(str(folder / "tokenizer.json"))
    data = json.loads((shipped_folder() / "config.json").read_text(encoding="utf-8"))
    data["text_config"] |= {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2}
    data["text_config"] |= {"num_key_value_heads": 2, "num_hidden_layers": 2, "vocab_size": len(tokens)}
    data["vision_config"] |= {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    data["vision_config"] |= {"num_hidden_layers": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Idefics3ForConditionalGeneration(Idefics3Config(**data))
        head = torch.randn(outputs, 64)
    model.save_pretrained(folder)
    if outputs:
        weights = load_file(folder / "model.safetensors") | {"score.weight": head}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        saved = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        saved |= {"architectures": ["Idefics3ForSequenceClassification"], "num_labels": outputs}
        saved |= {"id2label": {str(at): f"output {at}" for at in range(outputs)}}
        saved |= {"label2id": {f"output {at}": at for at in range(outputs)}}
        (folder / "config.json").write_text(json.dumps(saved), encoding="utf-8")
    return folder


def save_tiny(folder: Path, seed: int = 0, steps: int = 2) -> Path:
    """Write a tiny pipeline as a model folder."""
    save_pipeline(tiny_pipeline(seed, steps), folder)
    return folder


def digits_transformer_config() -> TransformerConfig:
    """A transformer about as large as the shipped one: 6 layers, 8 heads of 32, an 8x8x8 VAE's 16 channels."""
    return TransformerConfig(
        num_layers=6,
        num_attention_heads=8,
        attention_head_dim=32,
        caption_projection_dim=256,
        pooled_projection_dim=128,
        joint_attention_dim=128,
        sample_size=16,
        pos_embed_max_size=16,
        max_num_frames=32,
    )


def digits_recipe() -> Recipe:
    """How the shipped model is sampled: 64x64 pixels, 8 frames a second, four units."""
    return Recipe(
        guidance=GuidanceConfig(first=3.0, others=1.5),
        steps=StepsConfig(first=(10, 10, 10), others=(10, 10, 10)),
        fps=8,
        height=64,
        width=64,
        units=4,
    )
