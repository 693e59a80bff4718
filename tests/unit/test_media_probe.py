"""What files are told to be, and which are refused: halves, bare streams, sound with a cover, HDR, untagged HD."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.video.reformatter import Colorspace
from PIL import Image

from framegrove.media.clips import read_clip, shown_frames
from framegrove.media.frames import MediaError
from framegrove.media.probe import probe
from framegrove.media.writing import encode_mp4
from tests.films import grey_film

CASES = Path(__file__).parents[1] / "cases"
RED = (200, 40, 40)


def tagged_film(path: Path, height: int, width: int, tags: tuple[int, int, int] | None, matrix: Colorspace) -> Path:
    """Three frames of one red, stored by ``matrix``; ``tags`` are matrix, transfer curve and primaries."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.options = {"crf": "5", "preset": "ultrafast"}
        context: Any = stream.codec_context
        if tags is not None:
            context.colorspace, context.color_trc, context.color_primaries = tags
        picture = np.broadcast_to(np.array(RED, np.uint8), (height, width, 3)).copy()
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p", dst_colorspace=matrix)
        frame.colorspace = tags[0] if tags else 2
        for number in range(3):
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("height", "width", "tags", "matrix"),
    [
        (720, 1280, None, Colorspace.ITU709),
        (1280, 720, None, Colorspace.ITU709),
        (96, 128, None, Colorspace.ITU601),
        (96, 128, (1, 1, 1), Colorspace.ITU709),
    ],
)
def test_colours_are_those_of_the_matrix_that_players_assume(
    height: int, width: int, tags: tuple[int, int, int] | None, matrix: Colorspace, tmp_path: Path
) -> None:
    path = tagged_film(tmp_path / "a.mp4", height, width, tags, matrix)
    (frame, *_) = read_clip(path, 24, 1, [(64, 64)]).frames
    assert np.abs(frame.astype(int) - RED).max() <= 5


@pytest.mark.parametrize(("curve", "name"), [(16, "PQ"), (18, "HLG")])
def test_hdr_is_refused_by_name(curve: int, name: str, tmp_path: Path) -> None:
    path = tagged_film(tmp_path / "hdr.mp4", 96, 128, (9, curve, 9), Colorspace.BT2020)
    for read in (probe, lambda path: read_clip(path, 24, 1, [(64, 64)])):
        with pytest.raises(MediaError, match=rf"hdr\.mp4 is HDR video \({name}\)"):
            read(path)


def faststart(mp4: bytes, tmp_path: Path) -> bytes:
    """The same video with its index at the front, so that a half of it can be opened."""
    (tmp_path / "whole.mp4").write_bytes(mp4)
    with (
        av.open(str(tmp_path / "whole.mp4")) as given,
        av.open(str(tmp_path / "fast.mp4"), "w", options={"movflags": "faststart"}) as made,
    ):
        stream = made.add_stream_from_template(given.streams.video[0])
        for packet in given.demux(video=0):
            if packet.size:
                packet.stream = stream
                made.mux(packet)
    return (tmp_path / "fast.mp4").read_bytes()


def noise(frames: int) -> bytes:
    rng = np.random.default_rng(0)
    return encode_mp4(rng.integers(0, 255, (frames, 64, 64, 3), np.uint8), 8)


