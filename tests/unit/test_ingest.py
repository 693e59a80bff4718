"""Clips in parquet shards: catalogued, fetched in any order, packed, and refused in one line when damaged."""

from __future__ import annotations

import errno
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from framegrove import files
from framegrove.data import reading
from framegrove.data.ingest import DataError, open_catalog
from framegrove.data.packing import fitting, share_out
from framegrove.data.reading import ClipReader
from framegrove.data.schema import Kind, LatentClip, from_table, to_table
from framegrove.errors import UserError
from framegrove.files import StorageFailed

SIZE = (64, 64)
ALL = 2**30


def make_clip(index: int, units: int = 4, size: tuple[int, int] = SIZE, split: str = "train") -> LatentClip:
    rng = np.random.default_rng(index)
    latents = rng.standard_normal((16, units, size[0] // 8, size[1] // 8)).astype(np.float16)
    kind: Kind = "image" if units == 1 else "video"
    return LatentClip(index, f"clip {index}", *size, 8.0, latents, split, kind)


def write_shards(folder: Path, *lengths: int, vae: str = "v", group: int = 2) -> Path:
    folder.mkdir(exist_ok=True)
    indices = itertools.count()
    for number, length in enumerate(lengths):
        clips = [make_clip(next(indices)) for _ in range(length)]
        pq.write_table(to_table(clips, vae), folder / f"s{number}.parquet", row_group_size=group)
    return folder


def test_a_clip_comes_back_as_it_was() -> None:
    clip = make_clip(3, units=2)
    (back,) = from_table(to_table([clip], "v"))
    assert (back.id, back.caption, back.units, back.height, back.fps) == (3, "clip 3", 2, 64, 8.0)
    np.testing.assert_array_equal(back.latents, clip.latents)


def test_a_catalog_has_a_row_for_every_clip_of_its_split(tmp_path: Path) -> None:
    write_shards(tmp_path / "a", 5, 3)
    mixed = [make_clip(20, 1), make_clip(21, 3, (64, 128)), make_clip(22, split="heldout"), make_clip(23, 2)]
    write_shards(tmp_path / "b")
    pq.write_table(to_table(mixed, "v"), tmp_path / "b" / "s.parquet")
    catalog = open_catalog([tmp_path / "a", tmp_path / "b"])
    assert len(catalog) == 11
    assert catalog.folder_N.tolist() == [0] * 8 + [1] * 3
    assert catalog.units_N.tolist() == [4] * 8 + [1, 3, 2]
    assert catalog.picture_N.tolist() == [False] * 8 + [True, False, False]
    assert catalog.sizes() == [(64, 64), (64, 128)]
    assert catalog.of_sizes([(64, 128)]).tolist() == [9]
    assert catalog.of_sizes(None).tolist() == list(range(11))
    assert catalog.name(10) == f"row 3 of {tmp_path}/b/s.parquet"
    heldout = open_catalog([tmp_path / "b"], split="heldout")
    assert [clip.id for clip in ClipReader(heldout, ALL).read([0])] == [22]


@settings(max_examples=25, deadline=None)
@given(rows=st.lists(st.integers(0, 11), max_size=20), cache=st.sampled_from([1, 40_000, ALL]))
def test_clips_are_fetched_in_the_order_asked_for(
    tmp_path_factory: pytest.TempPathFactory, rows: list[int], cache: int
) -> None:
    folder = tmp_path_factory.mktemp("clips")
    reader = ClipReader(open_catalog([write_shards(folder, 5, 3, 4)]), cache)
    for part in (rows, rows[::-1]):
        clips = reader.read(part)
        assert [clip.id for clip in clips] == part
        for clip in clips:
            np.testing.assert_array_equal(clip.latents, make_clip(clip.id).latents)


def test_what_fits_is_read_once_and_what_does_not_is_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = open_catalog([write_shards(tmp_path, 6)])
    opened: list[Any] = []
    real = pq.ParquetFile
    monkeypatch.setattr(reading.pq, "ParquetFile", lambda path: opened.append(path) or real(path))
    reader = ClipReader(catalog, ALL)
    for _ in range(3):
        reader.read(range(6))
    assert len(opened) == 3  # row groups
    small = ClipReader(catalog, 1)
    small.read([0, 1, 4])
    assert len(small._groups) == 1
    small.read([0])
    assert len(opened) == 3 + 3


def test_storage_that_is_gone_for_a_while_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = open_catalog([write_shards(tmp_path, 2)])
    monkeypatch.setattr(files, "_PAUSE_S", 0.0)
    real, failures = pq.ParquetFile, iter([errno.EIO, errno.ESTALE])

    def flaky(path: Path) -> pq.ParquetFile:
        number = next(failures, None)
        if number is not None:
            raise OSError(number, "gone")
        return real(path)

    monkeypatch.setattr(reading.pq, "ParquetFile", flaky)
    assert [clip.id for clip in ClipReader(catalog, ALL).read([1])] == [1]
    assert next(failures, None) is None
    monkeypatch.setattr(files, "_PATIENCE_S", 0.1)
    (tmp_path / "s0.parquet").unlink()
    monkeypatch.setattr(reading.pq, "ParquetFile", real)
    with pytest.raises(StorageFailed, match=r"reading .*s0\.parquet failed .*: see to the storage"):
        ClipReader(catalog, ALL).read([0])


def test_what_cannot_be_used_is_named_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no folder"):
        open_catalog([tmp_path / "nowhere"])
    folder = write_shards(tmp_path / "clips", 2, 2)
    with pytest.raises(DataError, match="has no clips of the split heldout"):
        open_catalog([folder], split="heldout")
    whole = (folder / "s1.parquet").read_bytes()
    (folder / "s1.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"s1\.parquet cannot be read") as caught:
        open_catalog([folder])
    assert "\n" not in str(caught.value)


def test_damage_inside_a_shard_is_named_when_it_is_read(tmp_path: Path) -> None:
    path = write_shards(tmp_path, 40, group=40) / "s0.parquet"
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle - 20000 : middle + 20000] = bytes(40000)
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match=r"s0\.parquet"):  # at once: waiting would not mend it
        ClipReader(open_catalog([tmp_path]), ALL).read(range(40))


def test_clips_of_two_vaes_are_not_mixed(tmp_path: Path) -> None:
    write_shards(tmp_path, 2)
    pq.write_table(to_table([make_clip(9)], "another"), tmp_path / "s9.parquet")
    with pytest.raises(DataError, match="different VAEs"):
        open_catalog([tmp_path])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=30, max_size=90), st.integers(60, 200), st.integers(1, 7))
