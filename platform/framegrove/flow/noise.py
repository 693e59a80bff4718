"""Noise: one hash-seeded generator per branch and purpose, the noise pyramid, and block-correlated noise for jumps."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from framegrove.lineage import Mutation, mutation_of, sibling
from framegrove.types import Path


class NoiseSource(Protocol):
    """Where a sampler takes its noise from; a recorded source replays another implementation's draws."""

    def initial(self, seed: int, path: Path, shape: tuple[int, ...]) -> Tensor:
        """Standard normal noise (C, t, h, w) at full resolution for the newest unit of branch ``path``."""
        ...

    def jump(self, seed: int, path: Path, stage: int, shape: tuple[int, ...]) -> Tensor:
        """Block noise (C, t, h, w) for the jump of that unit into ``stage``."""
        ...


@dataclass(frozen=True)
class HashNoise:
    """Noise as a pure function of (seed, path): any actor can draw it again, at any time, and gets the same.

    Where the path says that the branch is mutated (lineage.py), it is a sibling's noise with fresh noise mixed in.
    """

    gamma: float = -1 / 3

    def initial(self, seed: int, path: Path, shape: tuple[int, ...]) -> Tensor:
        """Standard normal noise, drawn on the CPU."""

        def fresh(branch: Path) -> Tensor:
            return torch.randn(shape, generator=generator_for(seed, branch, "noise"))

        return _evolved(path, fresh, lambda mutation: mutation.initial)

    def jump(self, seed: int, path: Path, stage: int, shape: tuple[int, ...]) -> Tensor:
        """Block noise, drawn on the CPU."""

        def fresh(branch: Path) -> Tensor:
            return block_noise(shape, generator_for(seed, branch, "jump", stage), self.gamma)

        return _evolved(path, fresh, lambda mutation: mutation.jump)


def _evolved(path: Path, fresh: Callable[[Path], Tensor], hundredths: Callable[[Mutation], int]) -> Tensor:
    """A branch's own noise, mixed into that of the sibling that it was mutated from, if there is one."""
    mutation = mutation_of(path[-1]) if path else None
    if mutation is None:
        return fresh(path)
    parent = _evolved(sibling(path, mutation), fresh, hundredths)
    strength = hundredths(mutation) / 100
    return mutated(parent, fresh(path), strength) if strength else parent


def mutated(parent: Tensor, fresh: Tensor, strength: float) -> Tensor:
    """Noise of the distribution that ``parent`` and ``fresh`` have, correlated sqrt(1 - strength^2) with its parent.

    sqrt(1 - s^2) parent + s fresh, EvoSearch's mutation of initial noise. Of two independent Gaussian vectors of the
    same covariance, a mixture whose squared weights add up to 1 has that covariance too: block noise stays block noise.
    """
    return parent * math.sqrt(1 - strength**2) + fresh * strength


def generator_for(seed: int, path: Path, *labels: str | int) -> torch.Generator:
    """A CPU generator seeded by a hash of the request's seed, the branch and what the noise is for."""
    text = repr((int(seed), tuple(int(child) for child in path), labels))
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big"))


def block_noise(shape: tuple[int, ...], generator: torch.Generator | None, gamma: float) -> Tensor:
    """Gaussian noise (.., h, w), correlated ``gamma`` inside each 2x2 block and not between blocks (PFM section 3.2).

    Exact for every gamma in [-1/3, 0], the singular -1/3 included. Raises ValueError for odd sizes or another gamma.
    """
    *leading, height, width = shape
    if height % 2 or width % 2:
        raise ValueError(f"block noise needs an even height and width, not {height}x{width}")
    if not -1 / 3 - 1e-9 <= gamma <= 0:
        raise ValueError(f"gamma must lie between -1/3 and 0, not {gamma}")
    draws = 4 if 1 + 3 * gamma > 0 else 3
    return mix_blocks(torch.randn(draws, *leading, height // 2, width // 2, generator=generator), gamma)


def mix_blocks(white: Tensor, gamma: float) -> Tensor:
    """Block noise (.., h, w) from white noise (4, .., h / 2, w / 2), or from three draws per block when gamma is -1/3.

    The block covariance (1 - gamma) I + gamma 11' has eigenvalue 1 + 3 gamma on the block's mean and 1 - gamma on its
    three contrasts (columns, rows, diagonals). So each draw scales one of these four patterns, and no factorisation,
    which the singular -1/3 would break, is needed.
    """
    scaled = white[:3] * (math.sqrt(1 - gamma) / 2)
    rows, columns, diagonal = scaled[0], scaled[1], scaled[2]
    plus, minus = rows + columns, rows - columns
    *leading, height, width = rows.shape
    noise = white.new_empty(*leading, height, 2, width, 2)
    # Straight into their places: this is mostly memory traffic.
    torch.add(plus, diagonal, out=noise[..., 0, :, 0])
    torch.sub(minus, diagonal, out=noise[..., 0, :, 1])
    torch.add(minus, diagonal, out=noise[..., 1, :, 0]).neg_()
    torch.sub(diagonal, plus, out=noise[..., 1, :, 1])
    if len(white) == 4:
        noise += (white[3] * (math.sqrt(max(1 + 3 * gamma, 0.0)) / 2))[..., :, None, :, None]
    return noise.view(*leading, 2 * height, 2 * width)


def pyramid(latent: Tensor, stages: int) -> list[Tensor]:
    """The latent (.., h, w) at every stage's resolution, coarsest first, by repeated bilinear halving (released).

    Raises ValueError when height or width cannot be halved that often.
    """
    _check_halvings(latent, stages - 1)
    levels = [latent]
    for _ in range(stages - 1):
        levels.append(halve(levels[-1]))
    return levels[::-1]


def noise_pyramid(noise: Tensor, stages: int) -> list[Tensor]:
    """White noise (.., h, w) at every stage, coarsest first: halving averages four values, times 2 keeps it N(0, 1)."""
    _check_halvings(noise, stages - 1)
    levels = [noise]
    for _ in range(stages - 1):
        levels.append(halve(levels[-1]) * 2)
    return levels[::-1]


def halve(latent: Tensor) -> Tensor:
    """Half height and width, bilinear without antialiasing; (.., h, w)."""
    height, width = latent.shape[-2:]
    planes = latent.reshape(1, -1, height, width)
    smaller = F.interpolate(planes, size=(height // 2, width // 2), mode="bilinear", align_corners=False)
    return smaller.reshape(*latent.shape[:-2], height // 2, width // 2)


def double(latent: Tensor) -> Tensor:
    """Twice the height and width, nearest neighbour, in memory of its own; (.., h, w)."""
    height, width = latent.shape[-2:]
    blocks = latent[..., :, None, :, None].expand(*latent.shape[:-2], height, 2, width, 2)
    # A single pixel is reshaped without a copy: four elements in one place.
    return blocks.reshape(*latent.shape[:-2], 2 * height, 2 * width).contiguous()


def _check_halvings(latent: Tensor, halvings: int) -> None:
    height, width = latent.shape[-2:]
    if height % 2**halvings or width % 2**halvings:
        raise ValueError(
            f"a latent of {height}x{width} cannot be halved {halvings} times: "
            f"height and width must be multiples of {2**halvings}"
        )
