"""Clips of the digits world for the trainers: encoded for the generator, as pixels for the VAE."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from framegrove.config.request import FRAMES_PER_UNIT
from framegrove.data.schema import LatentClip, clip_id
from framegrove.digits import world
from framegrove.flow.generation import to_pixels
from framegrove.models.vae import CausalVideoVae
from framegrove.models.vae_files import from_uint8
from framegrove.models.vae_tiling import decode_unit, encode_unit

_BATCH = 8  # clips encoded together


def digits_clips(
    vae: CausalVideoVae, count: int, *, seed: int = 0, units: int = 4, pairs: float = 0.5, heldout: float = 0.0
) -> Iterator[LatentClip]:
    """``count`` clips of ``units`` units, encoded; a share of ``pairs`` shows two digits, the others show one.

    The last ones, a share of ``heldout``, are of the held-out split: of scans that no other clip shows.
    """
    trained = count - round(heldout * count)

    def split_of(index: int) -> world.Split:
        return "train" if index < trained else "heldout"

    def drawn_at(index: int) -> world.Clip:
        return world.clip(seed, index, split=split_of(index), digits=2 if _is_pair(index, pairs) else 1, units=units)

    for first in range(0, count, _BATCH):
        indices = range(first, min(first + _BATCH, count))
        drawn = [drawn_at(index) for index in indices]
        latents_BCTHW = _encoded(vae, from_uint8(torch.from_numpy(np.stack([clip.frames for clip in drawn]))))
        for index, clip, latents in zip(indices, drawn, latents_BCTHW.half().numpy(), strict=True):
            split = split_of(index)
            source = f"digits-{seed}-{index}" if split == "train" else f"digits-{seed}-{split}-{index}"
            yield LatentClip(
                id=clip_id(source, 0.0, f"{units} {pairs}"),
                caption=clip.caption,
                height=world.SIZE,
                width=world.SIZE,
                fps=float(world.FPS),
                latents=latents,
                source=source,
                caption_source="digits",
                split=split,
            )


@dataclass(frozen=True)
class DigitsFrames:
    """The VAE trainer's source of clips (`framegrove.training.vae.ClipSource`), all of four units.

    Training clips are those of ``seed``, a share of ``pairs`` with two digits; every statistic is taken of clips with
    one digit and of clips with two.
    """

    seed: int
    pairs: float = 0.4
    kinds: ClassVar[tuple[str, ...]] = ("single", "pair")

    def training(self, index: int) -> npt.NDArray[np.uint8]:
        """Training clip ``index`` of an endless sequence, uint8 (25, 64, 64, 3)."""
        return world.clip(self.seed, index, digits=2 if _is_pair(index, self.pairs) else 1).frames

    def statistics(self, kind: str, index: int) -> npt.NDArray[np.uint8]:
        """Clip ``index`` of a kind, of training scans, on which the latents' normalisation is measured."""
        return world.clip(2, index, digits=1 + self.kinds.index(kind)).frames

    def heldout(self, kind: str, index: int) -> npt.NDArray[np.uint8]:
        """Clip ``index`` of a kind, of scans that no training clip shows."""
        return world.clip(1, index, split="heldout", digits=1 + self.kinds.index(kind)).frames


@torch.inference_mode()
def seen_through(vae: CausalVideoVae, frames: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Clips (B, T, H, W, 3), encoded and decoded, unit by unit: what a generator without a fault would show."""
    latents_BCTHW = _encoded(vae, from_uint8(torch.from_numpy(frames)))
    state, units = None, []
    for latent in latents_BCTHW.split(1, dim=2):
        decoded, state = decode_unit(vae, latent, state)
        units.append(to_pixels(decoded))
    return np.concatenate(units, axis=1)


@torch.inference_mode()
def _encoded(vae: CausalVideoVae, video_BCTHW: Tensor) -> Tensor:
    """The latents of some clips, unit by unit: a long clip at once does not fit a processor's cache."""
    first, *later = video_BCTHW.split([1, *[FRAMES_PER_UNIT] * ((video_BCTHW.shape[2] - 1) // FRAMES_PER_UNIT)], dim=2)
    moments, state = encode_unit(vae, first)
    latents = [moments.mean]
    for unit in later:
        moments, state = encode_unit(vae, unit, state)
        latents.append(moments.mean)
    return torch.cat(latents, dim=2)


def _is_pair(index: int, share: float) -> bool:
    """Whether clip ``index`` shows two digits; the golden ratio spreads a share evenly over all indices."""
    return (index * 0.6180339887) % 1 < share
