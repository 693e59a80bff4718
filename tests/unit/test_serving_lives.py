"""Random lives of many videos in a store, beside a plain dict that says what must come of them.

The same lives are led over SQLite with a local folder, over Postgres, and with files in memory and on S3.
"""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fsspec.core import url_to_fs
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from framegrove.serving.records import VideoRecord
from framegrove.serving.store import FileGone, KeyReused, QueueFull, VideoStore
from framegrove.types import GenerationRequest, GenerationResult
from tests.storage import postgres_server, s3_bucket

MOST_WAITING = 4
FINISHED = ("completed", "failed", "cancelled")
# Where there is such a folder, each of the thousands of transactions need not wait for a disk.
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


@dataclass
class Life:
    """What the model knows of a video. ``turn`` counts the videos that had finished before."""

    owner: str
    idempotency: tuple[str, str] | None
    clip: bytes | None
    status: str = "queued"
    files: dict[str, bytes] | None = None
    turn: int = 0

    @property
    def size(self) -> int:
        return sum(map(len, (self.files or {}).values())) + len(self.clip or b"")


class Killed(BaseException):
    """Stands for the end of the process."""


class Lives(RuleBasedStateMachine):
    """The rules are the calls of a service, in any order, and what befalls its process and its storage."""

    database = ""
    storage = ""  # a URL below which every life has a folder of its own
    runs = itertools.count()

    videos: Bundle[str] = Bundle("videos")

    @initialize()
    def open(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="framegrove-lives-", dir=MEMORY))
        self.place = f"{self.storage}/{next(self.runs)}" if self.storage else ""
        if self.database:
            with psycopg.connect(self.database, autocommit=True) as connection:
                connection.execute("DROP SCHEMA public CASCADE")
                connection.execute("CREATE SCHEMA public")
        self.store = VideoStore(self.folder, database=self.database, storage=self.place)
        self.filesystem, root = url_to_fs(self.place or str(self.folder / "videos"), use_listings_cache=False)
        self.root = root.rstrip("/")
        self.model: dict[str, Life] = {}
        self.loose: set[str] = set()  # ids under which a failed attempt may have left files
        self.numbers = itertools.count()
        self.turns = itertools.count()

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            shutil.rmtree(self.folder)

    @rule(
        target=videos,
        owner=st.sampled_from("ab"),
        idempotency=st.none() | st.tuples(*[st.sampled_from("xy")] * 2),
        clip=st.none() | st.binary(min_size=1, max_size=3),
        count=st.sampled_from([1, 1, 1, 2]),
        then=st.sampled_from(["wait", "begin", "begin", "complete"]),
    )
    def add(self, owner: str, idempotency: tuple[str, str] | None, clip: bytes | None, count: int, then: str) -> Any:
        records = self.new_records(owner, idempotency, clip, count)
        earlier = [
            each
            for each, life in self.model.items()
            if idempotency and life.owner == owner and life.idempotency and life.idempotency[0] == idempotency[0]
        ]
        if earlier and self.model[earlier[0]].idempotency != idempotency:
            with pytest.raises(KeyReused):
                self.store.add(*records, most=MOST_WAITING)
        elif earlier:
            assert self.store.add(*records, most=MOST_WAITING).id == earlier[0]
        elif len(self.having("queued")) + count > MOST_WAITING:  # more wait, where a restart has queued some again
            with pytest.raises(QueueFull):
                self.store.add(*records, most=MOST_WAITING)
        else:
            assert self.store.add(*records, most=MOST_WAITING).id == records[0].id
            for record in records:
                self.model[record.id] = Life(owner, record.idempotency, clip)
                if then != "wait":
                    self.begin(record.id)
                if then == "complete":
                    self.complete(record.id, b"mp4")
            return multiple(*(record.id for record in records))
        return multiple()

    def new_records(
        self, owner: str, idempotency: tuple[str, str] | None, clip: bytes | None, count: int
    ) -> list[VideoRecord]:
        request = GenerationRequest("a red 3", seed=1, units=4, height=64, width=64, clip=clip)
        ids = [f"video_{next(self.numbers)}" for _ in range(count)]
        made = [VideoRecord(each, request, "digits", "3", "queued", time.time(), owner=owner) for each in ids]
        return [replace(made[0], idempotency=idempotency), *made[1:]]

    @rule(dies=st.booleans(), count=st.sampled_from([1, 2]))
    def add_while_the_disk_is_full(self, dies: bool, count: int) -> None:
        """The clip is written, and the record is not: neither stays, at the latest when the next process begins."""

        def full() -> None:
            raise Killed if dies else OSError(28, "No space left on device")

        if len(self.having("queued")) + count <= MOST_WAITING:
            with self.after_writing(full), pytest.raises((OSError, Killed)):
                self.store.add(*self.new_records("a", None, b"clip", count), most=MOST_WAITING)
            if dies:
                self.restart()

    @rule(video_id=videos)
    def begin(self, video_id: str) -> None:
        life = self.model.get(video_id)
        if life and life.status == "queued":
            life.status = "in_progress"
        assert self.store.begin(video_id) == bool(life and life.status == "in_progress")

    @rule(video_id=videos, data=st.binary(max_size=3))
    def complete(self, video_id: str, data: bytes) -> None:
        life = self.model.get(video_id)
        done = self.store.complete(video_id, GenerationResult(data, {"nfe": 3}, {"tree.json": b"{}"}))
        if life and life.status == "in_progress":
            files = {"video.mp4": data, "tree.json": b"{}", "report.json": b'{\n  "nfe": 3\n}'}
            life.status, life.files, life.turn = "completed", files, next(self.turns)
            self.loose.discard(video_id)
        assert done == bool(life and life.status == "completed")

    @precondition(lambda self: self.having("in_progress"))
    @rule(number=st.integers(0, 9), doing=st.sampled_from(["cancel", "fail", "delete"]))
    def complete_while_it_ends_otherwise(self, number: int, doing: str) -> None:
        """The other call comes when the files are written, and the record does not yet say so."""
        video_id = self.one_of("in_progress", number)
        self.loose.discard(video_id)
        with self.after_writing(lambda: getattr(self, doing)(video_id)):
            assert not self.store.complete(video_id, GenerationResult(b"mp4", {}))

    @precondition(lambda self: self.having("in_progress"))
    @rule(number=st.integers(0, 9))
    def complete_while_others_expire(self, number: int) -> None:
        video_id = self.one_of("in_progress", number)
        with self.after_writing(lambda: self.expire(0, False)):
            self.complete(video_id, b"mp4")

    @precondition(lambda self: self.having("in_progress"))
    @rule(number=st.integers(0, 9))
    def complete_while_the_disk_is_full(self, number: int) -> None:
        video_id = self.one_of("in_progress", number)

        def full() -> None:
            raise OSError(28, "No space left on device")

        with self.after_writing(full), pytest.raises(OSError, match="No space"):
            self.store.complete(video_id, GenerationResult(b"mp4", {}))
        self.loose.add(video_id)

    @precondition(lambda self: self.having("in_progress"))
    @rule(number=st.integers(0, 9))
    def die_while_completing(self, number: int) -> None:
        video_id = self.one_of("in_progress", number)

        def die() -> None:
            raise Killed

        with self.after_writing(die), pytest.raises(Killed):
            self.store.complete(video_id, GenerationResult(b"mp4", {}))
        self.restart()

    @rule(video_id=videos)
    def fail(self, video_id: str) -> None:
        assert self.store.fail(video_id, "server_error", "it failed") == self.finish(video_id, "failed")

    @rule(video_id=videos)
    def cancel(self, video_id: str) -> None:
        assert self.store.cancel(video_id) == self.finish(video_id, "cancelled")

    @rule(video_id=videos)
    def delete(self, video_id: str) -> None:
        known = self.model.pop(video_id, None) is not None or video_id in self.loose
        self.loose.discard(video_id)
        assert self.store.delete(video_id) == known

    @precondition(lambda self: self.having("completed"))
    @rule(number=st.integers(0, 9))
    def lose_the_mp4(self, number: int) -> None:
        video_id = self.one_of("completed", number)
        self.remove_from_storage(video_id, "video.mp4")
        with pytest.raises(FileGone):
            self.store.open_file(video_id)
        self.model[video_id].status = "failed"

    @precondition(lambda self: self.having("in_progress") or self.loose)
    @rule()
    def restart(self) -> None:
        self.store.close()
        self.store = VideoStore(self.folder, database=self.database, storage=self.place)
        interrupted = self.having("in_progress")
        assert self.store.recover() == len(interrupted)
        for video_id in interrupted:
            self.model[video_id].status = "queued"
        self.loose.clear()

    @rule(most_bytes=st.integers(0, 100), aged=st.booleans())
    def expire(self, most_bytes: int, aged: bool) -> None:
        now = time.time() + (100 if aged else 0)
        finished = sorted(self.having(*FINISHED), key=lambda each: self.model[each].turn)
        stored = sum(self.model[each].size for each in finished)
        expected = list(finished) if aged else []
        for each in [] if aged else finished:
            if stored > most_bytes and self.model[each].size:
                stored -= self.model[each].size
                expected.append(each)
        assert self.store.expire(now, most_age=50, most_bytes=most_bytes) == expected
        for each in expected:
            del self.model[each]
        self.loose.clear()

    @invariant()
    def records_are_as_expected(self) -> None:
        if not hasattr(self, "store"):
            return
        records, more = self.store.page(limit=len(self.model) + 1, order="asc")
        assert not more
        assert {record.id: record.status for record in records} == {k: v.status for k, v in self.model.items()}
        assert [record.id for record in records] == list(self.model)
        assert [each.id for each in self.store.queued()] == self.having("queued")
        for owner in "ab":
            usage = self.store.usage(owner)
            mine = [life for life in self.model.values() if life.owner == owner]
            assert usage.waiting == sum(life.status == "queued" for life in mine)
            assert usage.stored == sum(life.size for life in mine)

    @invariant()
    def completed_videos_have_their_files_and_nothing_else_is_stored(self) -> None:
        if not hasattr(self, "store"):
            return
        for video_id in self.having("completed"):
            files = self.model[video_id].files or {}
            assert {name: b"".join(self.store.open_file(video_id, name).chunks) for name in files} == files
        stored = self.stored_ids()
        with_files = {each for each, life in self.model.items() if life.files is not None}
        with_clips = {each for each, life in self.model.items() if life.clip is not None}
        assert {each: self.store.clip(each) for each in with_clips} == {
            each: self.model[each].clip for each in with_clips
        }
        with_files |= {f"{each}.clip" for each in with_clips}
        assert with_files <= stored <= with_files | self.loose

    def having(self, *statuses: str) -> list[str]:
        return [each for each, life in self.model.items() if life.status in statuses]

    def one_of(self, status: str, number: int) -> str:
        ids = self.having(status)
        return ids[number % len(ids)]

    def finish(self, video_id: str, status: str) -> bool:
        life = self.model.get(video_id)
        if life is None or life.status not in ("queued", "in_progress"):
            return False
        life.status, life.turn = status, next(self.turns)
        return True

    @contextmanager
    def after_writing(self, call: Callable[[], None]) -> Iterator[None]:
        """Between the files of a video and its record, this call is made, once."""
        write = self.store._media.write

        def write_and_call(*given: Any) -> Any:
            written = write(*given)
            call()
            return written

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self.store._media, "write", write_and_call)
            yield

    def stored_ids(self) -> set[str]:
        names = {str(path)[len(self.root) :].strip("/") for path in self.filesystem.find(self.root)}
        return {name.partition("/")[0] for name in names} - {"storage.txt"}

    def remove_from_storage(self, video_id: str, name: str) -> None:
        self.filesystem.rm(f"{self.root}/{video_id}/{name}")


def lead(examples: int, steps: int, **places: str) -> None:
    machine = type("Placed", (Lives,), places)
    # A failure is shown as it was found: to look for a shorter one takes minutes here.
    phases = [Phase.generate]
    run_state_machine_as_test(
        machine, settings=settings(max_examples=examples, stateful_step_count=steps, phases=phases)
    )


def test_lives_over_sqlite() -> None:
    lead(12, 50)


def test_lives_over_postgres() -> None:
    with postgres_server() as server:
        lead(3, 50, database=server.url)


def test_lives_with_files_in_memory() -> None:
    lead(5, 50, storage="memory://lives")


def test_lives_with_files_on_s3() -> None:
    with s3_bucket():
        lead(1, 50, storage="s3://lab/lives")
