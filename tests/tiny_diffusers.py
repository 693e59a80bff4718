"""Tiny random pipelines of diffusers' own classes, as folders that save_pretrained has written.

Shapes are those of diffusers' own tests, smaller where that is possible.
"""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import diffusers
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPImageProcessorPil,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

TOKENS = 16  # of a prompt
_WIDTH = 16  # of what a text encoder gives
_LETTERS = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
_LETTERS += [(letter, -3.0) for letter in string.ascii_lowercase + string.digits]
# What makes them so small that a search of them takes seconds.
OPTIONS: dict[str, dict[str, Any]] = {
    "cogvideox": {"frames": 9, "height": 16, "width": 16, "max_sequence_length": TOKENS},
    "cogvideox_image": {"frames": 9, "height": 16, "width": 16, "max_sequence_length": TOKENS},
    "wan": {"frames": 9, "height": 16, "width": 16, "max_sequence_length": TOKENS},
    "wan22": {"frames": 9, "height": 16, "width": 16, "max_sequence_length": TOKENS},
    "wan_image": {"frames": 9, "height": 16, "width": 16, "max_sequence_length": TOKENS},
    "wan_clip": {"frames": 9, "height": 16, "width": 16, "max_sequence_length": TOKENS},
    "ltx": {"frames": 9, "height": 32, "width": 32, "max_sequence_length": TOKENS},
    "ltx_image": {"frames": 9, "height": 32, "width": 32, "max_sequence_length": TOKENS},
    "mochi": {"frames": 7, "height": 16, "width": 16, "max_sequence_length": TOKENS},
    "hunyuan": {
        "frames": 9,
        "height": 16,
        "width": 16,
        "max_sequence_length": TOKENS,
        "call": {"prompt_template": {"template": "{}", "crop_start": 0}},
    },
}


