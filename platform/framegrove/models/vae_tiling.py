"""Large pictures through the VAE in overlapping tiles, so that memory depends on neither size nor length.

The states of all tiles together are far larger than what one tile needs at work, so they rest in host memory.

A tile's result is least reliable at its own border, where context is missing, so tiles are spread evenly (no narrow
last tile), and each pixel is an average weighted by how far inside its tiles it lies. The weights sum to one and
change smoothly: there is no seam.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cache
from itertools import product

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from framegrove.config.vae import VaeConfig
from framegrove.models.vae import CausalVideoVae, Moments, State

TILE = 40  # latent cells along a side, 320 pixels: at 768p 15 tiles that hold half as much again as the picture
_WHOLE = 64 * 64  # latent cells of the largest picture that is taken whole: 384p is, 768p is not


def decode_unit(vae: CausalVideoVae, latent_BCTHW: Tensor, state: State | None = None) -> tuple[Tensor, State]:
    """`CausalVideoVae.decode_unit`, by tiles where the picture is large. All units of a video have one size."""
    large = latent_BCTHW.shape[-2] * latent_BCTHW.shape[-1] > _WHOLE
    return decode_unit_tiled(vae, latent_BCTHW, state) if large else vae.decode_unit(latent_BCTHW, state)


def encode_unit(vae: CausalVideoVae, video_BCTHW: Tensor, state: State | None = None) -> tuple[Moments, State]:
    """`CausalVideoVae.encode_unit`, by tiles where the picture is large. All units of a video have one size."""
    side = vae.config.spatial_factor
    large = video_BCTHW.shape[-2] * video_BCTHW.shape[-1] > _WHOLE * side**2
    return encode_unit_tiled(vae, video_BCTHW, state) if large else vae.encode_unit(video_BCTHW, state)


@cache
def decode_flops(config: VaeConfig, size: tuple[int, int]) -> tuple[int, int]:
    """FLOPs of `decode_unit` for the first unit of a video and for a later one; ``size`` is (h, w) of the latents."""
    tiles = 1
    if size[0] * size[1] > _WHOLE:
        tiles = math.prod(len(list(_spans(side, TILE))) for side in size)
        size = (min(size[0], TILE), min(size[1], TILE))
    with torch.device("meta"):  # shapes alone
        vae = CausalVideoVae(config)
        latent = torch.empty(1, config.decoder_in_channels, 1, *size)
    with torch.no_grad():
        with FlopCounterMode(display=False) as first:
            _, state = vae.decode_unit(latent)
        with FlopCounterMode(display=False) as later:
            vae.decode_unit(latent, state)
    return tiles * first.get_total_flops(), tiles * later.get_total_flops()


def decode_unit_tiled(
    vae: CausalVideoVae, latent_BCTHW: Tensor, state: State | None = None, tile: int = TILE
) -> tuple[Tensor, State]:
    """`CausalVideoVae.decode_unit` by tiles of ``tile`` latent cells; the state is a flat list of tensors as there."""
    return _by_tiles(vae.decode_unit, latent_BCTHW, state, tile, cell=1, factor=vae.config.spatial_factor)


def encode_unit_tiled(
    vae: CausalVideoVae, video_BCTHW: Tensor, state: State | None = None, tile: int = TILE
) -> tuple[Moments, State]:
    """`CausalVideoVae.encode_unit` by tiles of ``tile`` latent cells; the state is a flat list of tensors as there."""

    def encode(part: Tensor, held: State | None) -> tuple[Tensor, State]:
        moments, later = vae.encode_unit(part, held)
        return torch.cat([moments.mean, moments.logvar], dim=1), later

    side = vae.config.spatial_factor
    both, later = _by_tiles(encode, video_BCTHW, state, tile, cell=side, factor=1)
    mean, logvar = both.chunk(2, dim=1)
    return Moments(mean, logvar), later


def _by_tiles(
    step: Callable[[Tensor, State | None], tuple[Tensor, State]],
    x: Tensor,
    state: State | None,
    tile: int,
    cell: int,
    factor: int,
) -> tuple[Tensor, State]:
    """Run ``step`` on tiles of ``x``, whose latent cells are ``cell`` wide; blend results, ``factor`` wide a cell."""
    if tile < 2:
        raise ValueError(f"a tile must be at least 2 latent cells wide, not {tile}")
    height, width = x.shape[3] // cell, x.shape[4] // cell
    places = list(product(_spans(height, tile), _spans(width, tile)))
    held = [None] * len(places) if state is None else _split(state, len(places))
    total, later = None, []
    for ((top, bottom), (left, right)), old in zip(places, held, strict=True):
        part, new = step(x[..., top * cell : bottom * cell, left * cell : right * cell], old)
        weight = _ramp(top, bottom, height, tile, factor)[:, None] * _ramp(left, right, width, tile, factor)
        weight = weight.to(part)
        if total is None:
            total = part.new_zeros(*part.shape[:3], height * factor, width * factor)
            weights = part.new_zeros(height * factor, width * factor)
        area = (..., slice(top * factor, bottom * factor), slice(left * factor, right * factor))
        total[area] += part * weight
        weights[area] += weight
        later += [tensor.cpu() for tensor in new]
    assert total is not None
    return total / weights, later


def _spans(size: int, tile: int) -> Iterator[tuple[int, int]]:
    """Even tiles over ``size`` cells, overlapping by a quarter of a tile at least, small ones by three cells."""
    stride = tile - max(min(3, tile - 1), tile // 4)
    count = max(1, -(-(size - tile) // stride) + 1)
    for index in range(count):
        start = round(index * (size - tile) / (count - 1)) if count > 1 else 0
        yield start, min(start + tile, size)


def _ramp(start: int, end: int, size: int, tile: int, factor: int) -> Tensor:
    """Weight of each output position of a tile: from its inner borders rising over a quarter of a tile, smoothly."""
    position = torch.arange((end - start) * factor) + 0.5
    rise = max(1, tile // 4) * factor
    weight = torch.ones(len(position))
    for inner, distance in ((start > 0, position), (end < size, position.flip(0))):
        if inner:
            share = (distance / rise).clamp(max=1.0)
            weight = weight * share.square() * (3 - 2 * share)
    return weight


def _split(state: State, tiles: int) -> list[State]:
    if len(state) % tiles:
        raise ValueError(f"the state is of a clip of another size: {len(state)} tensors for {tiles} tiles")
    each = len(state) // tiles
    return [state[i : i + each] for i in range(0, len(state), each)]
