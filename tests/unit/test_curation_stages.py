"""The stages of curation, each on pictures made for it: cuts, strides, motion, sharpness, bars, near-duplicates."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from framegrove.config.curate import MotionConfig, PictureConfig, ShotsConfig
from framegrove.curation.clip import Clip, Frames, Rejection, through
from framegrove.curation.duplicates import HASH_BITS, DuplicateIndex, DuplicateStage, hashed
from framegrove.curation.footage import split_of
from framegrove.curation.measures import bars, brightness, motion, motion_stage, picture_stage, sharpness
from framegrove.curation.shots import Window, cuts, windows, within
from framegrove.media.clips import shown_frames
from framegrove.media.writing import encode_mp4
from tests.films import panned, scenery


def make_clip(frames: Frames, number: int = 1, fps: float = 8.0) -> Clip:
    return Clip(number, "e", "a.mp4", "s", "video", "train", 0, 0.0, fps, frames)


def reason(outcome: Clip | Rejection) -> str:
    assert isinstance(outcome, Rejection)
    return outcome.reason


@pytest.mark.parametrize(("pixels", "fps"), [(2, 8), (4, 8), (1, 24), (2, 24)])
def test_motion_is_measured_in_lengths_a_second(pixels: int, fps: float) -> None:
    measured = motion(panned(scenery(0), 17, pixels), fps)
    assert measured == pytest.approx(pixels * fps / 160, rel=0.3)


def test_what_is_too_still_or_too_wild_is_rejected() -> None:
    stage = motion_stage(MotionConfig(least=0.01, most=0.5))
    still = make_clip(panned(scenery(0), 9, 0))
    assert reason(stage(still)) == "too still (0.000 lengths a second, at least 0.01)"
    assert isinstance(stage(make_clip(panned(scenery(0), 9, 2))), Clip)
    rng = np.random.default_rng(0)
    assert reason(stage(make_clip(panned(scenery(0), 9, 8), fps=24))).startswith("too wild (")
    assert motion(rng.integers(0, 255, (1, 64, 64, 3), np.uint8), 8) == 0
    assert isinstance(stage(replace(still, kind="image")), Clip)


def test_blurred_black_and_barred_clips_are_rejected() -> None:
    stage = picture_stage(PictureConfig(sharpness=20, brightness=16, bars=0.1))
    good = panned(scenery(3), 3, 1)
    assert isinstance(stage(make_clip(good)), Clip)
    blurred = gaussian_filter(good, (0, 6, 6, 0))
    assert sharpness(blurred) < 5 < 100 < sharpness(good)
    assert reason(stage(make_clip(blurred))).startswith("blurred (sharpness ")
    assert brightness(good // 20) < 8
    assert reason(stage(make_clip(good // 20))).startswith("black (mean grey level ")
    letterbox = good.copy()
    letterbox[:, :12] = letterbox[:, -12:] = 16  # as video has its black
    assert bars(letterbox) == pytest.approx(24 / 96, abs=0.02)
    assert bars(good) < 0.03
    assert reason(stage(make_clip(letterbox))) == "black bars (over 25% of a side, at most 10%)"
    pillars = good.copy()
    pillars[:, :, :40] = 0
    assert bars(pillars) == pytest.approx(40 / 160, abs=0.02)
    assert bars(np.zeros((1, 8, 8, 3), np.uint8)) == 1


def test_cuts_are_found_where_they_are(tmp_path: Path) -> None:
    film = np.concatenate([panned(scenery(seed), 24, 1) for seed in range(3)])
    (tmp_path / "a.mp4").write_bytes(encode_mp4(film, 12))
    assert cuts(shown_frames(tmp_path / "a.mp4", 128), ShotsConfig()) == pytest.approx([2.0, 4.0])
    assert cuts(shown_frames(tmp_path / "a.mp4", 128), ShotsConfig(least=3)) != pytest.approx([2.0, 4.0])
    assert cuts(enumerate(panned(scenery(0), 9, 1)), ShotsConfig()) == []
    assert cuts(enumerate(scenery(0)[None]), ShotsConfig()) == []


@pytest.mark.parametrize(
    ("found", "stride", "expected"),
    [
        ((), None, [(0, 2)]),
        ((4.0,), None, [(0, 2), (4, 6)]),
        ((4.0,), 2.0, [(0, 2), (2, 4), (4, 6), (6, 8), (8, 10)]),
        ((1.5,), 2.0, [(0, 1.5), (1.5, 3.5), (3.5, 5.5), (5.5, 7.5), (7.5, 9.5)]),
        ((), 3.5, [(0, 2), (3.5, 5.5), (7.0, 9.0)]),
    ],
)
def test_windows(found: tuple[float, ...], stride: float | None, expected: list[tuple[float, float]]) -> None:
    made = windows([(0, 10)], found, 2, stride)
    assert made == [Window(shot, start, end) for shot, (start, end) in enumerate(expected)]


@given(
    st.lists(st.tuples(st.floats(0, 50), st.floats(0.1, 20)), min_size=1, max_size=4),
    st.lists(st.floats(0, 200), max_size=6),
    st.floats(0.2, 10),
    st.one_of(st.none(), st.floats(0.2, 10)),
)
def test_windows_keep_to_their_shots(
    parts: list[tuple[float, float]], found: list[float], length: float, stride: float | None
) -> None:
    pieces, place = [], 0.0
    for gap, lasts in parts:
        pieces.append((place + gap, place + gap + lasts))
        place += gap + lasts + 1
    made = windows(pieces, sorted(found), length, stride)
    edges = sorted({*found, *(edge for piece in pieces for edge in piece)})
    assert [window.shot for window in made] == list(range(len(made)))
    for window in made:
        assert 0 < window.end - window.start <= length * (1 + 1e-9)
        assert any(low <= window.start and window.end <= high for low, high in pieces)
        assert not any(window.start < edge < window.end for edge in edges)
    assert all(any(window.start == low for window in made) for low, _ in pieces)


def test_stretches_between_two_seconds() -> None:
    assert within([(0, 4), (6, 9)], 3, 7) == [(3, 4), (6, 7)]
    assert within([(0, 4), (6, 9)], 4, 6) == []


hashes = st.binary(min_size=HASH_BITS // 8, max_size=HASH_BITS // 8)


@given(st.lists(hashes, max_size=20), hashes, st.integers(0, 64), st.lists(st.integers(0, HASH_BITS - 1), max_size=30))
def test_the_index_finds_what_a_search_through_all_finds(
    held: list[bytes], base: bytes, bits: int, flips: list[int]
) -> None:
    value = int.from_bytes(base, "big")
    for flip in flips:
        value ^= 1 << flip
    held = [*held, base]
    wanted = value.to_bytes(HASH_BITS // 8, "big")
    index = DuplicateIndex(bits)
    for number, each in enumerate(held):
        index.add(number, each)
    distances = [(int.from_bytes(each, "big") ^ value).bit_count() for each in held]
    nearest = index.nearest(wanted)
    assert (nearest is None) == (min(distances) > bits)
    if nearest is not None:
        assert nearest[1] == min(distances) == distances[nearest[0]]


def test_near_duplicates_are_found_across_sizes_and_quality() -> None:
    film = panned(scenery(5), 9, 2)
    noisy = np.clip(film + np.random.default_rng(1).normal(0, 6, film.shape), 0, 255).astype(np.uint8)
    small = film[:, ::2, ::2]
    stage = DuplicateStage(18, {})
    first, *others = (hashed(make_clip(frames, number)) for number, frames in enumerate([film, noisy, small]))
    assert stage(first) is first
    for other in others:
        assert reason(stage(other)).startswith("near-duplicate (of clip 0, ")
    assert isinstance(stage(hashed(make_clip(panned(scenery(6), 9, 2), 9))), Clip)


def test_a_clip_that_an_earlier_run_kept_stays() -> None:
    clip = hashed(make_clip(panned(scenery(5), 9, 2), 3))
    stage = DuplicateStage(18, {3: clip.hash})
    assert isinstance(stage(clip), Clip)
    assert reason(stage(replace(clip, id=4))).startswith("near-duplicate (of clip 3, 0 bits differ)")


def test_the_first_stage_that_rejects_ends_it() -> None:
    clip = make_clip(panned(scenery(0), 3, 1))
    seen: list[str] = []

    def stage(name: str, keeps: bool) -> object:
        def look(clip: Clip) -> Clip | Rejection:
            seen.append(name)
            return clip if keeps else clip.rejected(name, "no")

        return look

    outcome = through(clip, [stage("a", True), stage("b", False), stage("c", True)])  # type: ignore[list-item]
    assert outcome == Rejection("e", "a.mp4", 0, 0.0, "b", "no")
    assert seen == ["a", "b"]


def test_the_split_follows_from_the_source_alone() -> None:
    splits = [split_of(f"source {number}", 0.2) for number in range(2000)]
    assert splits.count("heldout") == pytest.approx(400, abs=60)
    assert splits == [split_of(f"source {number}", 0.2) for number in range(2000)]
    assert {split_of(str(number), 0.0) for number in range(50)} == {"train"}
    assert {split_of(str(number), 1.0) for number in range(50)} == {"heldout"}
    more = [split_of(f"source {number}", 0.3) for number in range(2000)]
    assert all(large == "heldout" for small, large in zip(splits, more, strict=True) if small == "heldout")
