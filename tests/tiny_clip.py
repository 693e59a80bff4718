"""Tiny models of transformers' own classes with random weights, as folders: CLIP, and a reward model that sees."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPProcessor,
    ModernVBertConfig,
    ModernVBertForSequenceClassification,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.idefics3.processing_idefics3 import Idefics3Processor

from framegrove.digits.verifier_model import CHAT_TEMPLATE, IMAGE, build_tokenizer

SIDE, PATCH, WIDTH, FEATURES = 16, 8, 32, 24
WORDS = ("<pad>", "<unk>", "<start>", "<end>", "a", "red", "blue", "3", "7", "moves", "up", "and", "down")


def word_tokenizer() -> PreTrainedTokenizerFast:
    """A token a word, between a start and an end."""
    tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 2), ("<end>", 3)]
    )
    marks = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<start>", "eos_token": "<end>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **marks)


def save_tiny_clip(folder: Path, seed: int = 0) -> Path:
    """Write a CLIP for pictures of 16 x 16 pixels in patches of 8."""
    shape = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"vocab_size": len(WORDS), "max_position_embeddings": 12, "bos_token_id": 2, "eos_token_id": 3}
    config = CLIPConfig(
        text_config={**shape, **text, "pad_token_id": 0},
        vision_config={**shape, "image_size": SIDE, "patch_size": PATCH},
        projection_dim=FEATURES,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CLIPModel(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    size = {"shortest_edge": SIDE}
    images = CLIPImageProcessorPil(size=size, crop_size={"height": SIDE, "width": SIDE})
    CLIPProcessor(images, word_tokenizer()).save_pretrained(folder)
    return folder


def save_tiny_reward(folder: Path, logits: int = 1, seed: int = 0) -> Path:
    """Write a sequence classifier that reads a picture of 32 x 32 pixels and a text, and gives so many logits."""
    tokenizer = build_tokenizer()
    side, patch, width = 32, 8, 32
    shape = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 1, "num_attention_heads": 2}
    marks = dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), tokenizer.eos_token_id)
    text = {**shape, **marks, "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    config = ModernVBertConfig(
        text_config={**text, "max_position_embeddings": 64},
        vision_config={**shape, "image_size": side, "patch_size": patch},
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
        pixel_shuffle_factor=2,
        classifier_pooling="mean",
        num_labels=logits,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ModernVBertForSequenceClassification(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    edge = {"longest_edge": side}
    images = Idefics3ImageProcessorPil(size=edge, max_image_size=edge, do_image_splitting=False)
    tokens = (side // patch // 2) ** 2
    Idefics3Processor(images, tokenizer, image_seq_len=tokens, chat_template=CHAT_TEMPLATE).save_pretrained(folder)
    return folder
