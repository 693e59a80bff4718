"""mp4 files and contact sheets: what is written comes back, and equal frames give equal bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from framegrove.digits import world
from framegrove.media import writing as media
from framegrove.media.frames import MediaError


def test_mp4_keeps_frames_and_rate() -> None:
    frames = world.clip(seed=1, index=0).frames
    shown, rate = media.decode_mp4(media.encode_mp4(frames, fps=8))
    assert shown.shape == frames.shape
    assert rate == 8
    # 4:2:0 chroma blurs edges; the picture as a whole must hold.
    assert np.abs(shown.astype(int) - frames.astype(int)).mean() < 4


def test_equal_frames_give_equal_bytes() -> None:
    frames = world.clip(seed=1, index=3).frames
    assert media.encode_mp4(frames, fps=8) == media.encode_mp4(frames.copy(), fps=8)


@pytest.mark.parametrize(
    ("frames", "fps", "message"),
    [
        (np.zeros((2, 63, 64, 3), np.uint8), 8, "even sides, these frames are 64x63"),
        (np.zeros((2, 64, 64), np.uint8), 8, "must be uint8"),
        (np.zeros((0, 64, 64, 3), np.uint8), 8, "T >= 1"),
        (np.zeros((2, 64, 64, 3), np.float32), 8, "not float32"),
        (np.zeros((2, 64, 64, 3), np.uint8), 0, "positive"),
    ],
)
def test_unusable_frames_are_named(frames: np.ndarray, fps: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        media.encode_mp4(frames, fps)


def test_what_is_no_video_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"no video")
    with pytest.raises(MediaError, match=r"a\.mp4 cannot be read as a video"):
        media.decode_mp4(tmp_path / "a.mp4")


def test_contact_sheet_shows_every_frame() -> None:
    frames = np.stack([np.full((4, 6, 3), value, np.uint8) for value in (10, 20, 30)])
    sheet = media.contact_sheet(frames, columns=2, scale=2)
    assert sheet.shape == (2 * 8 + 2, 2 * 12 + 2, 3)
    assert [sheet[0, 0, 0], sheet[0, -1, 0], sheet[-1, 0, 0], sheet[-1, -1, 0]] == [10, 20, 30, 255]


def test_equal_frames_give_equal_bytes_whatever_lay_in_memory_before() -> None:
    rng = np.random.default_rng(0)
    clip = world.clip(5, 3).frames
    frames = np.clip(clip + rng.integers(-4, 5, clip.shape), 0, 255).astype(np.uint8)
    seen = set()
    for _ in range(30):
        junk = [rng.integers(0, 256, int(rng.integers(100, 3_000_000)), dtype=np.uint8) for _ in range(6)]
        del junk
        seen.add(media.encode_mp4(frames, 8))
    assert len(seen) == 1
