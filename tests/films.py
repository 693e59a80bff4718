"""Small video files for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter

from framegrove.media.frames import Frames
from framegrove.media.writing import encode_mp4


def grey_film(path: Path, frames: int, height: int = 64, width: int = 64, fps: float = 24) -> Path:
    """A video whose frames are grey, each 8 levels lighter than the one before."""
    greys = 16 + 8 * np.arange(frames, dtype=np.uint8)
    path.write_bytes(encode_mp4(np.broadcast_to(greys[:, None, None, None], (frames, height, width, 3)).copy(), fps))
    return path


def scenery(seed: int, height: int = 96, width: int = 160) -> Frames:
    """A picture with structure at several scales, of a colour of its own."""
    rng = np.random.default_rng(seed)
    scales = [gaussian_filter(rng.standard_normal((height, width)), scale) * scale for scale in (1, 3, 9)]
    tint = rng.uniform(0.4, 1, 3)
    picture = 128 + 60 * sum(scales)[..., None] * tint
    return np.clip(picture, 0, 255).astype(np.uint8)


def panned(picture: Frames, frames: int, pixels: int) -> Frames:
    """The picture, moving sideways by so many pixels a frame."""
    return np.stack([np.roll(picture, pixels * number, axis=1) for number in range(frames)])
