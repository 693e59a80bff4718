"""How blocky pictures are: steps between neighbours at the edges of blocks, beside those in the middle of blocks.

Nearest-neighbour upsampling makes blocks of equal values. Where the jump between pyramid stages adds noise that is not
correlated as it should be, some of that is left in the picture (PFM section 3.2 and figure 10).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def edge_share(pictures: npt.ArrayLike, block: int) -> float:
    """The share of squared steps that lie on the edges of ``block`` x ``block`` blocks, of pictures (.., h, w).

    Steps are counted between neighbours that a block's edge parts, and between those that its middle parts; each kind
    by its mean, across and down. 0.5 where blocks do not show, 1 where all steps are between blocks. NaN for pictures
    without any step. Raises ValueError for an odd block, and for pictures that are smaller than two blocks.
    """
    values = np.asarray(pictures, np.float64)
    if block < 2 or block % 2:
        raise ValueError(f"a block has an even side of at least 2, not {block}")
    if values.ndim < 2 or min(values.shape[-2:]) < 2 * block:
        raise ValueError(f"pictures of shape {values.shape} are smaller than two blocks of {block}")
    edges = middles = 0.0
    for axis in (-2, -1):
        steps = np.moveaxis(np.diff(values, axis=axis) ** 2, axis, -1)  # step i is between i and i + 1
        edges += float(steps[..., block - 1 :: block].mean())
        middles += float(steps[..., block // 2 - 1 :: block].mean())
    total = edges + middles
    return edges / total if total else float("nan")
