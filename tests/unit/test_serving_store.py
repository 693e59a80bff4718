"""The record of videos: what survives, and what a broken folder says."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from framegrove.config.request import check_prompt, frames_of, parse_size, units_for
from framegrove.errors import UserError
from framegrove.serving.records import VideoRecord
from framegrove.serving.store import STORE_ERRORS, QueueFull, VideoStore
from framegrove.types import GenerationRequest, GenerationResult


def record(number: int, image: bytes | None = None) -> VideoRecord:
    request = GenerationRequest("a red 3", seed=2**62 + number, units=4, height=64, width=64, image=image)
    return VideoRecord(f"video_{number}", request, "digits", "3", "queued", created_at=time.time())


@contextmanager
def opened(folder: Path, **places: str) -> Iterator[VideoStore]:
    """A store as an endpoint has it: what the last process left is in order."""
    store = VideoStore(folder, **places)
    try:
        store.recover()
        yield store
    finally:
        store.close()


def held(folder: Path) -> dict[str, dict[str, bytes]]:
    """What stands in the local folder of files: by video, then by name."""
    folders = [path for path in (folder / "videos").iterdir() if path.is_dir()]
    return {each.name: {path.name: path.read_bytes() for path in each.iterdir()} for each in folders}


def test_records_survive_and_come_out_in_order(tmp_path: Path) -> None:
    store = VideoStore(tmp_path)
    added = [record(number, image=b"\x00png" if number == 1 else None) for number in range(3)]
    for each in added:
        store.add(each, most=3)
    first = store.first()
    assert first is not None
    assert first.id == "video_0"
    store.begin("video_0")
    store.complete("video_0", GenerationResult(b"mp4", {"nfe": 3}))
    store.begin("video_1")
    store.close()

    again = VideoStore(tmp_path)
    assert again.recover() == 1
    assert again.waiting() == 2
    done = again.get("video_0")
    assert done is not None
    assert (done.status, done.report) == ("completed", {"nfe": 3})
    assert again.path_of("video_0").read_bytes() == b"mp4"
    resumed = again.first()
    assert resumed is not None
    assert resumed.request == added[1].request
    again.close()


def test_a_half_written_video_never_has_its_final_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = VideoStore(tmp_path)
    store.add(record(0), most=1)
    store.begin("video_0")

    def full(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[:1])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match="No space"):
            store.complete("video_0", GenerationResult(b"mp4", {}))
    assert held(tmp_path) == {}
    assert store.complete("video_0", GenerationResult(b"mp4", {}))
    assert list(held(tmp_path)) == ["video_0"]
    store.close()


def test_what_a_killed_process_left_half_written_is_removed(tmp_path: Path) -> None:
    with opened(tmp_path):
        pass
    (tmp_path / "videos" / ".video_0.mp4.partial").write_bytes(b"mp")  # as earlier versions wrote
    (tmp_path / "videos" / ".video_1.partial").mkdir()
    (tmp_path / "videos" / ".video_1.partial" / "video.mp4").write_bytes(b"mp")
    with opened(tmp_path):
        assert [path.name for path in (tmp_path / "videos").iterdir()] == ["storage.txt"]


def test_a_full_queue_keeps_nothing_even_if_many_come_at_once(tmp_path: Path) -> None:
    store = VideoStore(tmp_path)

    def add(number: int) -> bool:
        try:
            store.add(record(number), most=5)
        except QueueFull:
            return False
        return True

    with ThreadPoolExecutor(12) as threads:
        added = list(threads.map(add, range(60)))
    assert added.count(True) == store.waiting() == 5
    assert [store.get(f"video_{number}") is not None for number in range(60)] == added
    store.close()


def test_errors_do_not_quote_prompts(tmp_path: Path) -> None:
    store = VideoStore(tmp_path)
    with sqlite3.connect(tmp_path / "videos.sqlite") as database:
        database.execute("DROP TABLE videos")
    with pytest.raises(STORE_ERRORS) as caught:
        store.add(record(0), most=1)
    assert "no such table" in str(caught.value)
    assert "a red 3" not in str(caught.value)
    database.close()
    store.close()


def test_one_process_a_folder(tmp_path: Path) -> None:
    store = VideoStore(tmp_path)
    with pytest.raises(UserError, match="another endpoint uses"):
        VideoStore(tmp_path)
    store.close()
    VideoStore(tmp_path).close()


def test_a_folder_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match="choose another --folder"):
        VideoStore(tmp_path / "file")
    (tmp_path / "videos.sqlite").write_text("not a database, and long enough to be looked at" * 100)
    with pytest.raises(UserError, match="is damaged"):
        VideoStore(tmp_path)


@pytest.mark.parametrize(("seconds", "units"), [(0.01, 1), (0.125, 1), (0.2, 2), (1, 2), (2, 3), (3, 4), (3.125, 4)])
def test_units_last_at_least_as_long_as_asked(seconds: float, units: int) -> None:
    assert units_for(seconds, fps=8, most=4) == units
    assert frames_of(units) / 8 >= seconds


def test_request_checks_say_what_is_wrong() -> None:
    assert parse_size("128x64") == (64, 128)
    assert check_prompt(" a red 3\n") == "a red 3"
    for wrong in ("64", "0x64", "64x", "-1x2", "64x64x64", "6" * 50):
        with pytest.raises(UserError, match="WIDTHxHEIGHT"):
            parse_size(wrong)
    with pytest.raises(UserError, match=r"at most 3\.125"):
        units_for(4, fps=8, most=4)
