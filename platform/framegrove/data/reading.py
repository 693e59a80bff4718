"""Fetches clips by their rows in a catalog, in any order. Row groups that were read stay in memory while they fit.

A parquet file is read a row group at a time, some tens of MB. Data sets of small clips, in which a row group holds
hundreds, want to fit into the cache; of clips of many MB, a row group holds a few, and nearly all that is read is used.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Iterable
from itertools import accumulate

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from framegrove.data.ingest import Catalog, Shard, damaged
from framegrove.data.schema import PAIRS, TEXT_COLUMNS, LatentClip, from_table
from framegrove.files import patiently


class ClipReader:
    """Reads clips of a ``catalog`` and keeps up to ``cache`` bytes of row groups. For one thread at a time.

    Stored embeddings of captions are read only ``with_text``.
    """

    def __init__(self, catalog: Catalog, cache: int, *, with_text: bool = False) -> None:
        self._catalog = catalog
        self._most = cache
        self._columns = [name for name in PAIRS.names if with_text or name not in TEXT_COLUMNS]
        self._groups: OrderedDict[tuple[int, int], pa.Table] = OrderedDict()  # by shard and row group, oldest use first
        self._bytes = 0
        self._ends = [np.array(list(accumulate(shard.groups))) for shard in catalog.shards]

    def read(self, rows: Iterable[int]) -> list[LatentClip]:
        """The clips in these rows of the catalog. Raises DataError for a damaged shard, StorageFailed for one gone."""
        wanted: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
        count = 0
        for place, row in enumerate(rows):
            shard, within = int(self._catalog.shard_N[row]), int(self._catalog.row_N[row])
            group = int(np.searchsorted(self._ends[shard], within, side="right"))
            first = int(self._ends[shard][group]) - self._catalog.shards[shard].groups[group]
            wanted[shard, group].append((place, within - first))
            count += 1
        clips: list[LatentClip | None] = [None] * count
        for key, members in wanted.items():
            table = self._group(*key)
            for place, within in members:
                clips[place] = self._clip(table, within, self._catalog.shards[key[0]])
        return [clip for clip in clips if clip is not None]

    def _clip(self, table: pa.Table, row: int, shard: Shard) -> LatentClip:
        try:
            return next(from_table(table.slice(row, 1)))
        except ValueError as error:
            raise damaged(shard.path, error) from None

    def _group(self, shard: int, group: int) -> pa.Table:
        key = shard, group
        if key in self._groups:
            self._groups.move_to_end(key)
            return self._groups[key]
        table = self._read(self._catalog.shards[shard], group)
        self._groups[key] = table
        self._bytes += table.nbytes
        while self._bytes > self._most and len(self._groups) > 1:
            self._bytes -= self._groups.popitem(last=False)[1].nbytes
        return table

    def _read(self, shard: Shard, group: int) -> pa.Table:
        """A row group; storage that is gone for a while is waited for, a file that is damaged is not."""

        def read() -> pa.Table:
            try:
                with pq.ParquetFile(shard.path) as file:
                    return file.read_row_group(group, columns=self._columns)
            except (pa.ArrowException, OSError) as error:
                if isinstance(error, OSError) and error.errno is not None:
                    raise
                raise damaged(shard.path, error) from None

        return patiently(f"reading {shard.path}", read)
