"""A clip as verifiers receive it: unit by unit, straight from where it was made."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Frames = npt.NDArray[np.uint8]  # (T, H, W, 3), RGB


def clip_of(*units: Frames) -> Frames:
    """The frames of a branch's units, one after the other. Raises ValueError unless all are uint8 (T, H, W, 3)."""
    _check(units)
    return np.concatenate(units)


def frames_by_one(*units: Frames) -> list[Frames]:
    """The same frames, (H, W, 3) each and not copied, for those who look at a few of many. Raises as ``clip_of``."""
    _check(units)
    return [frame for unit in units for frame in unit]


def _check(units: Sequence[Frames]) -> None:
    for unit in units:
        if unit.ndim != 4 or unit.shape[-1] != 3 or unit.dtype != np.uint8 or not len(unit):
            raise ValueError(f"frames must be uint8 of shape (frames, height, width, 3), not {unit.dtype} {unit.shape}")
