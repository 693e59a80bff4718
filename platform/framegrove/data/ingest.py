"""What clips there are: a catalog of the parquet shards below some folders, one row a clip.

Only footers and small columns are read, so that a damaged or foreign file is found before training starts, and that the
length of every training sample is known before its clip is. reading.py fetches the clips themselves.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from framegrove.data.schema import MADE_BY_KEY, TEXT_KEY, VAE_KEY, shard_paths, unreadable
from framegrove.errors import UserError

Size = tuple[int, int]
Rows = npt.NDArray[np.int64]  # rows of a catalog


class DataError(UserError):
    """A list or a data set that cannot be used; the message is one sentence for the user."""


@dataclass(frozen=True)
class Shard:
    """One parquet file: how many clips each of its row groups holds, and the digests of the models that encoded them.

    ``vae`` is that of the latents' VAE, ``text`` that of the captions' text encoders, "" where there are no embeddings,
    ``made_by`` that of the model which sampled them in searches, "" where no model did.
    """

    path: Path
    groups: tuple[int, ...]
    vae: str
    text: str = ""
    made_by: str = ""


@dataclass(frozen=True, eq=False)
class Catalog:
    """The clips of one split, in the order of their files.

    All columns have N entries: the number of the clip's shard and its row in it, the number of the folder that it is
    from, its units, height and width in pixels, whether it is a picture, as opposed to a video, and whether it is a
    pair (see schema); ``text_N`` counts the tokens of its caption's stored embedding, 0 where there is none, and is
    None where that is not known.
    """

    shards: tuple[Shard, ...]
    shard_N: npt.NDArray[np.int32]
    row_N: npt.NDArray[np.int32]
    folder_N: npt.NDArray[np.int32]
    units_N: npt.NDArray[np.int32]
    height_N: npt.NDArray[np.int32]
    width_N: npt.NDArray[np.int32]
    picture_N: npt.NDArray[np.bool_]
    pair_N: npt.NDArray[np.bool_]
    text_N: npt.NDArray[np.int32] | None = None

    def __len__(self) -> int:
        return len(self.row_N)

    def of_sizes(self, sizes: Collection[Size] | None) -> Rows:
        """The rows of clips that have one of the (height, width) sizes in pixels; None: any."""
        if sizes is None:
            return np.arange(len(self), dtype=np.int64)
        wanted = np.zeros(len(self), dtype=np.bool_)
        for height, width in sizes:
            wanted |= (self.height_N == height) & (self.width_N == width)
        return np.flatnonzero(wanted)

    def sizes(self) -> list[Size]:
        """All (height, width) in pixels that clips have."""
        return sorted(set(zip(self.height_N.tolist(), self.width_N.tolist(), strict=True)))

    def name(self, row: int) -> str:
        """Where a clip stands, for messages."""
        return f"row {self.row_N[row]} of {self.shards[self.shard_N[row]].path}"


def open_catalog(folders: Sequence[str | Path], split: str = "train") -> Catalog:
    """The clips of a split below some folders.

    Raises DataError if a folder has none, if a file is damaged, or if clips were encoded by different VAEs.
    """
    for folder, found in (parts := [(folder, _of_split(Path(folder), split)) for folder in folders]):
        if not found:
            raise DataError(f"{folder} has no clips of the split {split}: prepare some with python -m jobs.prepare")
    return _joined([found for _, found in parts])


def open_heldout(folders: Sequence[str | Path]) -> Catalog | None:
    """The held-out clips below some folders, as many of them as have any; None where none has. Raises DataError."""
    parts = [_of_split(Path(folder), "heldout") for folder in folders]
    return _joined(parts) if any(parts) else None


_Part = tuple[Shard, dict[str, npt.NDArray[Any]]]  # a shard, and the columns of its clips by name


def _of_split(folder: Path, split: str) -> list[_Part]:
    """The shards below a folder that have clips of a split."""
    return [part for part in (_open(path, split) for path in _files(folder)) if len(part[1]["row"])]


def _joined(folders: Sequence[Sequence[_Part]]) -> Catalog:
    """The catalog of the shards of some folders."""
    shards = [shard for parts in folders for shard, _ in parts]
    vaes = {shard.vae: shard.path for shard in shards}
    if len(vaes) > 1:
        one, other = list(vaes.values())[:2]
        raise DataError(f"{one} and {other} were encoded by different VAEs: prepare all clips with one")
    columns = [
        clips | {"folder": np.full_like(clips["row"], number)}
        for number, parts in enumerate(folders)
        for _, clips in parts
    ]
    columns = [clips | {"shard": np.full_like(clips["row"], number)} for number, clips in enumerate(columns)]
    whole = {name: np.concatenate([clips[name] for clips in columns]) for name in columns[0]}
    return Catalog(tuple(shards), **{f"{name}_N": values for name, values in whole.items()})


def _files(folder: Path) -> list[Path]:
    paths = shard_paths(folder)
    if not paths:
        what = "has no parquet files" if folder.is_dir() else "is no folder"
        raise DataError(
            f"the data folder {folder} {what}: make one of footage with python -m jobs.prepare --videos FOLDER --out "
            f"{folder}, or of drawn digits with --clips 200 in the place of --videos"
        )
    return paths


def _open(path: Path, split: str) -> _Part:
    """A shard and the columns of its clips of the split, by name."""
    try:
        with pq.ParquetFile(path) as file:
            if (reason := unreadable(file.schema_arrow)) is not None:
                raise DataError(f"{path} holds no clips that can be read ({reason}): remove it or prepare it again")
            # Of version 1 there are neither kind nor text_shape.
            table = file.read(columns=["height", "width", "units", "split", "kind", "text_shape"])
            groups = tuple(file.metadata.row_group(i).num_rows for i in range(file.num_row_groups))
            facts = file.schema_arrow.metadata or {}
            vae, text, made_by = (facts.get(key, b"").decode() for key in (VAE_KEY, TEXT_KEY, MADE_BY_KEY))
            pairs = "rival" in file.schema_arrow.names
    except (pa.ArrowException, OSError) as error:
        raise damaged(path, error) from None
    rows = np.flatnonzero(np.array(table["split"].to_pylist(), dtype=object) == split)
    clips = {name: table[name].to_numpy()[rows].astype(np.int32) for name in ("height", "width", "units")}
    if "kind" in table.column_names:
        picture = np.array(table["kind"].to_pylist(), dtype=object)[rows] == "image"
    else:
        picture = clips["units"] == 1
    clips["text"] = np.zeros(len(rows), dtype=np.int32)
    if text and "text_shape" in table.column_names:
        clips["text"] = pc.list_element(table["text_shape"], 0).fill_null(0).to_numpy()[rows].astype(np.int32)
    clips |= {"row": rows.astype(np.int32), "picture": picture, "pair": np.full(len(rows), pairs)}
    return Shard(path, groups, vae, text, made_by), clips


def damaged(path: Path, error: Exception) -> DataError:
    """What is said of a file that is not, or no longer, a parquet file of clips."""
    reason = " ".join(str(error).split())[:160]
    return DataError(f"{path} cannot be read as a parquet file of clips ({reason}): remove it or prepare it again")
