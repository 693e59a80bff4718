"""What is measured of a video without a model."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from scipy import ndimage

from framegrove.config.verifier import VerifierConfig
from framegrove.types import Assessment, ScoreWork
from framegrove.verification.clips import Frames
from framegrove.verification.signals import SignalsVerifier, flicker, motion, sharpness

RNG = np.random.default_rng(0)
NOISE: Frames = RNG.integers(0, 256, (9, 48, 56, 3), dtype=np.uint8)


def grey(*levels: int) -> Frames:
    return np.stack([np.full((16, 24, 3), level, np.uint8) for level in levels])


def moving_square(side: int) -> Frames:
    frames = np.zeros((9, 64, 64, 3), np.uint8)
    for at, frame in enumerate(frames):
        frame[24 : 24 + side, 3 * at : 3 * at + side] = 255
    return frames


def test_flicker_is_vbenchs_temporal_flickering() -> None:
    assert flicker(grey(90, 90, 90)) == 1.0
    assert flicker(grey(0, 255, 0)) == 0.0
    assert flicker(grey(100, 110, 90)) == pytest.approx((255 - 15) / 255)
    mean = np.mean([np.abs(NOISE[n + 1].astype(float) - NOISE[n]).mean() for n in range(8)])
    assert flicker(NOISE) == pytest.approx((255 - mean) / 255)


def test_sharpness_falls_with_every_blur() -> None:
    blurred = [ndimage.gaussian_filter(NOISE, (0, sigma, sigma, 0)) if sigma else NOISE for sigma in (0, 0.5, 1, 2, 4)]
    measured = [sharpness(frames) for frames in blurred]
    assert measured == sorted(measured, reverse=True)
    assert 0 < measured[-1] < 0.5 < measured[0] < 1
    assert sharpness(grey(77)) == 0.0


def test_sharpness_is_the_variance_of_the_laplacian_against_100() -> None:
    frame = NOISE[:1]
    luma = frame[0] @ np.asarray([0.299, 0.587, 0.114])
    kernel = np.asarray([[0, 1, 0], [1, -4, 1], [0, 1, 0]])
    variance = ndimage.convolve(luma, kernel)[1:-1, 1:-1].var()
    assert sharpness(frame) == pytest.approx(variance / (variance + 100), rel=1e-4)


def test_motion_is_the_part_of_the_picture_that_changes() -> None:
    assert motion(grey(50, 50)) == 0.0
    assert motion(grey(0, 255)) == 1.0
    half = grey(0, 0)
    half[1, :, :8] = 200  # one of three columns of blocks
    assert motion(half) == pytest.approx(1 / 3)
    assert 0 < motion(moving_square(8)) < motion(moving_square(24)) < 1


def test_grain_is_no_motion() -> None:
    grain = np.clip(128 + RNG.normal(0, 6, (5, 64, 64, 3)), 0, 255).astype(np.uint8)
    assert motion(grain) == 0.0


def test_pictures_too_small_for_a_block_or_an_edge() -> None:
    tiny = np.zeros((2, 2, 5, 3), np.uint8)
    tiny[1] = 200
    assert motion(tiny) == 1.0
    assert sharpness(tiny) == 0.0


def test_the_verifier_scores_what_the_frames_allow() -> None:
    verifier = SignalsVerifier(VerifierConfig(name="meters", kind="signals"))
    work = ScoreWork((0, 0), Assessment.MOTION, "meters")
    scored = asyncio.run(verifier.score(work, "anything", NOISE[:1], NOISE[1:]))
    assert asyncio.run(verifier.ready()) == "meters"
    assert [name for name, _ in scored.scores] == ["flicker", "sharpness", "motion"]
    assert all(0 <= score <= 1 for _, score in scored.scores)
    assert (scored.work, scored.mass, scored.cost.flops) == (work, None, 0)
    assert scored.cost.seconds > 0
    single = asyncio.run(verifier.score(ScoreWork((0,), Assessment.IMAGE, "meters"), "anything", NOISE[:1]))
    assert [name for name, _ in single.scores] == ["sharpness"]


def test_measuring_is_free() -> None:
    verifier = SignalsVerifier(VerifierConfig(kind="signals"))
    price = asyncio.run(verifier.price("anything", (1, 8, 8), 64, 64))
    assert price == {Assessment.MOTION: (0, 0, 0), Assessment.FINAL: (0, 0, 0)}


def test_frames_of_another_kind_are_a_defect() -> None:
    verifier = SignalsVerifier(VerifierConfig(kind="signals"))
    with pytest.raises(ValueError, match="uint8"):
        asyncio.run(verifier.score(ScoreWork((0,), Assessment.IMAGE), "", NOISE.astype(np.float32)))  # type: ignore[arg-type]