def test_half_a_file_is_refused(tmp_path: Path) -> None:
    whole = faststart(noise(40), tmp_path)
    (tmp_path / "whole.mp4").write_bytes(whole)
    (tmp_path / "half.mp4").write_bytes(whole[: len(whole) // 2])
    assert probe(tmp_path / "whole.mp4").pieces == ((0.0, 5.0),)
    with pytest.raises(MediaError, match=r"half\.mp4 is half a file: it ends after 2\.\d of 5\.0 seconds"):
        probe(tmp_path / "half.mp4")
    (tmp_path / "end.mp4").write_bytes(noise(40)[:2000])  # its index was at the end
    with pytest.raises(MediaError, match=r"end\.mp4 cannot be read as a video"):
        probe(tmp_path / "end.mp4")
    picture = io.BytesIO()
    Image.effect_noise((64, 64), 99).save(picture, "JPEG")
    (tmp_path / "half.jpg").write_bytes(picture.getvalue()[: len(picture.getvalue()) // 2])
    with pytest.raises(MediaError, match=r"half\.jpg cannot be read as a picture"):
        probe(tmp_path / "half.jpg")


@pytest.mark.parametrize("kind", ["h264", "mjpeg"])
def test_bare_streams_are_refused(kind: str, tmp_path: Path) -> None:
    with av.open(str(tmp_path / f"a.{kind}"), "w", format=kind) as bare:
        stream = bare.add_stream({"h264": "libx264", "mjpeg": "mjpeg"}[kind], rate=8)
        stream.height, stream.width, stream.pix_fmt = 64, 64, {"h264": "yuv420p", "mjpeg": "yuvj420p"}[kind]
        for _ in range(12):
            bare.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")))
        bare.mux(stream.encode(None))
    data = (tmp_path / f"a.{kind}").read_bytes()
    (tmp_path / "a.mp4").write_bytes(data)  # a name is no container
    for read in (probe, lambda path: read_clip(path, 24, 1, [(64, 64)])):
        with pytest.raises(MediaError, match=rf"a\.mp4 .*bare {kind} stream, without time stamps"):
            read(tmp_path / "a.mp4")


def test_sound_with_a_cover_is_no_picture(tmp_path: Path) -> None:
    cover = io.BytesIO()
    Image.new("RGB", (64, 64), RED).save(cover, "PNG")
    with av.open(str(tmp_path / "song.mp3"), "w") as container:
        sound = container.add_stream("libmp3lame", rate=44100, layout="mono")
        picture = container.add_stream("png", rate=1)
        picture.width = picture.height = 64
        picture.pix_fmt = "rgb24"
        picture.disposition = av.stream.Disposition.attached_pic
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        frame.rate = 44100
        container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
        packet = av.Packet(cover.getvalue())
        packet.stream, packet.pts, packet.dts = picture, 0, 0
        container.mux(packet)
    for read in (probe, lambda path: read_clip(path, 24, 1, [(64, 64)])):
        with pytest.raises(MediaError, match=r"song\.mp3 cannot be read as a video \(it holds sound and a cover"):
            read(tmp_path / "song.mp3")


def test_a_picture_of_too_many_pixels_is_refused(tmp_path: Path) -> None:
    Image.new("1", (20000, 20000)).save(tmp_path / "bomb.png")
    with pytest.raises(MediaError, match=r"bomb\.png has more than 178,956,970 pixels"):
        probe(tmp_path / "bomb.png")


def test_pieces_end_at_gaps(tmp_path: Path) -> None:
    gap = probe(CASES / "gap.mp4")
    assert gap.kind == "video"
    assert [round(end - start, 2) for start, end in gap.pieces] == [1.0, 1.0]
    assert gap.seconds == pytest.approx(2.0, abs=0.01)
    assert gap.pieces[1][0] > 40
    assert probe(CASES / "exif6.jpg").kind == "image"
    pictures = [Image.new("RGB", (64, 64), (20 * number,) * 3) for number in range(6)]
    pictures[0].save(tmp_path / "a.gif", save_all=True, append_images=pictures[1:], duration=125)
    moving = probe(tmp_path / "a.gif")
    assert (moving.kind, moving.seconds) == ("video", pytest.approx(0.72))  # GIF counts hundredths


def test_a_clip_begins_and_ends_where_it_is_told(tmp_path: Path) -> None:
    path = grey_film(tmp_path / "a.mp4", 24, fps=8)

    def seen(start: float, end: float) -> list[int]:
        frames = read_clip(path, 8, 99, [(64, 64)], start, end).frames
        return [round((float(frame.mean()) - 16) / 8) for frame in frames]

    assert seen(0, 0.5) == [0, 1, 2, 3]
    assert seen(1.25, 2) == [10, 11, 12, 13, 14, 15]
    assert seen(2.5, 99) == [20, 21, 22, 23]
    with pytest.raises(MediaError, match=r"holds no frame after 9 seconds"):
        seen(9, 10)
    small = list(shown_frames(CASES / "rotated90.mp4", 48))
    assert len(small) == 24
    assert small[0][1].shape == (48, 32, 3)
    assert [time for time, _ in small[:2]] == [0.0, pytest.approx(1 / 24, abs=1e-3)]
