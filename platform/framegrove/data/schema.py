"""The parquet schema of encoded clips: one row a clip, with its latents as float16 bytes.

Latents are the means of the VAE's posterior, not normalised. The file's metadata names the VAE that made them, because
latents of another VAE have the same shape and cannot be told apart by looking at them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

VAE_KEY = b"framegrove.vae"

SCHEMA = pa.schema(
    [
        ("id", pa.int64()),
        ("caption", pa.string()),
        ("split", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("fps", pa.float32()),
        ("units", pa.int32()),
        ("shape", pa.list_(pa.int32(), 4)),
        ("latents", pa.binary()),
    ]
)


@dataclass(frozen=True, eq=False)
class LatentClip:
    """An encoded clip: ``latents`` is float16 (C, units, h, w), ``height`` and ``width`` are in pixels."""

    id: int
    caption: str
    height: int
    width: int
    fps: float
    latents: npt.NDArray[np.float16]
    split: str = "train"

    @property
    def units(self) -> int:
        return self.latents.shape[1]


def to_table(clips: Sequence[LatentClip], vae_digest: str) -> pa.Table:
    """Clips as a table of this schema, whose metadata holds the digest of the VAE that encoded them."""
    rows = [
        {
            "id": clip.id,
            "caption": clip.caption,
            "split": clip.split,
            "height": clip.height,
            "width": clip.width,
            "fps": clip.fps,
            "units": clip.units,
            "shape": list(clip.latents.shape),
            "latents": np.ascontiguousarray(clip.latents, dtype="<f2").tobytes(),
        }
        for clip in clips
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMA.with_metadata({VAE_KEY: vae_digest.encode()}))


def from_table(table: pa.Table | pa.RecordBatch) -> Iterator[LatentClip]:
    """The clips of a table or batch of this schema. Raises ValueError where bytes and shape do not agree."""
    for row in table.to_pylist():
        shape = tuple(row["shape"])
        latents = np.frombuffer(row["latents"], dtype="<f2")
        if latents.size != np.prod(shape) or shape[1] != row["units"]:
            raise ValueError(f"clip {row['id']} holds {latents.size} numbers for latents of shape {shape}")
        yield LatentClip(
            id=row["id"],
            caption=row["caption"],
            height=row["height"],
            width=row["width"],
            fps=row["fps"],
            latents=latents.reshape(shape),
            split=row["split"],
        )
