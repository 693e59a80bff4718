"""The record of videos: what survives, and what a broken folder says."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import sqlite3
import stat
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from framegrove.config.request import check_prompt, frames_of, parse_size, units_for
from framegrove.errors import UserError
from framegrove.serving.backup import back_up
from framegrove.serving.expiry import Finished, choose_expired
from framegrove.serving.filing import Filing
from framegrove.serving.media import MediaStore
from framegrove.serving.records import StoredFile, VideoRecord
from framegrove.serving.store import STORE_ERRORS, FileGone, KeyReused, QueueFull, VideoStore
from framegrove.types import GenerationRequest, GenerationResult
from tests.storage import Postgres, postgres_server, s3_bucket


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


def broken(*_: object) -> None:
    raise OSError(28, "No space left on device")


def finished(store: VideoStore, number: int, **fields: Any) -> None:
    """A completed video of three bytes, with a picture of four."""
    store.add(dataclasses.replace(record(number), **fields), most=100)
    store.begin(f"video_{number}")
    assert store.complete(f"video_{number}", GenerationResult(b"mp4", {"nfe": 3}, {"tree.png": b"tree"}))


def read(store: VideoStore, name: str, *part: int) -> bytes:
    return b"".join(store.open_file("video_0", name, *part).chunks)


def test_records_survive_and_come_out_in_order(tmp_path: Path) -> None:
    store = VideoStore(tmp_path)
    added = [record(number, image=b"\x00png" if number == 1 else None) for number in range(3)]
    for each in added:
        store.add(each, most=3)
    assert [each.id for each in store.queued()] == ["video_0", "video_1", "video_2"]
    store.begin("video_0")
    store.complete("video_0", GenerationResult(b"mp4", {"nfe": 3}))
    store.begin("video_1")
    store.close()

    again = VideoStore(tmp_path)
    assert again.recover() == 1
    assert len(again.queued()) == 2
    done = again.get("video_0")
    assert done is not None
    assert (done.status, done.report) == ("completed", {"nfe": 3})
    assert b"".join(again.open_file("video_0").chunks) == b"mp4"
    resumed = again.get(again.queued()[0].id)
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


def test_what_a_killed_process_left_half_written_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(tmp_path) as store:
        store.add(record(0), most=1)
        store.begin("video_0")
        with monkeypatch.context() as patched:
            patched.setattr(shutil, "rmtree", lambda path: None)  # the process is gone, and tidies nothing up
            patched.setattr(os, "replace", broken)
            with pytest.raises(OSError, match="No space"):
                store.complete("video_0", GenerationResult(b"mp4", {}))
        assert (tmp_path / "videos" / ".video_0.partial" / "video.mp4").exists()
    (tmp_path / "videos" / ".video_1.mp4.partial").write_bytes(b"mp")  # as earlier versions wrote
    with opened(tmp_path):
        assert [path.name for path in (tmp_path / "videos").iterdir()] == ["storage.txt"]


def test_what_a_failed_attempt_left_is_removed_with_expired_videos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tmp_path) as store:
        store.add(record(0), most=1)
        store.begin("video_0")
        with monkeypatch.context() as patched:
            patched.setattr(Filing, "_settle", broken)
            with pytest.raises(OSError, match="No space"):
                store.complete("video_0", GenerationResult(b"mp4", {}))
        store.cancel("video_0")
        assert list(held(tmp_path)) == ["video_0"]
        assert store.expire(time.time()) == []
        assert held(tmp_path) == {}


def test_a_removal_that_failed_is_finished_by_the_next_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(tmp_path) as store:
        finished(store, 0)
        with monkeypatch.context() as patched:
            patched.setattr(MediaStore, "remove", broken)
            with pytest.raises(OSError, match="No space"):
                store.delete("video_0")
        assert store.get("video_0") is None
        assert list(held(tmp_path)) == ["video_0"]
        assert store.delete("video_0")
        assert held(tmp_path) == {}
        assert not store.delete("video_0")


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
    assert added.count(True) == len(store.queued()) == 5
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


def test_a_record_comes_back_as_it_was_given(tmp_path: Path) -> None:
    given = dataclasses.replace(
        record(0, image=b"\x00png"),
        owner="lab",
        user="ann",
        metadata={"shot": "\u00e9 12"},
        remixed_from="video_8",
        extends="video_9",
        expires_at=5e9,
        price=2.5,
        idempotency=("key", "digest"),
    )
    with opened(tmp_path) as store:
        assert store.add(given, most=1) == given
        assert store.get("video_0") == given
        assert store.get("video_0", owner="lab") == given
        assert store.get("video_0", owner="other") is None
        (waiting,) = store.queued()
        assert (waiting.id, waiting.owner, waiting.price, waiting.created_at) == (
            "video_0",
            "lab",
            2.5,
            given.created_at,
        )
        (listed,), _ = store.page()
        assert listed == dataclasses.replace(given, request=dataclasses.replace(given.request, image=None))
        store.begin("video_0")
        begun = store.get("video_0")
        assert begun is not None
        assert begun.started_at is not None
        with pytest.raises(KeyReused):
            store.add(dataclasses.replace(given, id="video_1", idempotency=("key", "other")), most=1)


def test_pages_go_both_ways_and_keep_to_an_owner(tmp_path: Path) -> None:
    def ids(**options: Any) -> tuple[list[str], bool]:
        records, more = store.page(**options)
        return [each.id for each in records], more

    with opened(tmp_path) as store:
        for number in range(5):
            store.add(dataclasses.replace(record(number), owner="ab"[number % 2]), most=9)
        store.cancel("video_4")
        assert ids(limit=2) == (["video_4", "video_3"], True)
        assert ids(limit=2, after="video_3") == (["video_2", "video_1"], True)
        assert ids(limit=2, after="video_1") == (["video_0"], False)
        assert ids(order="asc", after="video_2") == (["video_3", "video_4"], False)
        assert ids(owner="b") == (["video_3", "video_1"], False)
        assert ids(status="cancelled") == (["video_4"], False)
        for owner, after in ((None, "video_9"), ("b", "video_2")):
            with pytest.raises(KeyError):
                store.page(owner=owner, after=after)


@pytest.mark.parametrize("storage", ["", "memory://ranges", "s3://lab/ranges", "~/ranges", "file://{folder}/ranges"])
def test_files_are_read_in_parts(tmp_path: Path, storage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    storage = storage.format(folder=tmp_path)
    with s3_bucket() if storage.startswith("s3") else nullcontext(), opened(tmp_path, storage=storage) as store:
        finished(store, 0)
        done = store.get("video_0")
        assert done is not None
        assert {file.name for file in done.files} == {"video.mp4", "tree.png", "report.json"}
        assert StoredFile("tree.png", 4, hashlib.sha256(b"tree").hexdigest()) in done.files
        assert (read(store, "tree.png"), read(store, "tree.png", 1, 3)) == (b"tree", b"re")
        assert (read(store, "tree.png", 3), read(store, "tree.png", 0, 1), read(store, "tree.png", 2, 99)) == (
            b"e",
            b"t",
            b"ee",
        )
        assert json.loads(read(store, "report.json")) == {"nfe": 3}
        with pytest.raises(KeyError):
            store.open_file("video_0", "other.txt")
        assert store.delete("video_0")
        with pytest.raises(KeyError):
            store.open_file("video_0")


def test_local_files_are_for_one_user_alone(tmp_path: Path) -> None:
    with opened(tmp_path / "serve") as store:
        finished(store, 0)
        folder = tmp_path / "serve"
        for path in (folder, folder / "videos", folder / "videos" / "video_0"):
            assert stat.S_IMODE(path.stat().st_mode) == 0o700
        for path in (*folder.glob("videos.sqlite*"), *(folder / "videos" / "video_0").iterdir()):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_damaged_row_stops_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    damages = ("'{\"prompt\": '", "'[]'", "CAST(x'7b22ff' AS TEXT)", "x'ff'", '\'{"prompt": "a red 3"}\'')
    with opened(tmp_path) as store:
        for number in range(len(damages) + 1):
            store.add(record(number), most=9)
    with sqlite3.connect(tmp_path / "videos.sqlite") as database:
        for number, damage in enumerate(damages):
            database.execute(f"UPDATE videos SET request = {damage} WHERE id = 'video_{number}'")
    database.close()
    with opened(tmp_path) as store:
        assert [each.id for each in store.queued()] == [f"video_{len(damages)}"]
        records, _ = store.page(order="asc")
        assert [each.error_code for each in records] == ["damaged"] * len(damages) + [None]
        assert (records[0].status, records[0].request.prompt) == ("failed", "")
        assert records[0].error == "the record of this video is damaged and cannot be read: ask for the video again"
        assert not store.begin("video_0")
        assert store.delete("video_0")
    assert "the record of video_0 is damaged (its request cannot be read)" in caplog.text
    assert "a red 3" not in caplog.text


def test_a_video_whose_file_is_gone_fails_and_a_lost_picture_does_not(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        finished(store, 0)
        (tmp_path / "videos" / "video_0" / "tree.png").unlink()
        with pytest.raises(FileGone, match=r"tree\.png of video_0 is gone"):
            store.open_file("video_0", "tree.png")
        assert read(store, "video.mp4") == b"mp4"
        (tmp_path / "videos" / "video_0" / "video.mp4").write_bytes(b"m")  # cut short
        with pytest.raises(FileGone, match=r"video\.mp4 of video_0 is gone"):
            store.open_file("video_0")
        lost = store.get("video_0")
        assert lost is not None
        assert (lost.status, lost.error_code) == ("failed", "file_missing")


def test_storage_that_is_away_condemns_no_video(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        finished(store, 0)
        (tmp_path / "videos").rename(tmp_path / "unmounted")
        with pytest.raises(OSError, match="is not there"):
            store.open_file("video_0")
        (tmp_path / "unmounted").rename(tmp_path / "videos")
        assert read(store, "video.mp4") == b"mp4"


OLD_TABLE = """CREATE TABLE videos (
    number INTEGER NOT NULL, id VARCHAR NOT NULL, request VARCHAR NOT NULL, image BLOB, model VARCHAR NOT NULL,
    seconds VARCHAR NOT NULL, status VARCHAR NOT NULL, created_at FLOAT NOT NULL, completed_at FLOAT,
    error_code VARCHAR, error VARCHAR, report VARCHAR, PRIMARY KEY (number), UNIQUE (id)
)"""


@pytest.mark.parametrize("storage", ["", "memory://adopted"])
def test_a_folder_of_an_earlier_version_opens(tmp_path: Path, storage: str) -> None:
    request = dataclasses.asdict(record(0).request)
    del request["image"]
    with sqlite3.connect(tmp_path / "videos.sqlite") as database:
        database.execute(OLD_TABLE)
        database.execute("CREATE INDEX ix_videos_status ON videos (status)")
        for number, status in enumerate(("completed", "in_progress", "completed")):
            database.execute(
                "INSERT INTO videos VALUES (?, ?, ?, NULL, 'digits', '3', ?, 1.5, 2.5, NULL, NULL, '{}')",
                (number, f"video_{number}", json.dumps(request), status),
            )
    database.close()
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "video_0.mp4").write_bytes(b"mp4")
    (tmp_path / "videos" / "video_1.mp4").write_bytes(b"was about to be completed")
    for _ in range(2):
        with opened(tmp_path, storage=storage) as store:
            assert read(store, "video.mp4") == b"mp4"
            old, begun, lost = store.page(order="asc")[0]
            assert (old.request, old.owner, old.metadata) == (record(0).request, "", {})
            assert begun.status == "queued"
            assert (lost.status, lost.error_code) == ("failed", "file_missing")
            assert store.usage().stored == 3
    assert not list((tmp_path / "videos").glob("*.mp4"))
    assert stat.S_IMODE((tmp_path / "videos.sqlite").stat().st_mode) == 0o600


def test_a_folder_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    VideoStore(tmp_path).close()
    with sqlite3.connect(tmp_path / "videos.sqlite") as database:
        database.execute("UPDATE alembic_version SET version_num = '99'")
    database.close()
    with pytest.raises(UserError, match=r"written by a newer version of Framegrove .*99, this version knows 3"):
        VideoStore(tmp_path)


def test_a_copy_of_a_store_in_use_opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(tmp_path / "serve") as store:
        for number in range(3):
            finished(store, number)
        store.add(record(3), most=9)
        store.begin("video_3")
        read_whole = MediaStore.read

        def delete_meanwhile(self: MediaStore, video_id: str, *given: Any) -> Iterator[bytes]:
            if store.get("video_1") is not None:
                store.delete("video_1")
                store.add(record(4), most=9)  # after the copy of the records
            return read_whole(self, video_id, *given)

        with monkeypatch.context() as patched:
            patched.setattr(MediaStore, "read", delete_meanwhile)
            back_up(tmp_path / "serve", tmp_path / "deep" / "copy")
        with pytest.raises(UserError, match="is there already: choose a new folder"):
            back_up(tmp_path / "serve", tmp_path / "deep" / "copy")
    with opened(tmp_path / "deep" / "copy") as copy:
        records, _ = copy.page(order="asc")
        assert [(each.id, each.status) for each in records] == [
            ("video_0", "completed"),
            ("video_2", "completed"),
            ("video_3", "queued"),
        ]
        assert read(copy, "tree.png") == b"tree"
    assert sorted(held(tmp_path / "deep" / "copy")) == ["video_0", "video_2"]


def test_which_videos_expire() -> None:
    finished = [Finished("a", 5, 10), Finished("b", 0, 20), Finished("c", 5, 30, expires_at=50), Finished("d", 5, 40)]
    assert choose_expired(finished, now=50) == ["c"]
    assert choose_expired(finished, now=49, most_age=30) == ["a"]
    assert choose_expired(finished, now=49, most_bytes=10) == ["a"]
    assert choose_expired(finished, now=49, most_bytes=9) == ["a", "c"]
    assert choose_expired(finished, now=50, most_bytes=10) == ["c"]
    assert choose_expired(finished, now=49, most_bytes=0) == ["a", "c", "d"]


@pytest.mark.parametrize(
    ("places", "sentence"),
    [
        ({"database": "mysql://root:secret@host/x"}, r"not of the form postgresql://USER@HOST/NAME"),
        ({"database": "postgresql://u:secret@127.0.0.1:1/x"}, r"127\.0\.0\.1:1/x cannot be used .*refused"),
        ({"storage": "foo://x"}, r"videos cannot be kept in foo://x \(.*foo"),
        ({"storage": "/proc/nowhere"}, r"videos cannot be kept in /proc/nowhere"),
    ],
)
def test_places_that_cannot_be_used_are_told(tmp_path: Path, places: dict[str, str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        VideoStore(tmp_path, **places)
    assert "secret" not in str(caught.value)
    VideoStore(tmp_path).close()  # the folder is free again


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with postgres_server() as server:
        yield server


def test_one_process_a_postgres_database(postgres: Postgres, tmp_path: Path) -> None:
    with opened(tmp_path / "a", database=postgres.url) as store:
        finished(store, 0)
        with pytest.raises(UserError, match="another endpoint uses postgresql://postgres@127"):
            VideoStore(tmp_path / "b", database=postgres.url)
        with pytest.raises(UserError, match="records in Postgres are backed up with pg_dump"):
            back_up(tmp_path / "a", tmp_path / "copy")
        assert not (tmp_path / "copy").exists()


def test_a_postgres_server_may_restart(postgres: Postgres, tmp_path: Path) -> None:
    with opened(tmp_path, database=postgres.url) as store:
        store.add(record(5), most=9)
        postgres.stop()
        with pytest.raises(STORE_ERRORS):
            store.begin("video_5")
        with pytest.raises(STORE_ERRORS):
            store.queued()
        postgres.start()
        assert store.begin("video_5")
        # The lock went with the connection, and has been taken again.
        with pytest.raises(UserError, match="another endpoint uses"):
            VideoStore(tmp_path / "other", database=postgres.url)


def test_a_process_that_lost_its_lock_to_another_writes_nothing(postgres: Postgres, tmp_path: Path) -> None:
    store = VideoStore(tmp_path / "a", database=postgres.url)
    store.add(record(6), most=9)
    postgres.stop()
    postgres.start()
    with opened(tmp_path / "b", database=postgres.url), pytest.raises(STORE_ERRORS):
        store.cancel("video_6")
    assert store.cancel("video_6")
    store.close()
