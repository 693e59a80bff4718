"""The oracle reads true clips of held-out scans, and does not read what is no digit."""

from __future__ import annotations

import numpy as np
import pytest

from framegrove.digits import world
from framegrove.digits.oracle import DigitsOracle, read_motion
from framegrove.digits.oracle_training import accuracy
from framegrove.digits.world import DigitObject


@pytest.fixture(scope="module")
def oracle() -> DigitsOracle:
    return DigitsOracle()


@pytest.mark.parametrize("shown", [1, 2])
def test_reads_digit_colour_and_motion_of_held_out_clips(oracle: DigitsOracle, shown: int) -> None:
    measured = accuracy(oracle, seed=31, clips=150, digits_shown=shown)
    for attribute in ("digit", "colour", "motion"):
        assert measured[attribute] >= 0.98, measured


def test_what_was_not_asked_for_is_not_right(oracle: DigitsOracle) -> None:
    clip = world.clip(31, 0, split="heldout", digits=1)
    (shown,) = clip.objects
    assert oracle.judge(clip.frames, clip.objects).fully_right
    for wrong in (
        DigitObject((shown.digit + 1) % 10, shown.colour, shown.motion),
        DigitObject(shown.digit, "red" if shown.colour != "red" else "blue", shown.motion),
        DigitObject(shown.digit, shown.colour, "up and down" if shown.motion != "up and down" else "left and right"),
    ):
        verdict = oracle.judge(clip.frames, (wrong,))
        assert not verdict.fully_right
        assert verdict.score == pytest.approx(2 / 3)
    two = oracle.judge(clip.frames, (shown, DigitObject((shown.digit + 1) % 10, "cyan", "up and down")))
    assert two.score == pytest.approx(0.5)


def test_a_digit_that_turns_into_another_is_rejected(oracle: DigitsOracle) -> None:
    one, other = (
        world.render((DigitObject(d, "green", "left and right"),), np.random.default_rng(0), split="heldout")
        for d in (1, 8)
    )
    morphing = np.concatenate([one[:12], other[12:]])
    (reading,) = oracle.read(morphing)
    assert reading.digit is None


def test_an_empty_clip_shows_nothing(oracle: DigitsOracle) -> None:
    empty = np.full((9, 64, 64, 3), 12, np.uint8)
    assert oracle.read(empty) == ()
    assert oracle.judge(empty, (DigitObject(1, "red", "up and down"),)).score == 0.0


@pytest.mark.parametrize(
    ("step", "motion"),
    [
        ((2, 0), "left and right"),
        ((0, 2), "up and down"),
        ((2, 2), "along the falling diagonal"),
        ((2, -2), "along the rising diagonal"),
        ((2, 0.6), "left and right"),
        ((0, 0), None),
        ((2, 1), None),
    ],
)
def test_motions_are_read_off_tracks(step: tuple[float, float], motion: str | None) -> None:
    track = np.array([30.0, 30.0]) + np.arange(12)[:, None] * np.array(step)
    assert read_motion(track.astype(np.float32)) == motion


def test_a_jump_is_no_motion() -> None:
    track = np.stack([np.array([10, 12, 14, 40, 42, 44], np.float32), np.full(6, 30, np.float32)], -1)
    assert read_motion(track) is None
