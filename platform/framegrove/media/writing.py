"""Frames to files and back: mp4 by PyAV, whose wheel brings the codecs, and contact sheets as PNG.

The encoder runs on one thread with fixed settings, so that equal frames give equal bytes.
"""

from __future__ import annotations

import io
import math
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from framegrove.media.frames import Frames, MediaError, one_line

_QUALITY = "14"  # x264's constant rate factor: visually lossless, still small
_GAP = 2  # px between the frames of a contact sheet
_PAPER = 255


def encode_mp4(frames: Frames, fps: float) -> bytes:
    """An H.264 mp4 of uint8 frames (T, H, W, 3) that every browser plays. Equal frames give equal bytes.

    Raises ValueError for frames of another shape or type, for an odd side (chroma has half the resolution) and for a
    rate that is not positive.
    """
    _check(frames)
    if fps <= 0:
        raise ValueError(f"frames per second must be positive, not {fps}")
    if frames.shape[1] % 2 or frames.shape[2] % 2:
        raise ValueError(f"mp4 needs even sides, these frames are {frames.shape[2]}x{frames.shape[1]}")
    target = io.BytesIO()
    with av.open(target, "w", format="mp4", options={"fflags": "bitexact"}) as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        # For small frames x264's macroblock tree reads memory that was never set, and bytes differ from run to run.
        stream.options = {"crf": _QUALITY, "preset": "medium", "threads": "1", "x264-params": "mbtree=0"}
        for array in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(array), format="rgb24")))
        container.mux(stream.encode(None))
    return target.getvalue()


def encode_lossless(frames: Frames, fps: float) -> bytes:
    """A video file (FFV1 in Matroska) that keeps uint8 frames (T, H, W, 3) as they are. `decode_mp4` reads it."""
    _check(frames)
    target = io.BytesIO()
    with av.open(target, "w", format="matroska", options={"fflags": "bitexact"}) as container:
        stream = container.add_stream("ffv1", rate=Fraction(fps).limit_denominator(1001))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "bgr0"
        stream.options = {"level": "3", "threads": "1"}
        for array in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(array), format="rgb24")))
        container.mux(stream.encode(None))
    return target.getvalue()


def decode_mp4(source: bytes | Path) -> tuple[Frames, float]:
    """All frames of a video file as they are stored, uint8 (T, H, W, 3), and its rate. Raises MediaError if it is none.

    For files that this module wrote; `media.clips` reads those of others.
    """
    opened = io.BytesIO(source) if isinstance(source, bytes) else str(source)
    try:
        with av.open(opened, "r") as container:
            stream = container.streams.video[0]
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
            rate = float(stream.average_rate or 0)
    except (av.FFmpegError, IndexError) as error:
        name = "the given bytes" if isinstance(source, bytes) else str(source)
        raise MediaError(f"{name} cannot be read as a video ({one_line(error)})") from None
    return np.stack(frames), rate


def contact_sheet(frames: Frames, *, columns: int = 9, scale: int = 1) -> Frames:
    """All frames on one sheet, row by row, each enlarged ``scale`` times: uint8 (H', W', 3)."""
    _check(frames)
    count, height, width, _ = frames.shape
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    step_y, step_x = height * scale + _GAP, width * scale + _GAP
    sheet = np.full((rows * step_y - _GAP, columns * step_x - _GAP, 3), _PAPER, np.uint8)
    for index, frame in enumerate(frames):
        y, x = index // columns * step_y, index % columns * step_x
        sheet[y : y + height * scale, x : x + width * scale] = frame.repeat(scale, 0).repeat(scale, 1)
    return sheet


def write_png(image: Frames, path: Path) -> None:
    """Write one uint8 image (H, W, 3)."""
    Image.fromarray(image).save(path, format="png")


def _check(frames: Frames) -> None:
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise ValueError(f"frames must be uint8 (T, H, W, 3) with T >= 1, not {frames.dtype} {frames.shape}")
