"""Encoding clips into parquet shards of latents."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow.parquet as pq
import torch

from framegrove.data.ingest import DataError, Size
from framegrove.data.schema import LatentClip, to_table
from framegrove.errors import UserError
from framegrove.media.video_reading import Frames, Listed, read_frames
from framegrove.models.vae import CausalVideoVae
from framegrove.models.vae_files import from_uint8
from framegrove.models.vae_tiling import encode_unit

_SHARD = 512


def write_clips(
    clips: Iterable[LatentClip], vae: str, out: Path, on_clips: Callable[[int], None] = lambda done: None
) -> list[Path]:
    """Write ``clips``, encoded by the VAE of this digest, as shards in ``out``, which appears when it is whole.

    Raises UserError where the folder already exists, or there is no clip.
    """
    if out.exists():
        raise UserError(f"{out} already exists: give another --out, or remove it")
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    held: list[LatentClip] = []
    names: list[str] = []

    def flush() -> None:
        names.append(f"clips-{len(names):05d}.parquet")
        pq.write_table(to_table(held, vae), partial / names[-1], row_group_size=_SHARD // 2)
        held.clear()

    for done, clip in enumerate(clips, start=1):
        held.append(clip)
        if len(held) == _SHARD:
            flush()
        on_clips(done)
    if held:
        flush()
    if not names:
        shutil.rmtree(partial)
        raise UserError("not one clip could be encoded")
    os.replace(partial, out)
    return [out / name for name in names]


def video_clips(
    vae: CausalVideoVae,
    listed: Iterable[Listed],
    sizes: Sequence[Size],
    units: int,
    fps: float,
    on_unreadable: Callable[[Listed, str], None],
) -> Iterator[LatentClip]:
    """The beginnings of video files, of ``units`` units or as many as there are frames for, encoded unit by unit.

    Each becomes the one of the (height, width) ``sizes`` that suits it best. Files that cannot be read are passed over.
    """
    step = vae.config.temporal_factor
    for line in listed:
        try:
            frames = read_frames(line.path, fps, 1 + step * (units - 1), sizes)
        except DataError as error:
            on_unreadable(line, str(error))
            continue
        latents = _streamed(vae, frames[: 1 + (len(frames) - 1) // step * step])
        height, width = frames.shape[1:3]
        yield LatentClip(line.id, line.caption, height, width, fps, latents.half().numpy())


@torch.inference_mode()
def _streamed(vae: CausalVideoVae, frames: Frames) -> torch.Tensor:
    """Latents (C, units, h, w) on the CPU; neither the pixels nor what layers make of them lie on the GPU together."""
    device = next(vae.parameters()).device
    step = vae.config.temporal_factor
    state, parts = None, []
    for clip in (frames[:1], *(frames[first : first + step] for first in range(1, len(frames), step))):
        moments, state = encode_unit(vae, from_uint8(torch.from_numpy(clip[None])).to(device), state)
        parts.append(moments.mean[0].cpu())
    return torch.cat(parts, dim=1)


def vae_digest(vae: CausalVideoVae) -> str:
    """A fingerprint of the encoder, the same for all precisions it may have been saved in."""
    digest = hashlib.sha256()
    for name, tensor in sorted(vae.state_dict().items()):
        if name.startswith(("encoder.", "quant_conv.")):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().half().numpy().tobytes())
    return digest.hexdigest()[:16]
