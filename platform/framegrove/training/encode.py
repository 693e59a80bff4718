"""Encoding captioned clips into parquet shards of latents, the data that jobs.train reads."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import torch

from framegrove.data.ingest import Size
from framegrove.data.lists import Listed
from framegrove.data.schema import LatentClip, to_table
from framegrove.errors import UserError
from framegrove.files import replacing
from framegrove.media.clips import read_clip
from framegrove.media.frames import Frames, MediaError
from framegrove.models.vae import CausalVideoVae
from framegrove.models.vae_files import from_uint8
from framegrove.models.vae_tiling import encode_unit

_SHARD = 512  # clips in a file


class NoClips(UserError):
    """There is not a single clip to write."""


@dataclass
class VideoCounts:
    """What became of the files of a list so far."""

    encoded: int = 0
    unreadable: int = 0
    ended_by_gap: int = 0  # of those encoded
    first_problem: str = ""

    @property
    def read(self) -> int:
        """Files that were opened so far."""
        return self.encoded + self.unreadable


def write_clips(
    clips: Iterable[LatentClip], vae: str, out: Path, on_clips: Callable[[int], None] = lambda done: None
) -> list[Path]:
    """Write ``clips``, encoded by the VAE with this digest, as shards in the folder ``out``, which appears when whole.

    ``on_clips`` is given the number of clips so far. Raises UserError if the folder already exists, NoClips if there is
    nothing to write.
    """
    if out.exists():
        raise UserError(f"{out} already exists: give another --out, or remove it")
    out.parent.mkdir(parents=True, exist_ok=True)
    names: list[str] = []
    with replacing(out) as partial:
        partial.mkdir()
        done, rest = 0, iter(clips)
        while held := list(_counted(itertools.islice(rest, _SHARD), done, on_clips)):
            names.append(f"clips-{len(names):05d}.parquet")
            pq.write_table(to_table(held, vae), partial / names[-1], row_group_size=_SHARD // 2)
            done += len(held)
        if not names:
            raise NoClips("not one clip could be encoded")
    return [out / name for name in names]


def _counted(clips: Iterable[LatentClip], done: int, on_clips: Callable[[int], None]) -> Iterator[LatentClip]:
    for number, clip in enumerate(clips, start=done + 1):
        yield clip
        on_clips(number)


def video_clips(
    vae: CausalVideoVae,
    listed: Iterable[Listed],
    sizes: Sequence[Size],
    units: int,
    fps: float,
    counts: VideoCounts,
) -> Iterator[LatentClip]:
    """Encode the beginnings of video files unit by unit: ``units`` units, or as many as there are frames for.

    Each is scaled to the one of the (height, width) ``sizes`` that suits it best. Files that cannot be read are skipped
    and counted in ``counts``, as are clips that a gap in time cut short.
    """
    step = vae.config.temporal_factor
    for line in listed:
        try:
            clip = read_clip(line.path, fps, 1 + step * (units - 1), sizes)
        except MediaError as error:
            counts.unreadable += 1
            counts.first_problem = counts.first_problem or str(error)
            continue
        latents = _streamed(vae, clip.frames[: 1 + (len(clip.frames) - 1) // step * step])
        height, width = clip.frames.shape[1:3]
        counts.encoded += 1
        counts.ended_by_gap += clip.ended_by_gap
        yield LatentClip(line.id, line.caption, height, width, fps, latents.half().numpy())


@torch.inference_mode()
def _streamed(vae: CausalVideoVae, frames: Frames) -> torch.Tensor:
    """Latents (C, units, h, w) on the CPU. The device holds one unit at a time, so that long clips fit a GPU."""
    device = next(vae.parameters()).device
    step = vae.config.temporal_factor
    state = None
    parts = []
    for clip in (frames[:1], *(frames[first : first + step] for first in range(1, len(frames), step))):
        moments, state = encode_unit(vae, from_uint8(torch.from_numpy(clip[None])).to(device), state)
        parts.append(moments.mean[0].cpu())
    return torch.cat(parts, dim=1)


def vae_digest(vae: CausalVideoVae) -> str:
    """A fingerprint of the encoder's weights, equal for every precision that they may have been saved in."""
    digest = hashlib.sha256()
    for name, tensor in sorted(vae.state_dict().items()):
        if name.startswith(("encoder.", "quant_conv.")):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().half().numpy().tobytes())
    return digest.hexdigest()[:16]
