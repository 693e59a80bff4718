"""Encoding the digits world into parquet shards of latents."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

from framegrove.data import digits
from framegrove.data.schema import LatentClip, to_table
from framegrove.models.vae import CausalVideoVae

_BATCH = 16
_SHARD = 512


def prepare_digits(
    vae: CausalVideoVae,
    out: Path,
    clips: int,
    *,
    seed: int = 0,
    units: int = 4,
    pairs: float = 0.5,
    on_clips: Callable[[int], None] = lambda done: None,
) -> list[Path]:
    """Draw, encode and write ``clips`` training clips, a share of ``pairs`` with two digits, as shards in ``out``.

    The folder appears under its name only when it is whole. Raises ValueError where it already exists.
    """
    if out.exists():
        raise ValueError(f"{out} already exists: give another --out, or remove it")
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    digest = vae_digest(vae)
    held: list[LatentClip] = []
    names: list[str] = []

    def flush() -> None:
        names.append(f"clips-{len(names):05d}.parquet")
        pq.write_table(to_table(held, digest), partial / names[-1], row_group_size=_SHARD // 2)
        held.clear()

    for done, clip in enumerate(_encoded(vae, clips, seed, units, pairs), start=1):
        held.append(clip)
        if len(held) == _SHARD:
            flush()
        on_clips(done)
    if held:
        flush()
    os.replace(partial, out)
    return [out / name for name in names]


def vae_digest(vae: CausalVideoVae) -> str:
    """A fingerprint of the encoder, the same for all precisions it may have been saved in."""
    digest = hashlib.sha256()
    for name, tensor in sorted(vae.state_dict().items()):
        if name.startswith(("encoder.", "quant_conv.")):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().half().numpy().tobytes())
    return digest.hexdigest()[:16]


def _encoded(vae: CausalVideoVae, clips: int, seed: int, units: int, pairs: float) -> Iterator[LatentClip]:
    for first in range(0, clips, _BATCH):
        indices = range(first, min(first + _BATCH, clips))
        # The golden ratio spreads the pairs evenly, whatever their share.
        drawn = [
            digits.clip(seed, index, digits=2 if (index * 0.6180339887) % 1 < pairs else 1, units=units)
            for index in indices
        ]
        video_BTHWC = torch.from_numpy(np.stack([clip.frames for clip in drawn]))
        with torch.inference_mode():
            latents_BCTHW = vae.encode(video_BTHWC.movedim(-1, 1).float() / 127.5 - 1).mean
        for index, clip, latents in zip(indices, drawn, latents_BCTHW.half().numpy(), strict=True):
            yield LatentClip(index, clip.caption, digits.SIZE, digits.SIZE, float(digits.FPS), latents)
