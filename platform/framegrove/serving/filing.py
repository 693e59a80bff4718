"""Files and records brought together, so that a crash at any moment leaves neither without the other."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from framegrove.serving.database import Database, changed
from framegrove.serving.media import MediaStore
from framegrove.serving.records import LooseFiles, Row, StoredFile, VideoRecord, as_json, clip_of, find
from framegrove.types import GenerationResult

VIDEO = "video.mp4"
CLIP = "clip.mkv"
REPORT = "report.json"


def clip_place(video_id: str) -> str:
    """The id under which the storage holds the clip that a video goes on from."""
    return f"{video_id}.clip"


class Filing:
    """Writes and removes the files of videos, together with what their records say of them.

    A record says that a video is completed once all of its files are there. An id stands in the table of loose files
    from before its first file is written until its record says so, and from when its record goes until its last file
    is gone. ``sweep`` removes what is left of the ids that stand there.

    A clip that a video goes on from is there before the video's record is, and as long as it. It has a place of its
    own, under the id that ``clip_place`` gives.
    """

    def __init__(self, database: Database, media: MediaStore) -> None:
        self._database = database
        self._media = media
        self._writing: set[str] = set()  # ids of videos whose files are being written
        self._turn = threading.Lock()  # held to enter or leave that set, and while some video's files are removed

    @contextmanager
    def with_clips(self, records: Sequence[VideoRecord]) -> Iterator[tuple[VideoRecord, ...]]:
        """The records with the clips of their requests stored; the block is to keep them by ``settle_clips``.

        The clips of records that the block did not keep are removed when it ends.
        """
        clips = {clip_place(each.id): each.request.clip for each in records if each.request.clip is not None}
        if not clips:
            yield tuple(records)
            return
        with self._turn:
            self._writing.update(clips)
        try:
            with self._database.writes() as session:
                for place in clips:
                    session.merge(LooseFiles(id=place))
            stored = {place: self._media.write(place, {CLIP: clip})[0] for place, clip in clips.items()}
            yield tuple(replace(each, clip=stored.get(clip_place(each.id))) for each in records)
        finally:
            with self._turn:
                self._writing.difference_update(clips)
            self._clear(clips)

    def settle_clips(self, session: Session, records: Sequence[VideoRecord]) -> None:
        """In the transaction that keeps these records: their clips now belong to them."""
        places = [clip_place(each.id) for each in records if each.clip is not None]
        session.execute(delete(LooseFiles).where(LooseFiles.id.in_(places)))

    def complete(self, video_id: str, result: GenerationResult, expires_at: float | None) -> bool:
        """Keep the files of a video in progress, and complete it. Returns whether it is completed.

        It is not where it has been cancelled, say, or deleted in the meantime; then no file of it stays.
        """
        with self._turn:
            self._writing.add(video_id)
        try:
            if not self._announce(video_id):
                return self._is_completed(video_id)
            report = {REPORT: json.dumps(result.report, indent=2).encode()}
            files = self._media.write(video_id, {**report, **result.files, VIDEO: result.video})
            completed = self._settle(video_id, result, files, expires_at)
        finally:
            with self._turn:
                self._writing.discard(video_id)
        if not completed:
            self._clear([video_id])
        return completed

    def drop(self, ids: Iterable[str]) -> list[str]:
        """Remove videos and their files. Returns the ids of those that there were."""
        dropped: list[str] = []
        loose: list[str] = []
        with self._database.writes() as session:
            for video_id in ids:
                clip = session.scalar(select(Row.clip).where(Row.id == video_id))
                if clip is not None:
                    session.merge(LooseFiles(id=clip_place(video_id)))
                    loose.append(clip_place(video_id))
                gone = changed(session, delete(Row).where(Row.id == video_id))
                if gone or session.get(LooseFiles, video_id) is not None:  # the last attempt removed the record alone
                    session.merge(LooseFiles(id=video_id))
                    dropped.append(video_id)
        self._clear([*dropped, *loose])
        return dropped

    def sweep(self) -> None:
        """Remove all files that belong to no video, except of those that are being written."""
        with self._database.reads() as session:
            loose = session.scalars(select(LooseFiles.id)).all()
        self._clear(loose)

    def adopt(self, folder: Path) -> list[str]:
        """Take over the videos of versions that kept each of them as ``ID.mp4`` in ``folder``. May be interrupted.

        Returns the ids of those whose file is not there.
        """
        with self._database.reads() as session:
            old = set(session.scalars(select(Row.id).where(Row.status == "completed", Row.files.is_(None))))
        for path in folder.glob("*.mp4"):
            if path.stem in old:
                files = self._media.write(path.stem, {VIDEO: path.read_bytes()})
                values = {"files": as_json(files), "size": sum(file.size for file in files)}
                with self._database.writes() as session:
                    session.execute(update(Row).where(Row.id == path.stem).values(values))
                old.discard(path.stem)
            path.unlink()  # it has been taken over, or was of no completed video
        for unfinished in folder.glob(".*.mp4.partial"):
            unfinished.unlink()
        return sorted(old)

    def _announce(self, video_id: str) -> bool:
        """Note that files will be written. Returns whether the video is in progress."""
        with self._database.writes() as session:
            row = find(session, video_id)
            if row is None or row.status != "in_progress":
                return False
            session.merge(LooseFiles(id=video_id))
            return True

    def _settle(
        self, video_id: str, result: GenerationResult, files: tuple[StoredFile, ...], expires_at: float | None
    ) -> bool:
        """Say in the record that the files are there. Returns whether the video was still in progress."""
        with self._database.writes() as session:
            row = find(session, video_id)
            if row is None or row.status != "in_progress":
                return False
            row.status, row.completed_at, row.report = "completed", time.time(), json.dumps(result.report)
            clip = clip_of(row.clip)
            row.files, row.size = as_json(files), sum(file.size for file in files) + (clip.size if clip else 0)
            if expires_at is not None:
                row.expires_at = expires_at
            session.execute(delete(LooseFiles).where(LooseFiles.id == video_id))
            return True

    def _clear(self, ids: Iterable[str]) -> None:
        for video_id in ids:
            with self._turn:
                if video_id in self._writing:  # `complete` sees to them
                    continue
                with self._database.reads() as session:
                    if session.get(LooseFiles, video_id) is None:  # the video has been completed since
                        continue
                self._media.remove(video_id)
                with self._database.writes() as session:
                    session.execute(delete(LooseFiles).where(LooseFiles.id == video_id))

    def _is_completed(self, video_id: str) -> bool:
        with self._database.reads() as session:
            row = find(session, video_id)
            return row is not None and row.status == "completed"
