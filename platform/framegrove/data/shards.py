"""Writing shards of clips by bytes, whole or not at all, in memory that does not grow with their number.

Clips go one by one into an open shard, an Arrow stream that can be read up to its last whole clip however its writer
ended. When it is large enough it becomes a parquet file. Nothing is ever in memory but one row group.
"""

from __future__ import annotations

import contextlib
from collections.abc import Container, Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from framegrove.data.schema import Embedder, LatentClip, schema_of, table_of
from framegrove.files import replacing

SHARD_BYTES = 256 * 2**20
ROW_GROUP_BYTES = 16 * 2**20  # a reader that jumps to a clip reads one of these
_OPEN = "open.arrows"
_LARGE = ("latents", "rival", "text", "pooled")  # columns that neither a dictionary nor minima and maxima are of use to


class ShardWriter:
    """Appends clips to the shards of a folder: clips-00000.parquet and so on, after those that are there.

    ``work`` is where the open shard is; one that an earlier writer left there is continued with the clips that
    ``keep`` holds the identities of. To be used as a context manager: what is open at the end becomes a shard, unless
    the block was left by an exception. ``made_by`` and ``pairs`` are for what searches made: see schema.
    """

    def __init__(
        self,
        folder: Path,
        work: Path,
        vae: str,
        embedder: Embedder | None = None,
        keep: Container[int] = (),
        shard_bytes: int = SHARD_BYTES,
        group_bytes: int = ROW_GROUP_BYTES,
        *,
        made_by: str = "",
        pairs: bool = False,
    ) -> None:
        self._folder, self._path = folder, work / _OPEN
        self._schema = schema_of(vae, embedder, made_by, pairs=pairs)
        self._shard_bytes, self._group_bytes = shard_bytes, group_bytes
        self._bytes = 0
        self._file: IO[bytes] | None = None
        self._stream: Any = None
        self.paths: list[Path] = []  # what was written
        self._recover(keep)

    def add(self, clip: LatentClip) -> None:
        """Append a clip; it is kept from now on, whatever becomes of this process."""
        for batch in table_of([clip], self._schema).to_batches():
            self._append(batch)
        if self._bytes >= self._shard_bytes:
            self.close()

    def close(self) -> None:
        """Turn what is open into a shard."""
        if self._file is None:
            return
        self._end_stream()
        # Not their count: a damaged shard may have been removed.
        taken = (int(path.stem.removeprefix("clips-")) for path in self._folder.glob("clips-*.parquet"))
        number = max(taken, default=-1) + 1
        path = self._folder / f"clips-{number:05d}.parquet"
        with replacing(path) as partial:
            _write_parquet(partial, self._schema, self._path, self._group_bytes)
        # Killed here, the next writer finds the same clips in both: it is told to keep none that are in a shard.
        self._path.unlink()
        self.paths.append(path)
        self._bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        elif self._file is not None:
            self._end_stream()

    def _append(self, batch: pa.RecordBatch) -> None:
        if self._file is None:
            self._file = self._path.open("wb")
            self._stream = pa.ipc.new_stream(self._file, self._schema)
        self._stream.write_batch(batch)
        self._file.flush()
        self._bytes += batch.nbytes

    def _end_stream(self) -> None:
        assert self._file is not None
        self._stream.close()
        self._file.close()
        self._file = self._stream = None

    def _recover(self, keep: Container[int]) -> None:
        """Take over the clips of an open shard that somebody left."""
        left = self._path.with_name(f"left-{self._path.name}")
        if left.exists():  # a writer was stopped while it did this
            self._path.unlink(missing_ok=True)
        elif self._path.exists():
            self._path.replace(left)
        else:
            return
        for batch in _batches(left):
            if batch.schema.equals(self._schema, check_metadata=True) and batch.column("id")[0].as_py() in keep:
                self._append(batch)
        left.unlink()


def stored_ids(folder: Path) -> set[int]:
    """The identities of all clips in the shards of a folder."""
    found: set[int] = set()
    for path in folder.glob("clips-*.parquet"):
        found.update(pq.read_table(path, columns=["id"]).column("id").to_pylist())
    return found


def open_ids(work: Path) -> set[int]:
    """The identities of the clips in an open shard."""
    left = next((path for path in (work / f"left-{_OPEN}", work / _OPEN) if path.exists()), None)
    return set() if left is None else {batch.column("id")[0].as_py() for batch in _batches(left)}


def _batches(path: Path) -> Iterator[pa.RecordBatch]:
    """The whole clips of an open shard; the last one may have been torn when its writer ended."""
    with (
        contextlib.suppress(pa.ArrowInvalid, OSError, EOFError),
        pa.ipc.open_stream(pa.memory_map(str(path))) as stream,
    ):
        yield from stream


def _write_parquet(target: Path, schema: pa.Schema, source: Path, group_bytes: int) -> None:
    small = [name for name in schema.names if name not in _LARGE]
    with pq.ParquetWriter(
        target, schema, use_dictionary=["caption", "source"], write_statistics=small, compression="zstd"
    ) as writer:
        held: list[pa.RecordBatch] = []
        size = 0
        for batch in _batches(source):
            held.append(batch)
            size += batch.nbytes
            if size >= group_bytes:
                writer.write_table(pa.Table.from_batches(held, schema), row_group_size=len(held))
                held, size = [], 0
        if held:
            writer.write_table(pa.Table.from_batches(held, schema), row_group_size=len(held))
