"""Scenes for the verifier's training: repeatable, with questions whose answers are consistent with what is drawn."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from framegrove.digits import world
from framegrove.digits.questions import Aspect
from framegrove.digits.verifier_questions import ask_about
from framegrove.digits.verifier_scenes import Fault, draw_scene


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
    """The brightest pixel of a drawn digit has its caption's colour."""
    for seed in range(200):
        scene = draw_scene(np.random.default_rng(seed), shown=4)
        if len(scene.drawn) == 1 and scene.drawn[0].fault is Fault.NONE and scene.quality == "clear":
            frame = scene.frames[0].flatten(1)
            peak = frame[:, frame.sum(0).argmax()] * 255
            wanted = torch.tensor(world.COLOURS[scene.drawn[0].name.colour], dtype=torch.float32)
            assert (peak - wanted).abs().max() < 90
