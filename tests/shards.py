"""Reads everything that is in a folder of shards."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq

from framegrove.data.schema import LatentClip, from_table, shard_paths


def clips_below(folder: Path) -> list[LatentClip]:
    """All clips below a folder, in the order of their files."""
    return [clip for path in shard_paths(folder) for clip in from_table(pq.ParquetFile(path).read())]
