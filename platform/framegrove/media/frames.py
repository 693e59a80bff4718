"""What reading and writing share: the type of frames, the error, and the choice among several sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from framegrove.errors import UserError

Frames = npt.NDArray[np.uint8]
Size = tuple[int, int]  # (height, width) in pixels


class MediaError(UserError):
    """A picture or video file that cannot be used; the message is one sentence that names it."""


def nearest_size(height: float, width: float, sizes: Sequence[Size]) -> Size:
    """The one of ``sizes`` whose aspect ratio is closest to that of a picture of ``height`` x ``width``."""
    return min(sizes, key=lambda size: abs(math.log(size[0] / size[1] * width / height)))


def one_line(error: Exception) -> str:
    """A library's error message, shortened so that it fits into a sentence."""
    return " ".join(str(error).split())[:160] or type(error).__name__
