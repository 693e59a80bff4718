"""The VAE on large pictures, in overlapping tiles: memory depends on neither the size nor the length of a video.

All tiles' states together are far larger than what one tile needs while it is computed, so they are kept in host
memory.

A tile's result is least reliable near its own border, where context is missing. Therefore tiles are spread evenly (so
that the last is no narrower), and each pixel is an average over the tiles that cover it, weighted by how far inside
each tile it lies. The weights sum to one and change smoothly, so there is no seam.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import product

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from framegrove.config.vae import VaeConfig
from framegrove.models.vae import CausalVideoVae, Moments, State, cpu_inference
from framegrove.models.vae_files import from_uint8

TILE = 40  # latent cells along a side, 320 pixels: 768p takes 15 tiles with 1.5 times the cells of the picture
_WHOLE = 64 * 64  # latent cells of the largest picture that is decoded whole: 384p is, 768p is not


def decode_unit(vae: CausalVideoVae, latent_BCTHW: Tensor, state: State | None = None) -> tuple[Tensor, State]:
    """`CausalVideoVae.decode_unit`, in tiles if the picture is large. All units of a video must have the same size."""
    large = _cells(latent_BCTHW) > _WHOLE
    return decode_unit_tiled(vae, latent_BCTHW, state) if large else vae.decode_unit(latent_BCTHW, state)


def decode_units(
    vae: CausalVideoVae, latents_1CTHW: Sequence[Tensor], states: Sequence[State | None]
) -> list[tuple[Tensor, State]]:
    """`decode_unit` for several clips: frames and state of each, in order.

    Clips share a call if they have the same shape and are both at the start or both beyond it, but only where sharing
    leaves every bit as it is: for float32 on a CPU without gradients. Elsewhere they are decoded one by one.
    """
    groups: dict[tuple[object, ...], list[int]] = {}
    for index, (latent, state) in enumerate(zip(latents_1CTHW, states, strict=True)):
        groups.setdefault((latent.shape, state is None), []).append(index)
    results: list[tuple[Tensor, State] | None] = [None] * len(latents_1CTHW)
    together = cpu_inference(vae.post_quant_conv.conv.weight)
    for members in groups.values():
        # At most as many cells per call as the largest picture that is decoded whole, which bounds memory.
        share = max(1, _WHOLE // _cells(latents_1CTHW[members[0]])) if together else 1
        for first in range(0, len(members), share):
            some = members[first : first + share]
            decoded = _decode_together(vae, [latents_1CTHW[index] for index in some], [states[index] for index in some])
            for index, result in zip(some, decoded, strict=True):
                results[index] = result
    return [result for result in results if result is not None]


def _decode_together(
    vae: CausalVideoVae, latents: Sequence[Tensor], states: Sequence[State | None]
) -> list[tuple[Tensor, State]]:
    if len(latents) == 1:
        return [decode_unit(vae, latents[0], states[0])]
    begun = [state for state in states if state is not None]
    state = [torch.cat(parts) for parts in zip(*begun, strict=True)] if begun else None
    frames, after = vae.decode_unit(torch.cat(list(latents)), state)
    # Copies, because a view would keep the state of all clips alive as long as one of them is.
    each = zip(*(part.split(1) for part in after), strict=True)
    return [(one, [part.clone() for part in parts]) for one, parts in zip(frames.split(1), each, strict=True)]


def encode_unit(vae: CausalVideoVae, video_BCTHW: Tensor, state: State | None = None) -> tuple[Moments, State]:
    """`CausalVideoVae.encode_unit`, in tiles if the picture is large. All units of a video must have the same size."""
    large = _cells(video_BCTHW) > _WHOLE * vae.config.spatial_factor**2
    return encode_unit_tiled(vae, video_BCTHW, state) if large else vae.encode_unit(video_BCTHW, state)


@torch.inference_mode()
def encode_frames(vae: CausalVideoVae, frames_THWC: npt.NDArray[np.uint8]) -> Tensor:
    """Latents (C, units, h, w) of a clip of 1 + 8 n frames, on the CPU: the means of the VAE's distributions.

    The device holds one unit at a time, so that long clips fit a GPU.
    """
    device = next(vae.parameters()).device
    step = vae.config.temporal_factor
    state = None
    parts = []
    for first, end in ((0, 1), *((first, first + step) for first in range(1, len(frames_THWC), step))):
        video = from_uint8(torch.from_numpy(np.ascontiguousarray(frames_THWC[None, first:end])))
        moments, state = encode_unit(vae, video.to(device), state)
        parts.append(moments.mean[0].cpu())
    return torch.cat(parts, dim=1)


@cache
def decode_flops(config: VaeConfig, size: tuple[int, int]) -> tuple[int, int]:
    """FLOPs of `decode_unit` for the first unit of a video and for any later one; ``size`` is (h, w) of the latents."""
    tiles = 1
    if size[0] * size[1] > _WHOLE:
        tiles = math.prod(len(list(_spans(side, TILE))) for side in size)
        size = (min(size[0], TILE), min(size[1], TILE))
    with torch.device("meta"):  # only shapes matter
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
    """`CausalVideoVae.decode_unit` in tiles of ``tile`` x ``tile`` latent cells; the state is a flat list here too."""
    return _by_tiles(vae.decode_unit, latent_BCTHW, state, tile, cell=1, factor=vae.config.spatial_factor)


def encode_unit_tiled(
    vae: CausalVideoVae, video_BCTHW: Tensor, state: State | None = None, tile: int = TILE
) -> tuple[Moments, State]:
    """`CausalVideoVae.encode_unit` in tiles of ``tile`` x ``tile`` latent cells; the state is a flat list here too."""

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
    """Run ``step`` on each tile of ``x`` and blend the results.

    A latent cell is ``cell`` positions wide in ``x`` and ``factor`` positions wide in the result.
    """
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
    """(start, end) of evenly spread tiles over ``size`` cells; they overlap by a quarter of a tile, or 3 cells."""
    stride = tile - max(min(3, tile - 1), tile // 4)
    count = max(1, -(-(size - tile) // stride) + 1)
    for index in range(count):
        start = round(index * (size - tile) / (count - 1)) if count > 1 else 0
        yield start, min(start + tile, size)


def _ramp(start: int, end: int, size: int, tile: int, factor: int) -> Tensor:
    """Weight of each output position along one side of a tile; it rises smoothly over a quarter of the tile.

    At the picture's own border it does not fall: no other tile is there.
    """
    position = torch.arange((end - start) * factor) + 0.5
    rise = max(1, tile // 4) * factor
    weight = torch.ones(len(position))
    for inner, distance in ((start > 0, position), (end < size, position.flip(0))):
        if inner:
            share = (distance / rise).clamp(max=1.0)
            weight = weight * share.square() * (3 - 2 * share)
    return weight


def _cells(x: Tensor) -> int:
    return x.shape[-2] * x.shape[-1]


def _split(state: State, tiles: int) -> list[State]:
    if len(state) % tiles:
        raise ValueError(f"the state is of a clip of another size: {len(state)} tensors for {tiles} tiles")
    each = len(state) // tiles
    return [state[i : i + each] for i in range(0, len(state), each)]
