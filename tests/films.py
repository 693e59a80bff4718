"""Small video files for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from framegrove.media.writing import encode_mp4


def grey_film(path: Path, frames: int, height: int = 64, width: int = 64, fps: float = 24) -> Path:
    """A video whose frames are grey, each 8 levels lighter than the one before."""
    greys = 16 + 8 * np.arange(frames, dtype=np.uint8)
    path.write_bytes(encode_mp4(np.broadcast_to(greys[:, None, None, None], (frames, height, width, 3)).copy(), fps))
    return path
