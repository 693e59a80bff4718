"""Writing encoded clips: whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from framegrove.data.schema import LatentClip
from framegrove.digits.clips import digits_clips
from framegrove.errors import UserError
from framegrove.models.vae_files import load_vae
from framegrove.training.encode import NoClips, write_clips
from tests.tiny_training import make_world


class Stopped(Exception):
    """Stands for whatever ends a run in the middle."""


def blank_clips(count: int) -> Iterator[LatentClip]:
    for number in range(count):
        yield LatentClip(number, str(number), 64, 64, 8.0, np.zeros((16, 1, 8, 8), np.float16))


def test_clips_of_frames_are_encoded(tmp_path: Path) -> None:
    vae, _ = load_vae(make_world(tmp_path / "world") / "vae")
    clips = list(digits_clips(vae, 19, units=2, pairs=0.4))
    assert len({clip.id for clip in clips}) == len({clip.source for clip in clips}) == 19
    again = digits_clips(vae, 3, units=2, pairs=0.4)
    assert [clip.id for clip in again] == [clip.id for clip in clips[:3]]
    assert {(clip.latents.shape, clip.height, clip.width, clip.fps) for clip in clips} == {((16, 2, 8, 8), 64, 64, 8.0)}
    assert sum(" and a " in clip.caption for clip in clips) == 8
    assert {clip.split for clip in clips} == {"train"}


def test_a_share_of_the_digits_is_held_out(tmp_path: Path) -> None:
    vae, _ = load_vae(make_world(tmp_path / "world") / "vae")
    whole = list(digits_clips(vae, 5, units=1))
    clips = list(digits_clips(vae, 5, units=1, heldout=0.4))
    assert [clip.split for clip in clips] == ["train", "train", "train", "heldout", "heldout"]
    assert [clip.id for clip in clips[:3]] == [clip.id for clip in whole[:3]]
    for held, trained in zip(clips[3:], whole[3:], strict=True):
        assert held.id != trained.id
        assert not np.array_equal(held.latents, trained.latents)


def test_progress_is_told(tmp_path: Path) -> None:
    seen: list[int] = []
    paths = write_clips(blank_clips(30), "a VAE", tmp_path / "new" / "clips", seen.append)
    assert paths == [tmp_path / "new" / "clips" / "clips-00000.parquet"]
    assert list((tmp_path / "new" / "clips").iterdir()) == paths
    assert pq.read_table(paths[0]).column("id").to_pylist() == list(range(30))
    assert seen == list(range(1, 31))


def test_a_folder_is_whole_or_not_there(tmp_path: Path) -> None:
    write_clips(blank_clips(3), "a VAE", tmp_path / "clips")
    with pytest.raises(UserError, match="already exists: give another --out, or remove it"):
        write_clips(blank_clips(3), "a VAE", tmp_path / "clips")

    def break_off(done: int) -> None:
        if done == 6:
            raise Stopped

    with pytest.raises(Stopped):
        write_clips(blank_clips(7), "a VAE", tmp_path / "torn", break_off)
    with pytest.raises(NoClips, match="not one clip"):
        write_clips([], "a VAE", tmp_path / "none")
    assert list(tmp_path.iterdir()) == [tmp_path / "clips"]
