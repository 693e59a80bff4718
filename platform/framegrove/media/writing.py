"""Frames to files and back: mp4 by PyAV (codecs inside the wheel), contact sheets as PNG.

The encoder runs on one thread with fixed settings, so equal frames give equal bytes.
"""

from __future__ import annotations

import io
import math
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
from PIL import Image

from framegrove.errors import UserError

Frames = npt.NDArray[np.uint8]

_QUALITY = "14"  # x264's constant rate factor: visually lossless, still small
_GAP = 2  # px between the frames of a contact sheet
_PAPER = 255


class MediaError(UserError):
    """Frames or a file that cannot be used; the message is one sentence for the user."""


def encode_mp4(frames: Frames, fps: float) -> bytes:
    """An H.264 mp4 of uint8 frames (T, H, W, 3) that every browser plays. Equal frames give equal bytes.

    Raises MediaError for frames of another shape or type, an odd side (4:2:0 chroma) or a rate that is not positive.
    """
    _check(frames)
    if fps <= 0:
        raise MediaError(f"frames per second must be positive, not {fps}")
    if frames.shape[1] % 2 or frames.shape[2] % 2:
        raise MediaError(f"mp4 needs even sides, these frames are {frames.shape[2]}x{frames.shape[1]}")
    target = io.BytesIO()
    with av.open(target, "w", format="mp4", options={"fflags": "bitexact"}) as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        # x264's macroblock tree reads memory that nobody has set when pictures are small: without it, bytes are equal.
        stream.options = {"crf": _QUALITY, "preset": "medium", "threads": "1", "x264-params": "mbtree=0"}
        for array in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(array), format="rgb24")))
        container.mux(stream.encode(None))
    return target.getvalue()


def decode_mp4(source: bytes | Path) -> tuple[Frames, float]:
    """Frames uint8 (T, H, W, 3) and frames per second of a video file. Raises MediaError where there is no video."""
    opened = io.BytesIO(source) if isinstance(source, bytes) else str(source)
    try:
        with av.open(opened, "r") as container:
            stream = container.streams.video[0]
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
            rate = float(stream.average_rate or 0)
    except (av.FFmpegError, IndexError) as error:
        name = "the given bytes" if isinstance(source, bytes) else str(source)
        raise MediaError(f"{name} cannot be read as a video: {error}") from None
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
    Image.fromarray(image).save(path)


def read_image(encoded: bytes, size: tuple[int, int]) -> Frames:
    """A PNG or JPEG file's bytes as uint8 (H, W, 3), the middle of it resized to ``size`` = (height, width).

    Raises MediaError where the bytes are no image.
    """
    height, width = size
    try:
        with Image.open(io.BytesIO(encoded)) as opened:
            image = opened.convert("RGB")
    except (OSError, Image.DecompressionBombError) as error:
        raise MediaError(f"the image cannot be read: {error}") from None
    scale = min(image.width / width, image.height / height)
    crop_w, crop_h = width * scale, height * scale
    left, top = (image.width - crop_w) / 2, (image.height - crop_h) / 2
    box = (left, top, left + crop_w, top + crop_h)
    return np.asarray(image.resize((width, height), Image.Resampling.LANCZOS, box=box))


def _check(frames: Frames) -> None:
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise MediaError(f"frames must be uint8 (T, H, W, 3) with T >= 1, not {frames.dtype} {frames.shape}")