def write_tiny(folder: Path, kind: str, scheduler: Any = None) -> dict[str, Any]:
    """Write a pipeline, with another scheduler if one is given; returns the options of a search of it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        pipe = _MAKE[kind]()
        for parameter in pipe.transformer.parameters():  # some begin as zeros, and hide what happens before them
            torch.nn.init.normal_(parameter, std=0.2)
    if scheduler is not None:
        pipe.scheduler = scheduler
    pipe.save_pretrained(folder)
    return {**OPTIONS[kind], "dtype": "float32", "steps": 6, "segments": [1, 2, 3]}


def _cogvideox(image: bool = False) -> Any:
    transformer = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=8 if image else 4,
        out_channels=4,
        time_embed_dim=4,
        text_embed_dim=_WIDTH,
        num_layers=2,
        sample_width=2,
        sample_height=2,
        sample_frames=9,
        max_text_seq_length=TOKENS,
        use_rotary_positional_embeddings=True,
        use_learned_positional_embeddings=image,
    )
    vae = diffusers.AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
    )
    kind = diffusers.CogVideoXImageToVideoPipeline if image else diffusers.CogVideoXPipeline
    scheduler = diffusers.CogVideoXDDIMScheduler(
        prediction_type="v_prediction", clip_sample=False, timestep_spacing="trailing", rescale_betas_zero_snr=True
    )
    return kind(tokenizer=_tokenizer(), text_encoder=_t5(), vae=vae, transformer=transformer, scheduler=scheduler)


def _wan(image: bool = False, second: bool = False, clip: bool = False) -> Any:
    """Wan 2.1 shows the transformer a first picture through CLIP as well."""

    def transformer() -> Any:
        return diffusers.WanTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=36 if image else 16,
            out_channels=16,
            text_dim=_WIDTH,
            ffn_dim=32,
            num_layers=2,
            rope_max_seq_len=32,
            image_dim=4 if clip else None,
        )

    vae = diffusers.AutoencoderKLWan(
        base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    )
    encoder = UMT5EncoderModel(UMT5Config(**_T5))
    parts = {"tokenizer": _tokenizer(), "text_encoder": encoder, "vae": vae, "transformer": transformer()}
    parts["scheduler"] = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    if image:
        eyes, processor = (_clip_vision(), CLIPImageProcessorPil(size=16, crop_size=16)) if clip else (None, None)
        return diffusers.WanImageToVideoPipeline(image_encoder=eyes, image_processor=processor, **parts)
    if second:
        return diffusers.WanPipeline(**parts, transformer_2=transformer(), boundary_ratio=0.8)
    return diffusers.WanPipeline(**parts)


def _clip_vision() -> CLIPVisionModel:
    small = {"hidden_size": 4, "intermediate_size": 8, "num_hidden_layers": 3, "num_attention_heads": 1}
    return CLIPVisionModel(CLIPVisionConfig(**small, projection_dim=4, image_size=16, patch_size=1))


def _ltx(image: bool = False) -> Any:
    transformer = diffusers.LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=16,
        cross_attention_dim=32,
        num_layers=2,
        caption_channels=_WIDTH,
    )
    vae = diffusers.AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
    )
    kind = diffusers.LTXImageToVideoPipeline if image else diffusers.LTXPipeline
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.1)
    return kind(tokenizer=_tokenizer(), text_encoder=_t5(), vae=vae, transformer=transformer, scheduler=scheduler)


def _mochi() -> Any:
    transformer = diffusers.MochiTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        pooled_projection_dim=16,
        in_channels=12,
        num_layers=2,
        text_embed_dim=_WIDTH,
        time_embed_dim=4,
        max_sequence_length=TOKENS,
    )
    vae = diffusers.AutoencoderKLMochi(
        latent_channels=12,
        out_channels=3,
        encoder_block_out_channels=(32, 32, 32, 32),
        decoder_block_out_channels=(32, 32, 32, 32),
        layers_per_block=(1, 1, 1, 1, 1),
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    return diffusers.MochiPipeline(
        tokenizer=_tokenizer(), text_encoder=_t5(), vae=vae, transformer=transformer, scheduler=scheduler
    )


def _hunyuan() -> Any:
    transformer = diffusers.HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=10,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        patch_size=1,
        text_embed_dim=_WIDTH,
        pooled_projection_dim=8,
        rope_axes_dim=(2, 4, 4),
    )
    vae = diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=4,
        down_block_types=("HunyuanVideoDownBlock3D",) * 4,
        up_block_types=("HunyuanVideoUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
    )
    small = {"vocab_size": len(_LETTERS), "intermediate_size": 16, "num_attention_heads": 2}
    llama = LlamaConfig(**small, hidden_size=_WIDTH, num_hidden_layers=3, num_key_value_heads=2)
    marks = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
    clip = CLIPTextConfig(**small, **marks, hidden_size=8, projection_dim=8, num_hidden_layers=1)
    return diffusers.HunyuanVideoPipeline(
        tokenizer=_tokenizer(),
        text_encoder=LlamaModel(llama),
        tokenizer_2=_tokenizer(),
        text_encoder_2=CLIPTextModel(clip),
        vae=vae,
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
    )


def _t5() -> T5EncoderModel:
    return T5EncoderModel(T5Config(**_T5))


def _tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.Unigram(_LETTERS, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>", pad_token="<pad>", model_max_length=TOKENS
    )


_T5: dict[str, Any] = {"vocab_size": len(_LETTERS), "d_model": _WIDTH, "d_kv": 8, "d_ff": 32, "num_layers": 1}
_T5 |= {"num_heads": 2, "feed_forward_proj": "gated-gelu"}
_MAKE: dict[str, Any] = {
    "cogvideox": _cogvideox,
    "cogvideox_image": lambda: _cogvideox(image=True),
    "wan": _wan,
    "wan22": lambda: _wan(second=True),
    "wan_image": lambda: _wan(image=True),
    "wan_clip": lambda: _wan(image=True, clip=True),
    "ltx": _ltx,
    "ltx_image": lambda: _ltx(image=True),
    "mochi": _mochi,
    "hunyuan": _hunyuan,
}
