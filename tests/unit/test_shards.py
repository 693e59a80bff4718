"""Shards by bytes: how large they become, and what is left of them when their writer is killed."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from framegrove.data.schema import LatentClip, from_table
from framegrove.data.shards import ShardWriter, open_ids, stored_ids

KIB = 2**10


def noise_clip(number: int, units: int = 4, side: int = 8) -> LatentClip:
    latents = np.random.default_rng(number).standard_normal((16, units, side, side)).astype(np.float16)
    return LatentClip(number, f"clip {number}", 8 * side, 8 * side, 8.0, latents)  # 8 KiB


def test_shards_and_row_groups_are_cut_by_bytes(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, tmp_path, "v", shard_bytes=100 * KIB, group_bytes=25 * KIB) as writer:
        for number in range(30):
            writer.add(noise_clip(number))
    assert [path.name for path in writer.paths] == [f"clips-0000{number}.parquet" for number in range(3)]
    files = [pq.ParquetFile(path) for path in writer.paths]
    assert [file.metadata.num_rows for file in files] == [13, 13, 4]
    assert [files[0].metadata.row_group(group).num_rows for group in range(4)] == [4, 4, 4, 1]
    read = [clip for path in writer.paths for clip in from_table(pq.read_table(path))]
    assert [clip.id for clip in read] == list(range(30))
    np.testing.assert_array_equal(read[17].latents, noise_clip(17).latents)
    assert stored_ids(tmp_path) == set(range(30))


def test_no_shard_is_written_over_where_a_damaged_one_was_removed(tmp_path: Path) -> None:
    for number in range(3):
        with ShardWriter(tmp_path, tmp_path, "v") as writer:
            writer.add(noise_clip(number))
    (tmp_path / "clips-00000.parquet").unlink()
    with ShardWriter(tmp_path, tmp_path, "v") as writer:
        writer.add(noise_clip(0))
    assert stored_ids(tmp_path) == {0, 1, 2}


@pytest.mark.parametrize("torn", [0, 1, 100, 5000])
def test_a_writer_that_was_killed_is_gone_on_with(torn: int, tmp_path: Path) -> None:
    killed = ShardWriter(tmp_path, tmp_path, "v")
    for number in range(5):
        killed.add(noise_clip(number))
    path = tmp_path / "open.arrows"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) - torn])
    left = open_ids(tmp_path)
    assert left == set(range(5 if not torn else 4))
    with ShardWriter(tmp_path, tmp_path, "v", keep=left - {2}) as writer:
        writer.add(noise_clip(7))
    (shard,) = writer.paths
    assert pq.read_table(shard).column("id").to_pylist() == [*sorted(left - {2}), 7]
    assert [each.name for each in tmp_path.iterdir()] == [shard.name]


def test_a_writer_that_was_killed_while_it_took_over_loses_nothing(tmp_path: Path) -> None:
    killed = ShardWriter(tmp_path, tmp_path, "v")
    for number in range(3):
        killed.add(noise_clip(number))
    (tmp_path / "open.arrows").rename(tmp_path / "left-open.arrows")
    (tmp_path / "open.arrows").write_bytes(b"half")
    assert open_ids(tmp_path) == {0, 1, 2}
    with ShardWriter(tmp_path, tmp_path, "v", keep=open_ids(tmp_path)) as writer:
        pass
    assert stored_ids(tmp_path) == {0, 1, 2}
    assert len(writer.paths) == 1


def test_clips_of_another_vae_are_not_taken_over(tmp_path: Path) -> None:
    ShardWriter(tmp_path, tmp_path, "one").add(noise_clip(1))
    with ShardWriter(tmp_path, tmp_path, "another", keep={1}) as writer:
        writer.add(noise_clip(2))
    assert stored_ids(tmp_path) == {2}


def test_memory_does_not_grow_with_the_number_of_clips(tmp_path: Path) -> None:
    """160 clips of 2 MiB each: no more is held than a row group and what Arrow allocates for one shard."""

    def peak() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB

    limits = {"shard_bytes": 32 * KIB * KIB, "group_bytes": 8 * KIB * KIB}
    clip = noise_clip(0, units=16, side=64)
    with ShardWriter(tmp_path, tmp_path, "v", **limits) as writer:
        for _ in range(20):
            writer.add(clip)
        before = peak()
        for _ in range(140):
            writer.add(clip)
    assert len(writer.paths) == 10
    assert peak() - before < 64 * KIB
