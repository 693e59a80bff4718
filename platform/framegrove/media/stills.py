"""Pictures that stand for a video: one frame of it, and a sheet of frames from all over it. WebP."""

from __future__ import annotations

import io
import math

import numpy as np
from PIL import Image

from framegrove.media.frames import Frames
from framegrove.media.pictures import reduced

_SIDE = 320  # px of a thumbnail's longer side at most
_SHEET_SIDE = 160  # px of a frame on a sheet
_SHEET_FRAMES = 25
_QUALITY = 85


def thumbnail(frames: Frames) -> bytes:
    """The frame in the middle of a video, uint8 (T, H, W, 3), no larger than 320 pixels."""
    middle = len(frames) // 2
    return webp(reduced(frames[middle : middle + 1], _SIDE)[0])


def spritesheet(frames: Frames) -> bytes:
    """Up to 25 frames from all over a video, row by row, each no larger than 160 pixels, the rest black."""
    count = min(len(frames), _SHEET_FRAMES)
    chosen = reduced(frames[np.linspace(0, len(frames) - 1, count).round().astype(int)], _SHEET_SIDE)
    columns = math.ceil(math.sqrt(count))
    rows = -(-count // columns)
    height, width = chosen.shape[1:3]
    sheet = np.zeros((rows * height, columns * width, 3), np.uint8)
    for number, frame in enumerate(chosen):
        top, left = number // columns * height, number % columns * width
        sheet[top : top + height, left : left + width] = frame
    return webp(sheet)


def strip(frames: Frames, side: int, most: int = 4) -> bytes:
    """Up to ``most`` frames from all over a unit side by side, each no larger than ``side`` pixels."""
    chosen = reduced(frames[np.linspace(0, len(frames) - 1, min(len(frames), most)).round().astype(int)], side)
    return webp(np.concatenate(list(chosen), axis=1))


def webp(picture: Frames) -> bytes:
    """A WebP file of a picture, uint8 (H, W, 3)."""
    target = io.BytesIO()
    Image.fromarray(picture).save(target, "WEBP", quality=_QUALITY)
    return target.getvalue()
