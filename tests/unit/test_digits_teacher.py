"""The teacher: reads true clips, sees what is malformed, and says where it cannot tell."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from framegrove.digits import world
from framegrove.digits.teacher import MALFORMED, SIDE, Teacher, TeacherNetwork, normalised, read_motion, segment, told
from framegrove.digits.teacher_training import _digits, _spoilt, drawn, taught, train_teacher
from framegrove.digits.world import DigitObject


class Says(TeacherNetwork):
    """A network that is sure of one class, or of none."""

    def __init__(self, answer: int | None) -> None:
        nn.Module.__init__(self)
        self.answer = answer

    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(len(crops), 11)
        if self.answer is not None:
            logits[:, self.answer] = 9.0
        return logits


@functools.cache
def small_network() -> TeacherNetwork:
    return train_teacher(seed=7, steps=110, batch=64)


def red(digit: int, motion: str = "left and right") -> tuple[DigitObject, ...]:
    return (DigitObject(digit, "red", motion),)


def unit_of(asked: tuple[DigitObject, ...], seed: int = 0, unit: int = 1) -> np.ndarray:
    frames = world.render(asked, np.random.default_rng(seed), split="train", units=unit + 1)
    return frames[:1] if unit == 0 else frames[-9:]


@pytest.mark.parametrize("motion", list(world.MOTIONS))
def test_motions_of_true_units_are_told_bounces_included(motion: str) -> None:
    teacher = Teacher(Says(3))
    for seed in range(25):
        reading = teacher.read(unit_of(red(3, motion), seed, unit=1 + seed % 3), red(3, motion))
        assert reading.right is True
        (one,) = reading.objects
        assert (one.colour, one.digit, one.motion, len(one.centres)) == ("red", 3, motion, 9)


def test_colours_and_count_of_true_clips_are_those_of_their_captions() -> None:
    teacher = Teacher(Says(0))
    for index in range(60):
        clip = world.clip(3, index, units=2)
        reading = teacher.read(clip.frames, clip.objects)
        assert {one.colour: one.motion for one in reading.objects} == {one.colour: one.motion for one in clip.objects}


def test_what_is_sure_to_be_wrong_is_wrong_and_what_cannot_be_told_is_neither() -> None:
    unit = unit_of(red(3))
    assert Teacher(Says(3)).read(unit, red(3)).right is True
    assert Teacher(Says(4)).read(unit, red(3)).right is False
    assert Teacher(Says(MALFORMED)).read(unit, red(3)).right is False
    assert Teacher(Says(None)).read(unit, red(3)).right is None
    assert Teacher(Says(None)).read(unit, red(3, "up and down")).right is False  # the motion alone is enough
    assert Teacher(Says(3)).read(unit, (*red(3), DigitObject(2, "blue", "up and down"))).right is False
    assert Teacher(Says(3)).read(unit_of(red(3), unit=0), red(3)).right is True  # a picture has no motion


def test_a_digit_that_vanishes_or_changes_is_none_and_one_in_two_pieces_cannot_be_told() -> None:
    teacher = Teacher(Says(3))
    unit = unit_of(red(3))
    vanishing = np.concatenate([unit[:7], np.full_like(unit[7:], 10)])
    assert teacher.read(vanishing, red(3)).right is False
    corners = np.full((1, 64, 64, 3), 10, np.uint8)
    corners[0, 5:20, 5:15] = corners[0, 42:57, 45:55] = world.COLOURS["red"]
    assert teacher.read(corners, red(3)).right is None
    sure = np.full((8, 11), 0.01, np.float32)
    changing = sure.copy()
    changing[:4, 3], changing[4:, 8] = 0.9, 0.9
    assert told(changing) == (None, True)
    sure[:, 3] = 0.9
    assert told(sure) == (3, True)
    sure[:, 3] = 0.4
    assert told(sure) == (3, False)


def test_a_motion_off_its_line_still_or_with_a_jump_is_none() -> None:
    line = np.stack([np.arange(9) * 2.0, np.full(9, 20.0)], -1).astype(np.float32)
    assert read_motion(line) == ("left and right", True)
    assert read_motion(np.repeat(line[:1], 9, 0)) == (None, True)
    bent = line.copy()
    bent[5:, 1] += np.arange(4) * 3
    assert read_motion(bent) == (None, True)
    jumping = line.copy()
    jumping[5:, 0] += 15
    assert read_motion(jumping) == (None, True)
    gone = line.copy()
    gone[3] = np.nan
    assert read_motion(gone) == (None, True)
    assert read_motion(line[:1]) == (None, True)


def test_crops_do_not_depend_on_place_and_size() -> None:
    scan = world.scans_of(5, "train")[0]
    canvases = np.zeros((2, 64, 64), np.float32)
    canvases[0, 4:32, 8:36] = world.sprite(scan, 28)
    canvases[1, 30:52, 33:55] = world.sprite(scan, 22)
    one, other = normalised(torch.from_numpy(canvases))
    assert one.shape == (SIDE, SIDE)
    assert float((one - other).abs().mean()) < 0.03


def test_a_fringe_is_no_object() -> None:
    frame = unit_of(red(3), unit=0).copy()
    frame[0, 10:40, 5] = world.COLOURS["blue"]
    assert set(segment(frame)) == {"red"}


def test_a_little_training_tells_most_digits_and_most_spoilt_ones() -> None:
    digits, labels = _digits()
    random = torch.Generator().manual_seed(1)
    images, classes = drawn(digits, labels, 600, random)
    network = small_network()
    with torch.no_grad():
        said = network(images).argmax(-1)
    sound = classes != MALFORMED
    assert float((said == classes)[sound].float().mean()) > 0.6
    assert float((said == classes)[~sound].float().mean()) > 0.4


def test_spoiling_makes_no_other_digits() -> None:
    digits, labels = _digits()
    random = torch.Generator().manual_seed(0)
    same = torch.arange(200)
    images, none = _spoilt(digits[same], digits[same], labels[same], labels[same], random)
    assert images.shape == (200, 40, 40)
    assert 0 < int(none.sum()) < 120  # a digit blended or joined with itself is still that digit


def test_training_is_repeatable_and_its_weights_are_kept(tmp_path: Path) -> None:
    steps: list[int] = []
    file = tmp_path / "teacher.safetensors"
    taught(file, seed=1, steps=2, on_step=lambda step, *_: steps.append(step))
    taught(file, seed=1, steps=2, on_step=lambda step, *_: steps.append(step))
    assert steps == [1, 2]
    one, other = (train_teacher(seed=1, steps=2, batch=16).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)
