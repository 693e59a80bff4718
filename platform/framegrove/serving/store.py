"""The durable record of videos: one SQLite file, and one mp4 file a video, in one folder."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, create_engine, event, func, select, update
from sqlalchemy.engine import URL
from sqlalchemy.exc import DatabaseError, SQLAlchemyError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from framegrove.errors import UserError
from framegrove.serving.api import Status
from framegrove.types import GenerationRequest, GenerationResult

STORE_ERRORS = (OSError, SQLAlchemyError)  # what any method of a store may raise: the disk's fault, not the caller's


@dataclass(frozen=True)
class VideoRecord:
    """What is known of a video. ``seconds`` and ``model`` are as answered; times are Unix seconds."""

    id: str
    request: GenerationRequest
    model: str
    seconds: str
    status: Status
    created_at: float
    completed_at: float | None = None
    error_code: str | None = None
    error: str | None = None
    report: dict[str, Any] | None = None


class _Base(DeclarativeBase):
    pass


class _Row(_Base):
    __tablename__ = "videos"

    number: Mapped[int] = mapped_column(primary_key=True)  # the order of arrival
    id: Mapped[str] = mapped_column(unique=True)
    request: Mapped[str]
    image: Mapped[bytes | None]
    model: Mapped[str]
    seconds: Mapped[str]
    status: Mapped[str] = mapped_column(index=True)
    created_at: Mapped[float]
    completed_at: Mapped[float | None]
    error_code: Mapped[str | None]
    error: Mapped[str | None]
    report: Mapped[str | None]


class VideoStore:
    """Videos by id, surviving the process. Every method commits before it returns. One process a folder.

    Raises UserError when the folder cannot be used, or another process uses it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            (folder / "videos").mkdir(parents=True, exist_ok=True)
            self._lock = (folder / "lock").open("w")
        except OSError as error:
            raise UserError(f"videos cannot be kept in {folder} ({error.strerror}): choose another --folder") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._engine = _open(folder / "videos.sqlite")
        except BlockingIOError:
            self._lock.close()
            raise UserError(f"another endpoint uses {folder}: stop it, or choose another --folder") from None
        except UserError:
            self._lock.close()
            raise
        for unfinished in (folder / "videos").glob("*.part"):
            unfinished.unlink()

    def close(self) -> None:
        """Let go of the folder."""
        self._engine.dispose()
        self._lock.close()

    def add(self, record: VideoRecord) -> None:
        """Keep a new record."""
        request = dataclasses.asdict(record.request)
        image = request.pop("image")
        with Session(self._engine) as session, session.begin():
            session.add(
                _Row(
                    id=record.id,
                    request=json.dumps(request),
                    image=image,
                    model=record.model,
                    seconds=record.seconds,
                    status=record.status,
                    created_at=record.created_at,
                )
            )

    def get(self, video_id: str) -> VideoRecord | None:
        """The record of that id."""
        with Session(self._engine) as session:
            row = session.scalar(select(_Row).where(_Row.id == video_id))
            return _record(row) if row else None

    def waiting(self) -> int:
        """How many videos are queued."""
        with Session(self._engine) as session:
            return session.scalar(select(func.count()).where(_Row.status == "queued")) or 0

    def first(self) -> VideoRecord | None:
        """The longest queued video; None when none is queued."""
        with Session(self._engine) as session:
            row = session.scalar(select(_Row).where(_Row.status == "queued").order_by(_Row.number).limit(1))
            return _record(row) if row else None

    def begin(self, video_id: str) -> None:
        """The video is in progress."""
        self._set(video_id, status="in_progress")

    def complete(self, video_id: str, result: GenerationResult) -> None:
        """The video is made: its file first, under its final name only when whole, then its record."""
        with _written(self.path_of(video_id)) as part:
            part.write_bytes(result.video)
        self._set(video_id, status="completed", completed_at=time.time(), report=json.dumps(result.report))

    def fail(self, video_id: str, code: str, message: str) -> None:
        """The video cannot be made."""
        self._set(video_id, status="failed", completed_at=time.time(), error_code=code, error=message)

    def recover(self) -> int:
        """Queue again what was in progress when the last process ended; how many that were."""
        with Session(self._engine) as session, session.begin():
            stranded = session.scalars(select(_Row).where(_Row.status == "in_progress")).all()
            for row in stranded:
                row.status = "queued"
            return len(stranded)

    def path_of(self, video_id: str) -> Path:
        """Where the video's file is, once it is completed."""
        return self._folder / "videos" / f"{video_id}.mp4"

    def _set(self, video_id: str, **values: Any) -> None:
        with Session(self._engine) as session, session.begin():
            session.execute(update(_Row).where(_Row.id == video_id).values(**values))


def _open(path: Path) -> Engine:
    engine = create_engine(URL.create("sqlite", database=str(path)))

    @event.listens_for(engine, "connect")
    def _prepare(connection: Any, _: Any) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")

    try:
        _Base.metadata.create_all(engine)
    except DatabaseError:
        raise UserError(f"{path} is damaged: move it away, or choose another --folder") from None
    return engine


def _record(row: _Row) -> VideoRecord:
    return VideoRecord(
        id=row.id,
        request=GenerationRequest(**json.loads(row.request), image=row.image),
        model=row.model,
        seconds=row.seconds,
        status=row.status,  # type: ignore[arg-type]
        created_at=row.created_at,
        completed_at=row.completed_at,
        error_code=row.error_code,
        error=row.error,
        report=json.loads(row.report) if row.report else None,
    )


@contextmanager
def _written(path: Path) -> Iterator[Path]:
    """A file to write beside ``path``, which becomes ``path`` when it is whole and on disk."""
    part = path.with_suffix(".part")
    try:
        yield part
        with part.open("rb") as written:
            os.fsync(written.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
