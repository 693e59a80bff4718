"""Frames of video files: at a rate, turned, with square pixels, over white, and none from beyond a gap in time."""

from __future__ import annotations

import io
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from framegrove.media.clips import ClipFrames, read_clip, sampled
from framegrove.media.frames import Frames, MediaError
from framegrove.media.writing import encode_mp4, write_png
from tests.films import grey_film

CASES = Path(__file__).parents[1] / "cases"
SIZES = ((64, 64), (32, 96))
RED, BLUE = (220, 20, 20), (20, 20, 220)

# Display matrices (a, b, c, d): a stored point (x, y) is shown at (a x + c y, b x + d y).
MATRICES = {
    "as stored": (1, 0, 0, 1),
    "a quarter turn right": (0, 1, -1, 0),
    "half a turn": (-1, 0, 0, -1),
    "a quarter turn left": (0, -1, 1, 0),
    "mirrored": (-1, 0, 0, 1),
    "upside down": (1, 0, 0, -1),
    "transposed": (0, 1, 1, 0),
    "transposed the other way": (0, -1, -1, 0),
}


def seen(path: Path, fps: float, most: int = 99) -> list[int]:
    """Numbers of the frames of a grey film that are read."""
    return [round((float(frame.mean()) - 16) / 8) for frame in read_clip(path, fps, most, SIZES).frames]


def test_frames_are_those_nearest_in_time(tmp_path: Path) -> None:
    path = grey_film(tmp_path / "a.mp4", 24)
    assert seen(path, 24) == list(range(24))
    assert seen(path, 8) == list(range(0, 24, 3))
    assert seen(path, 12, most=5) == [0, 2, 4, 6, 8]
    assert seen(grey_film(tmp_path / "b.mp4", 3, fps=8), 16) in ([0, 0, 1, 1, 2, 2], [0, 1, 1, 2, 2])


def test_pictures_cover_the_size_that_suits_them(tmp_path: Path) -> None:
    picture = np.zeros((80, 240, 3), np.uint8)
    picture[:, 60:180] = 255  # the middle half
    write_png(picture, tmp_path / "wide.png")
    (frame,) = read_clip(tmp_path / "wide.png", 24, 9, SIZES).frames
    assert frame.shape == (32, 96, 3)
    assert frame[:, 30:66].min() > 250
    assert frame[:, :18].max() < 5
    (frame,) = read_clip(tmp_path / "wide.png", 24, 9, SIZES[:1]).frames
    assert frame.shape == (64, 64, 3)
    assert frame.min() > 250  # its sides were cut off


