"""The small verifier: its training scenes and their truth, the packed forward pass, resumption, the shipped weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from framegrove.config.base import load
from framegrove.config.verifier import (
    JointStage,
    TrainingStage,
    VerifierArchitecture,
    VerifierTraining,
    own_settings,
    shipped_folder,
)
from framegrove.digits import world as digits
from framegrove.digits.questions import QUESTIONS, Aspect
from framegrove.digits.verifier_metrics import examine
from framegrove.digits.verifier_model import (
    Packer,
    answer_logits,
    build_model,
    build_tokenizer,
    read_cells,
    save_folder,
)
from framegrove.digits.verifier_questions import ask_about
from framegrove.digits.verifier_scenes import Fault, draw_scene
from framegrove.digits.verifier_training import STAGES, VerifierRun
from framegrove.errors import UserError
from framegrove.types import Assessment

CONFIGS = Path(__file__).resolve().parents[2] / "jobs" / "configs"
TINY = VerifierArchitecture(
    vision_width=32, vision_layers=1, vision_heads=1, text_width=32, text_layers=2, text_heads=1
)


def tiny_training(steps: int = 2) -> VerifierTraining:
    stage = TrainingStage(steps=steps, batch=4, rate=1e-3)
    return VerifierTraining(
        model=TINY,
        windows=stage,
        frames=stage,
        reading=stage,
        joint=JointStage(**stage.model_dump()),
        checkpoint_every=1,
        heldout_clips=10,
        generated_clips=0,
    )


def test_shipped_configurations_load() -> None:
    assert load(VerifierTraining, CONFIGS / "digits_verifier.yaml").joint.steps > 0


def test_every_question_is_in_the_vocabulary() -> None:
    tokenizer = build_tokenizer()
    packer = Packer(tokenizer, 16)
    for index in range(40):
        prompt = digits.clip(0, index).caption
        for assessment in Assessment:
            for question in QUESTIONS.questions(assessment, prompt):
                assert tokenizer.unk_token_id not in packer.tokens(question.text), question.text
    assert tokenizer.unk_token_id not in (packer.yes, packer.no)


@pytest.mark.parametrize("shown", [1, 2, 4])
def test_scenes_are_repeatable_and_their_answers_consistent(shown: int) -> None:
    answers = []
    for seed in range(60):
        scene, again = (draw_scene(np.random.default_rng(seed), shown=shown) for _ in range(2))
        assert torch.equal(scene.frames, again.frames)
        assert scene.drawn == again.drawn
        assert scene.frames.shape == (shown, 3, 64, 64)
        assert draw_scene(np.random.default_rng(seed), shown=shown, painted=False).drawn == scene.drawn
        assert bool(((scene.frames >= 0) & (scene.frames <= 1)).all())
        asked = ask_about(scene, np.random.default_rng(seed), 12)
        assert len({(q.text, q.answer) for q in asked}) == len({q.text for q in asked})  # never both yes and no
        whole = {(d.steady_digit, d.steady_colour) for d in scene.drawn}
        for question in asked:
            if question.aspect is Aspect.BINDING:
                colour, digit = question.text.split()[3:5]
                assert question.answer == ((int(digit), colour) in whole)
            if question.aspect is Aspect.STABILITY:
                changed = {Fault.MORPH, Fault.MELT, Fault.RECOLOUR, Fault.VANISH}
                assert question.answer == (not {d.fault for d in scene.drawn} & changed)
        answers += [q.answer for q in asked]
    assert 0.35 < float(np.mean(answers)) < 0.6


def test_a_flawless_scene_looks_like_a_true_clip() -> None:
    """The brightest pixel of a drawn digit has its caption's colour, as in data/digits.py."""
    for seed in range(200):
        scene = draw_scene(np.random.default_rng(seed), shown=4)
        if len(scene.drawn) == 1 and scene.drawn[0].fault is Fault.NONE and scene.quality == "clear":
            frame = scene.frames[0].flatten(1)
            peak = frame[:, frame.sum(0).argmax()] * 255
            wanted = torch.tensor(digits.COLOURS[scene.drawn[0].name.colour], dtype=torch.float32)
            assert (peak - wanted).abs().max() < 90


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
    assert own_settings(str(tmp_path / "model")) == own_settings(None)
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


def test_training_continues_where_it_stopped_bit_for_bit(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop_in_joint(progress: object) -> None:
        if progress.stage == "joint":  # type: ignore[attr-defined]
            raise Stop

    whole = VerifierRun(tiny_training(), tmp_path / "whole")
    whole.train()
    broken = VerifierRun(tiny_training(), tmp_path / "broken")
    with pytest.raises(Stop):
        broken.train(stop_in_joint)
    resumed = VerifierRun(tiny_training(), tmp_path / "broken")
    resumed.train()
    for name, weight in whole.finished().state_dict().items():
        assert torch.equal(weight, resumed.finished().state_dict()[name]), name
    lines = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert {line["stage"] for line in lines} == set(STAGES)
    with pytest.raises(UserError, match="another configuration"):
        VerifierRun(tiny_training().model_copy(update={"seed": 1}), tmp_path / "whole")


def test_the_shipped_verifier_is_as_good_as_its_readme_says() -> None:
    from transformers import AutoModelForImageTextToText

    folder = shipped_folder()
    noted = json.loads((folder / "metrics.json").read_text())["held-out"]["balanced_accuracy"]
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    marks = examine(model, Packer(build_tokenizer(), 16), clips=200)
    for aspect in noted:
        assert marks.balanced(aspect) > noted[aspect] - 0.12
