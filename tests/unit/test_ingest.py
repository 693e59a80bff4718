"""Clips in parquet shards: written, found, read in a fixed order, and refused in one line when damaged."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from framegrove.data.ingest import ClipPool, DataError, clips_of, open_shards, read_shard, stream
from framegrove.data.packing import pack
from framegrove.data.schema import LatentClip, from_table, to_table
from framegrove.errors import UserError

SIZE = (64, 64)


def make_clip(index: int, units: int = 4, size: tuple[int, int] = SIZE) -> LatentClip:
    rng = np.random.default_rng(index)
    latents = rng.standard_normal((16, units, size[0] // 8, size[1] // 8)).astype(np.float16)
    return LatentClip(index, f"clip {index}", *size, 8.0, latents)


def write_shards(folder: Path, *lengths: int, vae: str = "v") -> Path:
    folder.mkdir(exist_ok=True)
    indices = itertools.count()
    for number, length in enumerate(lengths):
        clips = [make_clip(next(indices)) for _ in range(length)]
        pq.write_table(to_table(clips, vae), folder / f"s{number}.parquet")
    return folder


def test_a_clip_comes_back_as_it_was() -> None:
    clip = make_clip(3, units=2)
    (back,) = from_table(to_table([clip], "v"))
    assert (back.id, back.caption, back.units, back.height, back.fps) == (3, "clip 3", 2, 64, 8.0)
    np.testing.assert_array_equal(back.latents, clip.latents)


def test_an_epoch_sees_every_clip_once_and_epochs_differ(tmp_path: Path) -> None:
    shards = open_shards(write_shards(tmp_path, 5, 3, 4), {SIZE})
    ids = [clip.id for clip in itertools.islice(stream(shards, {SIZE}, seed=1), 48)]
    epochs = [ids[i : i + 12] for i in range(0, 48, 12)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert ids == [clip.id for clip in itertools.islice(stream(shards, {SIZE}, seed=1), 48)]


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_workers_share_every_epoch_and_can_start_anywhere(tmp_path: Path, world: int) -> None:
    shards = open_shards(write_shards(tmp_path, 5, 3, 4), {SIZE})
    first_epoch: list[int] = []
    for rank in range(world):
        count = clips_of(shards, rank, world, seed=2)
        mine = [clip.id for clip in itertools.islice(stream(shards, {SIZE}, 2, rank, world), count + 7)]
        first_epoch += mine[:count]
        for start in (0, 1, 4, 7):
            read = stream(shards, {SIZE}, 2, rank, world, start)
            assert [clip.id for clip in itertools.islice(read, len(mine) - start)] == mine[start:]
    assert sorted(first_epoch) == list(range(12))


def test_a_pool_holds_the_same_clips_however_its_step_was_reached(tmp_path: Path) -> None:
    shards = open_shards(write_shards(tmp_path, 5, 3, 4), {SIZE})

    def pool(step: int) -> ClipPool:
        return ClipPool(lambda start: stream(shards, {SIZE}, 0, start=start), 12, size=6, refresh=2, step=step)

    walked = pool(0)
    for step in range(9):
        held = [clip.id for clip in walked.at(step)]
        assert held == [clip.id for clip in pool(step).at(step)]
        assert len(held) == 6


def test_a_pool_that_holds_everything_never_changes(tmp_path: Path) -> None:
    shards = open_shards(write_shards(tmp_path, 3), {SIZE})
    pool = ClipPool(lambda start: stream(shards, {SIZE}, 0, start=start), 3, size=10, refresh=2, step=40)
    assert sorted(clip.id for clip in pool.at(77)) == [0, 1, 2]
    assert pool.at(3) == pool.at(77)


def test_what_cannot_be_used_is_named_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no folder"):
        open_shards(tmp_path / "nowhere", {SIZE})
    folder = write_shards(tmp_path / "clips", 2, 2)
    with pytest.raises(DataError, match=r"no clips of 128x64.*only of 64x64"):
        open_shards(folder, {(128, 64)})
    whole = (folder / "s1.parquet").read_bytes()
    (folder / "s1.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"s1\.parquet cannot be read") as caught:
        open_shards(folder, {SIZE})
    assert "\n" not in str(caught.value)


def test_damage_inside_a_shard_is_named_when_it_is_read(tmp_path: Path) -> None:
    path = write_shards(tmp_path, 40) / "s0.parquet"
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle - 20000 : middle + 20000] = bytes(40000)
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match=r"s0\.parquet"):
        list(read_shard(path, {SIZE}))


def test_clips_of_two_vaes_are_not_mixed(tmp_path: Path) -> None:
    write_shards(tmp_path, 2)
    pq.write_table(to_table([make_clip(9)], "another"), tmp_path / "s9.parquet")
    with pytest.raises(DataError, match="different VAEs"):
        open_shards(tmp_path, {SIZE})


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=40), st.integers(60, 200))
def test_packs_hold_every_sample_once_within_the_budget(lengths: list[int], budget: int) -> None:
    packs = pack(lengths, budget)
    assert sorted(i for members in packs for i in members) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in members) <= budget for members in packs)
    assert len(packs) <= 2 * -(-sum(lengths) // budget)


def test_packs_are_as_many_as_asked_for_and_about_equal() -> None:
    packs = pack([5] * 12 + [1] * 12, None, at_least=4)
    loads = [sum(5 if i < 12 else 1 for i in members) for members in packs]
    assert loads == [18, 18, 18, 18]
    with pytest.raises(UserError, match="raise batch"):
        pack([5], None, at_least=2)
    with pytest.raises(UserError, match="a sample of 9 tokens does not fit a pass of 8"):
        pack([9], 8)