def corners(height: int = 32, width: int = 48) -> Frames:
    """A picture whose four quarters differ."""
    picture = np.full((height, width, 3), 128, np.uint8)
    picture[: height // 2, : width // 2] = RED
    picture[height // 2 :, width // 2 :] = BLUE
    picture[: height // 2, width // 2 :] = 240
    return picture


def turned(stored: Frames, matrix: tuple[int, int, int, int]) -> Frames:
    """What a display matrix asks for, point by point."""
    a, b, c, d = matrix
    places = {
        (a * x + c * y, b * x + d * y): stored[y, x] for y in range(stored.shape[0]) for x in range(stored.shape[1])
    }
    xs, ys = (sorted({place[axis] for place in places}) for axis in (0, 1))
    return np.array([[places[x, y] for x in xs] for y in ys], np.uint8)


def with_matrix(mp4: bytes, matrix: tuple[int, int, int, int]) -> bytes:
    """The file with the matrix of its track header replaced."""
    a, b, c, d = (round(part * 65536) for part in matrix)
    place = mp4.index(b"tkhd") + 44
    assert struct.unpack(">9i", mp4[place : place + 36])[::4] == (65536, 65536, 1 << 30)
    return mp4[:place] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + mp4[place + 36 :]


@pytest.mark.parametrize("name", MATRICES)
def test_all_display_matrices(name: str, tmp_path: Path) -> None:
    expected = turned(corners(), MATRICES[name])
    (tmp_path / "a.mp4").write_bytes(with_matrix(encode_mp4(corners()[None], 24), MATRICES[name]))
    (frame,) = read_clip(tmp_path / "a.mp4", 24, 9, [(32, 48), (48, 32)]).frames
    assert frame.shape == expected.shape
    assert np.abs(frame.astype(int) - expected).mean() < 6


def test_rotated90() -> None:
    frames = read_clip(CASES / "rotated90.mp4", 24, 99, [(64, 96), (96, 64)]).frames
    assert frames.shape == (24, 96, 64, 3)
    assert np.abs(frames[0, 2:18, 2:18].astype(int) - RED).mean() < 12
    assert np.abs(frames[0, -18:-2, -18:-2].astype(int) - BLUE).mean() < 12


def test_sar() -> None:
    """Stored 64 wide and 96 high, shown 192 wide: nothing but the width changes."""
    frames = read_clip(CASES / "sar.mp4", 24, 99, [(96, 192), (192, 96)]).frames
    assert frames.shape == (24, 96, 192, 3)
    with av.open(str(CASES / "sar.mp4")) as container:
        stored = next(container.decode(video=0)).to_ndarray(format="rgb24")
    stretched = np.asarray(Image.fromarray(stored).resize((192, 96), Image.Resampling.LANCZOS))
    assert np.abs(frames[0].astype(int) - stretched).mean() < 3


@pytest.mark.parametrize(("ratio", "shown"), [((1, 3), (32, 16)), ((4, 3), (32, 64)), ((1000, 1), (32, 48))])
def test_pixels_of_other_shapes(ratio: tuple[int, int], shown: tuple[int, int], tmp_path: Path) -> None:
    """Of 48x32 stored pixels; what claims to be a thousand times wider than high is taken for square."""
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv444p"
        stream.codec_context.sample_aspect_ratio = Fraction(*ratio)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(corners(), format="rgb24")))
        container.mux(stream.encode(None))
    sizes = [(32, 16), (32, 32), (32, 48), (32, 64), (16, 64)]
    (frame,) = read_clip(tmp_path / "a.mkv", 24, 9, sizes).frames
    assert frame.shape[:2] == shown
    wide = max(sizes, key=lambda size: size[1] / size[0])
    assert read_clip(tmp_path / "a.mkv", 24, 9, [wide]).frames.shape == (1, *wide, 3)


def test_what_is_transparent_in_a_video_is_white(tmp_path: Path) -> None:
    picture = np.zeros((32, 32, 4), np.uint8)
    picture[:16, :, 3] = 255
    picture[16:, :, 0] = 255  # a hidden red
    with av.open(str(tmp_path / "a.mov"), "w") as container:
        stream = container.add_stream("png", rate=24)
        stream.height, stream.width, stream.pix_fmt = 32, 32, "rgba"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgba")))
        container.mux(stream.encode(None))
    (frame,) = read_clip(tmp_path / "a.mov", 24, 9, [(32, 32)]).frames
    assert frame[:14].max() < 5
    assert frame[18:].min() > 250


@pytest.mark.parametrize("kind", ["gif", "webp", "png"])
def test_an_animation_is_a_clip(kind: str, tmp_path: Path) -> None:
    pictures = [Image.new("RGB", (64, 64), (16 + 8 * number,) * 3) for number in range(6)]
    pictures[0].save(tmp_path / f"a.{kind}", save_all=True, append_images=pictures[1:], duration=125, lossless=True)
    assert seen(tmp_path / f"a.{kind}", 8) == [0, 1, 2, 3, 4, 5]
    assert seen(tmp_path / f"a.{kind}", 4) == [0, 2, 4]


def test_gap() -> None:
    whole = read_clip(CASES / "gap.mp4", 24, 999, SIZES)
    assert (len(whole.frames), whole.ended_by_gap) == (24, True)
    enough = read_clip(CASES / "gap.mp4", 24, 24, SIZES)
    assert (len(enough.frames), enough.ended_by_gap) == (24, False)


@pytest.mark.parametrize(
    ("times", "expected", "ended_by_gap"),
    [
        ([0, 5, 10, 15], [0], True),  # a slide show
        ([0, 0.5, 1, 9], [0, 1, 1, 2, 2], True),
        ([7, 7.25, 7.5], [0, 1, 2], False),
        ([100, 100.25, 100.5, 0, 0.25], [0, 1, 2], True),  # joined recordings: time jumps back
        ([0, 0.25, 0.24, 0.5], [0, 2, 3], False),  # and a little disorder is none
        ([3], [0], False),
        ([], [], False),
    ],
)
def test_ticks(times: list[float], expected: list[int], ended_by_gap: bool) -> None:
    taken, ended = sampled(zip(times, range(9), strict=False), 4, 99, lambda number: np.array(number))
    assert ended == ended_by_gap
    assert [int(number) for number in taken] == expected


def test_a_second_between_frames_is_no_gap() -> None:
    taken, ended = sampled(enumerate(range(5)), 24, 99, lambda number: np.array(number))
    assert not ended
    assert np.bincount([int(number) for number in taken]).max() <= 25


def test_a_name_that_looks_like_a_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    grey_film(Path("12:30.mp4"), 3)
    assert len(read_clip(Path("12:30.mp4"), 24, 9, SIZES).frames) == 3


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "bomb.png").write_bytes(bomb())
    (tmp_path / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(99))
    sound(tmp_path / "sound.wav")
    for name, message in {
        "text.mp4": "cannot be read as a video",
        "absent.mp4": r"cannot be read \(No such file",
        "folder.mp4": r"cannot be read \(Is a directory",
        "bomb.png": "has more than 178,956,970 pixels",
        "photo.heic": "is a HEIC picture",
        "sound.wav": r"cannot be read as a video \(it holds none\)",
    }.items():
        with pytest.raises(MediaError, match=f"{name} {message}") as caught:
            read_clip(tmp_path / name, 24, 9, SIZES)
        assert "\n" not in str(caught.value)


def bomb() -> bytes:
    target = io.BytesIO()
    Image.new("1", (20000, 20000)).save(target, "PNG")
    return target.getvalue()


def sound(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def test_damaged_videos_end_in_a_clip_or_a_sentence(tmp_path: Path) -> None:
    whole = grey_film(tmp_path / "whole.mp4", 12).read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(60):
        torn = bytearray(whole[: rng.integers(len(whole) // 4, len(whole) + 1)])
        for place in rng.integers(0, len(torn), 5):
            torn[place] = rng.integers(256)
        (tmp_path / "torn.mp4").write_bytes(torn)
        try:
            outcome: object = read_clip(tmp_path / "torn.mp4", 24, 9, SIZES)
        except MediaError as error:
            outcome = str(error)
        assert isinstance(outcome, ClipFrames) or "torn.mp4 " in str(outcome)
