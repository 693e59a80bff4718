"""The small verifier: its vocabulary, its packed forward pass, its shipped weights."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from PIL import Image
from transformers import PreTrainedTokenizerFast

from framegrove.config.engine import shipped_folder
from framegrove.config.verifier import own_settings
from framegrove.digits import world
from framegrove.digits.config import VerifierArchitecture
from framegrove.digits.questions import QUESTIONS
from framegrove.digits.verifier_metrics import evaluate
from framegrove.digits.verifier_model import (
    Packer,
    answer_logits,
    build_model,
    build_tokenizer,
    read_cells,
    save_folder,
)
from framegrove.types import Assessment

TINY = VerifierArchitecture(
    vision_width=32, vision_layers=1, vision_heads=1, text_width=32, text_layers=2, text_heads=1
)


def test_every_question_is_in_the_vocabulary() -> None:
    tokenizer = build_tokenizer()
    packer = Packer(tokenizer, 16)
    for index in range(40):
        prompt = world.clip(0, index).caption
        for assessment in Assessment:
            for question in QUESTIONS.questions(assessment, prompt):
                assert tokenizer.unk_token_id not in packer.tokens(question.text), question.text
    assert tokenizer.unk_token_id not in (packer.yes, packer.no)


def test_packed_answers_equal_transformers_one_by_one(tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    model = build_model(TINY, tokenizer).eval()
    packer = Packer(tokenizer, 16)
    texts = [
        ["Is the picture clear?", "Is there a red 3 in every frame?", "Does this show a red 3 moving up and down?"],
        ["Is there a 4 in every frame?", "Does everything keep its shape and colour?", "Is there exactly one object?"],
    ]
    pixels = torch.randint(0, 256, (2, 3, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        cells = read_cells(model, pixels.flatten(0, 1) / 255).view(2, -1, TINY.text_width)
        packed, *_ = answer_logits(model, cells, packer.pack(3, texts, [[True] * 3] * 2))
    save_folder(model, tokenizer, TINY, tmp_path / "model")
    settings = own_settings(str(tmp_path / "model"))
    assert settings is not None
    assert settings.engine.max_frames == 6
    processor = AutoProcessor.from_pretrained(tmp_path / "model")
    alone = AutoModelForImageTextToText.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    for clip in range(2):
        images = [Image.fromarray(frame.permute(1, 2, 0).numpy()) for frame in pixels[clip]]
        for at, text in enumerate(texts[clip]):
            content = [{"type": "image"}] * 3 + [{"type": "text", "text": text}]
            prompt = processor.apply_chat_template([{"role": "user", "content": content}])
            with torch.no_grad():
                expected = alone(**processor(text=prompt, images=images, return_tensors="pt")).logits[0, -1]
            torch.testing.assert_close(packed[clip, at], expected, atol=2e-5, rtol=1e-4)


def test_the_shipped_verifier_is_as_good_as_its_readme_says() -> None:
    from transformers import AutoModelForImageTextToText

    folder = shipped_folder()
    noted = json.loads((folder / "metrics.json").read_text())["held-out"]["balanced_accuracy"]
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    measured = evaluate(model, Packer(PreTrainedTokenizerFast.from_pretrained(folder), 16), clips=200)
    for aspect in noted:
        assert measured.balanced(aspect) > noted[aspect] - 0.12
