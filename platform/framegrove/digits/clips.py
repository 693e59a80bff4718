"""Clips of the digits world in any number, to train on."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from framegrove.digits import world


def drawn_clips(
    count: int, *, seed: int = 0, units: int = 4, pairs: float = 0.5
) -> Iterator[tuple[str, npt.NDArray[np.uint8]]]:
    """``count`` captions, each with its frames, uint8 (T, H, W, 3); a share of ``pairs`` shows two digits."""
    for index in range(count):
        # The golden ratio spreads the pairs evenly, whatever their share.
        digits = 2 if (index * 0.6180339887) % 1 < pairs else 1
        clip = world.clip(seed, index, digits=digits, units=units)
        yield clip.caption, clip.frames
