"""The durable record of videos: rows in a database, and the files of each video in a storage of files."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import Select, func, select, update
from sqlalchemy.exc import OperationalError, TimeoutError
from sqlalchemy.orm import Session

from framegrove.errors import UserError
from framegrove.files import locked
from framegrove.serving.api import Status
from framegrove.serving.backup import FILES, RECORDS
from framegrove.serving.database import changed, open_postgres, open_sqlite
from framegrove.serving.expiry import Finished, choose_expired
from framegrove.serving.filing import VIDEO, Filing, clip_place
from framegrove.serving.media import MediaStore
from framegrove.serving.records import (
    DAMAGED,
    FILE_MISSING,
    FINISHED,
    Damaged,
    QueuedVideo,
    Row,
    Usage,
    VideoRecord,
    find,
    record_of,
    row_of,
    what_is_left,
)
from framegrove.types import GenerationResult

log = logging.getLogger(__name__)

_PROBE, _PROBED = "probe", 2**16  # a file, and its bytes
# What any method of a store may raise when the disk is full, slow or out of reach, and what may pass. A damaged file is
# none of these, nor is a broken constraint: both stay as they are however often they are tried again.
STORE_ERRORS = (OSError, OperationalError, TimeoutError)

_UNFINISHED: tuple[Status, ...] = ("queued", "in_progress")


class QueueFull(Exception):
    """As many videos are waiting as the queue takes."""


class KeyReused(Exception):
    """The owner has given the same idempotency key with another request."""


class FileGone(Exception):
    """A file of a completed video is no longer in the storage; the message is one sentence."""


@dataclass(frozen=True)
class OpenedFile:
    """A part of a file: ``chunks`` are its bytes, ``size`` and ``etag`` are of the whole file."""

    size: int
    etag: str
    chunks: Iterator[bytes]


class VideoStore:
    """Videos by id, which outlive the process. Every method commits before it returns; any thread may call it.

    A video is queued, then in progress, then completed, failed or cancelled. Once it is finished, in one of these three
    ways, nothing changes it any more; the one exception is that a video which can no longer be read, or whose mp4 is
    no longer there, becomes a failed one, so that it stands in nobody's way.

    Records are in a SQLite file in ``folder``, or in Postgres where ``database`` is a URL. Files are in a folder
    inside ``folder``, or where ``storage`` says: another folder, or any URL that fsspec can write to. The folder and
    the database belong to one process at a time. Raises UserError when a place cannot be used, InUse when another
    process uses it, STORE_ERRORS (from any method) when the disk fails.
    """

    def __init__(self, folder: Path, *, database: str = "", storage: str = "") -> None:
        self._folder = folder
        try:
            if not folder.exists():
                folder.mkdir(mode=0o700, parents=True)
            self._lock = locked(folder / "lock", f"another endpoint uses {folder}: stop it, or choose another --folder")
        except OSError as error:
            raise UserError(f"videos cannot be kept in {folder} ({error.strerror}): choose another --folder") from None
        try:
            self._media = MediaStore(storage or folder / FILES)
            self._database = open_postgres(database) if database else open_sqlite(folder / RECORDS)
        except UserError:
            self._lock.close()
            raise
        self._filing = Filing(self._database, self._media)

    def close(self) -> None:
        """Release the folder and the database for other processes."""
        self._database.close()
        self._lock.close()

    def recover(self) -> int:
        """Put in order what the last process left, before anything else is called.

        What was in progress is queued again: returns how many videos that were. Files that belong to no video are
        removed, and queued videos that cannot be read are failed.
        """
        for lost in self._filing.adopt(self._folder / FILES):
            self._lose(lost)
        with self._database.writes() as session:
            stranded = session.scalars(select(Row).where(Row.status == "in_progress")).all()
            for row in stranded:
                row.status, row.started_at = "queued", None
        for video_id in self._ids(Row.status == "queued"):
            self.get(video_id)
        self._filing.sweep()
        return len(stranded)

    # From a request to its video

    def add(self, record: VideoRecord, *others: VideoRecord, most: int) -> VideoRecord:
        """Keep the new record of a request, or all of the records of a request for several videos; return the first.

        The clips of their requests are kept with them. Where the owner has given the first one's idempotency key
        before, nothing is kept: the same request gets the first record of that time, another one raises KeyReused.
        Raises QueueFull if more than ``most`` videos would be waiting; then none is kept either.
        """
        records = (record, *others)
        with self._database.reads() as session:  # before large clips are written in vain
            earlier = _earlier_or_room(session, records, most)
        if earlier is None:
            with self._filing.with_clips(records) as kept, self._database.writes() as session:
                earlier = _earlier_or_room(session, kept, most)
                if earlier is None:
                    for each in kept:
                        session.add(row_of(each))
                        session.flush()  # one by one, so that they are numbered in this order
                    self._filing.settle_clips(session, kept)
                    return kept[0]
        return self.get(earlier) or self.add(*records, most=most)  # it may have been deleted at this moment

    def earlier(self, record: VideoRecord) -> VideoRecord | None:
        """The record that ``add`` would return in place of this one, if there is such. Raises KeyReused."""
        with self._database.reads() as session:
            earlier = _earlier(session, record)
        return self.get(earlier) if earlier is not None else None

    def begin(self, video_id: str) -> bool:
        """Mark a queued video as in progress. Returns whether it now is: it may have been cancelled or deleted."""
        with self._database.writes() as session:
            row = find(session, video_id)
            if row is not None and row.status == "queued":
                row.status, row.started_at = "in_progress", time.time()
            return row is not None and row.status == "in_progress"

    def complete(self, video_id: str, result: GenerationResult, expires_at: float | None = None) -> bool:
        """Keep a finished video: first its files, then its record. Returns whether it is completed.

        It is not where the video is no longer in progress, but cancelled, say, or deleted; then no file of it stays.
        May be called again after an error.
        """
        return self._filing.complete(video_id, result, expires_at)

    def fail(self, video_id: str, code: str, message: str) -> bool:
        """Mark an unfinished video as failed, with an error code and a sentence for whoever asked for it.

        Returns whether it was unfinished.
        """
        return self._finish(video_id, "failed", error_code=code, error=_storable(message))

    def cancel(self, video_id: str) -> bool:
        """Mark a video as cancelled. Returns whether it was: only an unfinished one can be."""
        return self._finish(video_id, "cancelled")

    def delete(self, video_id: str) -> bool:
        """Remove a video, in whatever state it is, and its files. Returns whether there was one.

        May be called again after an error; what then still remains is removed when the next process recovers.
        """
        return bool(self._filing.drop([video_id]))

    def expire(self, now: float, most_age: float | None = None, most_bytes: int | None = None) -> list[str]:
        """Delete finished videos, and return their ids.

        Which ones, ``choose_expired`` says. Files that belong to no video, which an error has left, are removed too.
        """
        columns = select(Row.id, Row.size, Row.completed_at, Row.expires_at)
        with self._database.reads() as session:
            rows = session.execute(columns.where(Row.status.in_(FINISHED)).order_by(Row.completed_at, Row.number))
            finished = [Finished(video_id, size, at or 0.0, expires_at) for video_id, size, at, expires_at in rows]
        expired = choose_expired(finished, now, most_age, most_bytes)
        self._filing.drop(expired)
        self._filing.sweep()
        return expired

    # What there is

    def get(self, video_id: str, owner: str | None = None) -> VideoRecord | None:
        """The record with this id, if there is one, and if it is this owner's where one is given.

        A row that cannot be read is marked as failed, with the code "damaged".
        """
        with self._database.reads() as session:
            row = find(session, video_id, image=True)
            if row is None or (owner is not None and row.owner != owner):
                return None
            try:
                return record_of(row, row.image)
            except Damaged as error:
                known, reason = row.error_code == DAMAGED, error
        if not known:
            log.error("the record of %s is damaged (%s): the video is marked as failed", video_id, reason)
            sentence = "the record of this video is damaged and cannot be read: ask for the video again"
            self._condemn(video_id, DAMAGED, sentence)
        with self._database.reads() as session:
            row = find(session, video_id)
            return what_is_left(row) if row is not None else None

    def page(
        self,
        owner: str | None = None,
        after: str | None = None,
        limit: int = 20,
        order: Literal["asc", "desc"] = "desc",
        status: Status | None = None,
    ) -> tuple[list[VideoRecord], bool]:
        """Up to ``limit`` records by arrival, beginning behind the video ``after``, and whether more follow.

        The records come without first frames, which are large. Raises KeyError where the owner has no video ``after``.
        """
        chosen = _of(select(Row), owner)
        if status is not None:
            chosen = chosen.where(Row.status == status)
        with self._database.reads() as session:
            if after is not None:
                start = session.scalar(_of(select(Row.number).where(Row.id == after), owner))
                if start is None:
                    raise KeyError(after)
                chosen = chosen.where(Row.number > start if order == "asc" else Row.number < start)
            number = Row.number.asc() if order == "asc" else Row.number.desc()
            rows = session.scalars(chosen.order_by(number).limit(limit + 1)).all()
        records = [self._listed(row) for row in rows[:limit]]
        return [record for record in records if record is not None], len(rows) > limit

    def _listed(self, row: Row) -> VideoRecord | None:
        try:
            return record_of(row, image=None)
        except Damaged:
            return self.get(row.id)

    def check(self) -> None:
        """Read from the database and write where records and files are: a full disk shows. Raises STORE_ERRORS."""
        self.queued()
        self._media.check()
        probe = self._folder / _PROBE
        try:
            probe.write_bytes(bytes(_PROBED))
        finally:
            probe.unlink(missing_ok=True)

    def queued(self) -> list[QueuedVideo]:
        """All videos that wait, in order of arrival."""
        columns = select(Row.id, Row.owner, Row.price, Row.created_at, Row.number, Row.model)
        with self._database.reads() as session:
            rows = session.execute(columns.where(Row.status == "queued").order_by(Row.number))
            return [QueuedVideo(*row) for row in rows]

    def usage(self, owner: str | None = None) -> Usage:
        """What an owner takes up, or all of them together."""
        with self._database.reads() as session:
            stored = session.scalar(_of(select(func.coalesce(func.sum(Row.size), 0)), owner))
            return Usage(int(stored or 0), _waiting(session, owner))

    def clip(self, video_id: str) -> bytes:
        """The clip that a video goes on from. Raises KeyError where it has none, FileGone where that is lost."""
        record = self.get(video_id)
        if record is None or record.clip is None:
            raise KeyError(video_id)
        place = clip_place(video_id)
        if not self._media.holds(place, record.clip):
            raise FileGone(f"the clip of {video_id} is gone from the storage, or is not as long as it was")
        return b"".join(self._media.read(place, record.clip.name, 0, record.clip.size))

    def open_file(self, video_id: str, name: str = VIDEO, start: int = 0, end: int | None = None) -> OpenedFile:
        """The bytes of a completed video's file from ``start`` up to but not including ``end`` (None: all that follow).

        Raises KeyError where the video is not completed or has no file of this name, FileGone where the file is no
        longer there; a video that has lost its mp4 is marked as failed, with the code "file_missing".
        """
        record = self.get(video_id)
        listed = record.files if record is not None and record.status == "completed" else ()
        file = next((each for each in listed if each.name == name), None)
        if file is None:
            raise KeyError(name)
        if not self._media.holds(video_id, file):
            if name == VIDEO:
                self._lose(video_id)
            raise FileGone(f"{name} of {video_id} is gone from the storage, or is not as long as it was")
        end = file.size if end is None else min(end, file.size)
        return OpenedFile(file.size, file.etag, self._media.read(video_id, name, start, end))

    # How states change

    def _finish(self, video_id: str, status: Status, **values: Any) -> bool:
        with self._database.writes() as session:
            unfinished = update(Row).where(Row.id == video_id, Row.status.in_(_UNFINISHED))
            return changed(session, unfinished.values(status=status, completed_at=time.time(), **values))

    def _lose(self, video_id: str) -> None:
        log.error("the mp4 of %s is gone from the storage: the video is marked as failed", video_id)
        self._condemn(
            video_id, FILE_MISSING, "the file of this video is gone from the storage: ask for the video again"
        )

    def _condemn(self, video_id: str, code: str, sentence: str) -> None:
        """Mark a video as failed whatever it was, since it cannot be used any more."""
        with self._database.writes() as session:
            row = find(session, video_id)
            if row is not None:
                row.status, row.error_code, row.error = "failed", code, sentence
                row.completed_at = row.completed_at or time.time()

    def _ids(self, *conditions: Any) -> Sequence[str]:
        with self._database.reads() as session:
            return session.scalars(select(Row.id).where(*conditions).order_by(Row.number)).all()


def _earlier_or_room(session: Session, records: Sequence[VideoRecord], most: int) -> str | None:
    """The id of the earlier video for the same key. Raises KeyReused, and QueueFull where neither it nor room is."""
    earlier = _earlier(session, records[0])
    if earlier is None and _waiting(session) + len(records) > most:
        raise QueueFull
    return earlier


def _earlier(session: Session, record: VideoRecord) -> str | None:
    """The id of the video for which the owner gave the same idempotency key. Raises KeyReused for another request."""
    if record.idempotency is None:
        return None
    key, digest = record.idempotency
    row = session.scalar(select(Row).where(Row.owner == record.owner, Row.idempotency_key == key))
    if row is None:
        return None
    if row.idempotency_digest != digest:
        raise KeyReused
    return row.id


def _of(query: Select[Any], owner: str | None) -> Select[Any]:
    return query if owner is None else query.where(Row.owner == owner)


def _waiting(session: Session, owner: str | None = None) -> int:
    return session.scalar(_of(select(func.count()).where(Row.status == "queued"), owner)) or 0


def _storable(text: str) -> str:
    """The text without what a database cannot keep: NUL characters and halves of characters."""
    return text.replace("\0", "").encode("utf-8", "replace").decode()
