"""From parquet shards to the clips that a worker draws its samples from, in an order that depends on the seed alone.

``open_shards`` reads footers and small columns only, so that a damaged or foreign file is found before training starts.
``stream`` is a worker's endless share of the clips. It is given the function that reads the files: ``read_shards`` in
one process, Ray Data on a cluster; both give the same clips in the same order. ``ClipPool`` holds a window of the
stream that moves forward with every step. Its contents depend on the step alone, not on where the run was started, so
that a resumed run sees the same clips as an uninterrupted one.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from framegrove.data.schema import VAE_KEY, LatentClip, from_table, shard_paths, unreadable
from framegrove.errors import UserError

Size = tuple[int, int]


class DataError(UserError):
    """A list or a data set that cannot be used; the message is one sentence for the user."""


@dataclass(frozen=True)
class Shard:
    """One parquet file: the number of its clips that have a wanted size, and the units of the longest of them."""

    path: Path
    clips: int
    units: int
    vae: str


Reader = Callable[[Sequence[Shard], Collection[Size]], Iterator[LatentClip]]


def open_shards(folder: str | Path, sizes: Collection[Size]) -> tuple[Shard, ...]:
    """The shards below a folder that hold clips of these (height, width) sizes in pixels.

    Raises DataError if there are none, if a file is damaged, or if clips were encoded by different VAEs.
    """
    folder = Path(folder)
    paths = shard_paths(folder)
    if not paths:
        what = "has no parquet files" if folder.is_dir() else "is no folder"
        raise DataError(f"the data folder {folder} {what}: make one with python -m jobs.prepare --out {folder}")
    shards, found = [], set()
    for path in paths:
        shard, seen = _open(path, sizes)
        shards.append(shard)
        found |= seen
    usable = tuple(shard for shard in shards if shard.clips)
    if not usable:
        raise DataError(
            f"{folder} has no clips of {_named(sizes)} (height x width), only of {_named(found)}: change the sizes of "
            "the phase or prepare other clips"
        )
    if len({shard.vae for shard in usable}) > 1:
        raise DataError(f"{folder} mixes clips that were encoded by different VAEs: prepare them again with one")
    return usable


def epoch_order(shards: Sequence[Shard], seed: int, epoch: int) -> list[Shard]:
    """The order in which an epoch reads the shards."""
    return [shards[i] for i in np.random.default_rng([seed, epoch]).permutation(len(shards))]


def clips_of(shards: Sequence[Shard], rank: int, world: int, seed: int, epoch: int = 0) -> int:
    """How many clips worker ``rank`` of ``world`` sees in an epoch."""
    mine, skip, stride = _share(shards, seed, epoch, rank, world)
    return len(range(skip, sum(shard.clips for shard in mine), stride))


def stream(
    shards: Sequence[Shard],
    sizes: Collection[Size],
    seed: int,
    rank: int = 0,
    world: int = 1,
    start: int = 0,
    read: Reader | None = None,
) -> Iterator[LatentClip]:
    """The clips of worker ``rank`` from its zero-based ``start`` on, epoch after epoch without end.

    Every epoch distributes the shards among the workers anew. With fewer shards than workers, each worker instead reads
    all shards and takes every ``world``-th clip. ``read`` is `read_shards` unless given.
    """
    for epoch in itertools.count():
        count = clips_of(shards, rank, world, seed, epoch)
        if start >= count:
            start -= count
            continue
        mine, skip, stride = _share(shards, seed, epoch, rank, world)
        skip += start * stride
        while skip >= mine[0].clips:
            skip -= mine.pop(0).clips
        yield from itertools.islice((read or read_shards)(mine, sizes), skip, None, stride)
        start = 0


def read_shards(shards: Sequence[Shard], sizes: Collection[Size]) -> Iterator[LatentClip]:
    """The clips of some shards in order. Raises DataError for a damaged one."""
    return itertools.chain.from_iterable(read_shard(shard.path, sizes) for shard in shards)


def _share(shards: Sequence[Shard], seed: int, epoch: int, rank: int, world: int) -> tuple[list[Shard], int, int]:
    """A worker's shards in an epoch, the index of the first clip that it takes, and the stride between its clips."""
    order = epoch_order(shards, seed, epoch)
    return (order[rank::world], 0, 1) if len(order) >= world else (order, rank, world)


def read_shard(path: Path, sizes: Collection[Size]) -> Iterator[LatentClip]:
    """The clips of a shard that have one of the sizes, in the file's order. Raises DataError, which names the file."""
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=256):
                for clip in from_table(batch):
                    if (clip.height, clip.width) in sizes:
                        yield clip
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _damaged(path, error) from None


class ClipPool:
    """The clips in memory: a window of ``size`` clips on a worker's stream that moves by ``refresh`` clips a step."""

    def __init__(
        self, open_stream: Callable[[int], Iterator[LatentClip]], available: int, size: int, refresh: int, step: int = 0
    ) -> None:
        """``open_stream(start)`` opens the worker's stream at a clip, ``available`` is the clips of one epoch."""
        if available <= size:  # everything fits: one epoch is loaded and kept
            size, refresh = available, 0
        self.refresh, self.step = refresh, step
        self._stream = open_stream(step * refresh)
        self.clips = deque(itertools.islice(self._stream, size), maxlen=size)
        if not refresh:
            self._stream = iter(())  # drops the reader and the files it holds open

    def at(self, step: int) -> deque[LatentClip]:
        """The window at a step. Steps must not decrease from call to call, unless the window holds everything."""
        if not self.refresh:
            return self.clips
        assert step >= self.step, "a pool only moves forward"
        self.clips.extend(itertools.islice(self._stream, (step - self.step) * self.refresh))
        self.step = step
        return self.clips


def _open(path: Path, sizes: Collection[Size]) -> tuple[Shard, set[Size]]:
    try:
        with pq.ParquetFile(path) as file:
            reason = unreadable(file.schema_arrow)
            if reason:
                raise DataError(
                    f"{path} does not hold clips that can be read ({reason}): remove it or prepare it again"
                )
            columns = file.read(columns=["height", "width", "units"]).to_pydict()
            vae = (file.schema_arrow.metadata or {}).get(VAE_KEY, b"").decode()
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, error) from None
    shapes = list(zip(columns["height"], columns["width"], strict=True))
    units = [unit for shape, unit in zip(shapes, columns["units"], strict=True) if shape in sizes]
    return Shard(path, len(units), max(units, default=0), vae), set(shapes)


def _damaged(path: Path, error: Exception) -> DataError:
    reason = " ".join(str(error).split())[:160]
    return DataError(f"{path} cannot be read as a parquet file of clips ({reason}): remove it or prepare it again")


def _named(sizes: Collection[Size]) -> str:
    return ", ".join(f"{height}x{width}" for height, width in sorted(sizes)) or "no size"
