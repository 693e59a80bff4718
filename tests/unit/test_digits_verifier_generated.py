"""Scenes as the oracle reads them: the truth where it is certain, nothing where it is not."""

from __future__ import annotations

import numpy as np

from framegrove.digits import world
from framegrove.digits.oracle import DigitsOracle
from framegrove.digits.verifier_generated import scene_as_read
from framegrove.digits.verifier_questions import ask_about
from framegrove.digits.verifier_scenes import Fault, Quality
from framegrove.digits.world import DigitObject


def test_a_true_clip_is_read_as_what_it_shows() -> None:
    oracle = DigitsOracle()
    read = 0
    for index in range(10):
        clip = world.clip(31, index, split="heldout")
        scene = scene_as_read(clip.frames, clip.objects, oracle)
        if scene is None:
            continue
        read += 1
        assert scene.frames.shape == (4, 3, 64, 64)
        assert scene.quality is Quality.FAIR
        assert {one.name for one in scene.drawn} == set(clip.objects)
        assert {one.fault for one in scene.drawn} == {Fault.NONE}
        assert ask_about(scene, np.random.default_rng(0), 12)
    assert read >= 7


def test_what_is_no_truth_is_left_out() -> None:
    oracle = DigitsOracle()
    clip = world.clip(31, 0, split="heldout", digits=1)
    (shown,) = clip.objects
    other = DigitObject(shown.digit, "red" if shown.colour != "red" else "blue", shown.motion)
    assert scene_as_read(clip.frames, (other,), oracle) is None  # other colours than were asked for
    one, eight = (
        world.render((DigitObject(digit, "green", "left and right"),), np.random.default_rng(0), split="heldout")
        for digit in (1, 8)
    )
    changing = np.concatenate([one[:9], eight[9:]])
    assert scene_as_read(changing, (DigitObject(1, "green", "left and right"),), oracle) is None