def test_every_sample_is_in_one_pass_within_the_budget(lengths: list[int], budget: int, workers: int) -> None:
    shares = share_out(lengths, budget, workers)
    passes = [members for share in shares for members in share]
    assert sorted(i for members in passes for i in members) == list(range(len(lengths)))
    assert all(0 < sum(lengths[i] for i in members) <= budget for members in passes)
    assert len(shares) == workers
    assert len({len(share) for share in shares}) == 1
    assert len(passes) < 2 * -(-sum(lengths) // budget) + workers


def test_workers_have_about_equal_loads() -> None:
    shares = share_out([5] * 12 + [1] * 12, None, workers=4)
    assert [sum(5 if i < 12 else 1 for i in members) for (members,) in shares] == [18, 18, 18, 18]
    with pytest.raises(UserError, match="raise batch"):
        share_out([5], None, workers=2)
    with pytest.raises(UserError, match="a sample of 9 tokens does not fit a pass of 8"):
        share_out([9], 8)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=80), st.integers(60, 200), st.integers(1, 6))
def test_as_many_samples_as_fit_into_some_passes(lengths: list[int], budget: int, passes: int) -> None:
    count = fitting(lengths, budget, passes)
    assert min(len(lengths), passes) <= count <= len(lengths)
    fit = share_out(lengths[:count], budget, 1)[0] if count else []
    assert len(fit) <= passes
    if count < len(lengths):
        assert sum(lengths[: count + 1]) > passes * (budget - 60), "a pass is not left with room for any sample"
