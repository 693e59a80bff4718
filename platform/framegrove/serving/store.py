"""The durable record of videos: one SQLite file and one mp4 file per video, in one folder."""

from __future__ import annotations

import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, create_engine, event, func, select, update
from sqlalchemy.engine import URL
from sqlalchemy.exc import DatabaseError, OperationalError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from framegrove.errors import UserError
from framegrove.files import locked, replacing
from framegrove.serving.api import Status
from framegrove.types import GenerationRequest, GenerationResult

# What any method of a store may raise when the disk is full, slow or out of reach, and what may pass. A damaged file is
# none of these, nor is a broken constraint: both stay as they are however often they are tried again.
STORE_ERRORS = (OSError, OperationalError)

_LOCK_TIMEOUT = 30.0  # seconds that a transaction waits for another one to end


class QueueFull(Exception):
    """As many videos are waiting as the queue takes."""


@dataclass(frozen=True)
class VideoRecord:
    """What is known of a video. ``seconds`` and ``model`` are as the API shows them; times are in Unix seconds."""

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
    """Videos by id, which outlive the process. Every method commits before it returns; any thread may call it.

    A folder belongs to one process at a time. Raises UserError when the folder cannot be used or another process uses
    it, STORE_ERRORS (from any method) when the disk fails.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            (folder / "videos").mkdir(parents=True, exist_ok=True)
            self._lock = locked(folder / "lock", f"another endpoint uses {folder}: stop it, or choose another --folder")
        except OSError as error:
            raise UserError(f"videos cannot be kept in {folder} ({error.strerror}): choose another --folder") from None
        try:
            self._engine = _open(folder / "videos.sqlite")
        except UserError:
            self._lock.close()
            raise
        for unfinished in (folder / "videos").glob(".*.partial"):  # left behind by a process that was killed
            unfinished.unlink()

    def close(self) -> None:
        """Release the folder for other processes."""
        self._engine.dispose()
        self._lock.close()

    def add(self, record: VideoRecord, most: int) -> None:
        """Keep a new record. Raises QueueFull, and keeps nothing, if ``most`` videos are waiting already.

        The insertion comes first: it takes SQLite's write lock, so that nobody else adds a video before the count.
        """
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
            session.flush()
            if _waiting(session) > most:  # this one included
                raise QueueFull

    def get(self, video_id: str) -> VideoRecord | None:
        """The record with this id, if there is one."""
        with Session(self._engine) as session:
            row = session.scalar(select(_Row).where(_Row.id == video_id))
            return _record(row) if row else None

    def waiting(self) -> int:
        """How many videos are queued."""
        with Session(self._engine) as session:
            return _waiting(session)

    def first(self) -> VideoRecord | None:
        """The video that has been queued for longest; None when none is queued."""
        with Session(self._engine) as session:
            row = session.scalar(select(_Row).where(_Row.status == "queued").order_by(_Row.number).limit(1))
            return _record(row) if row else None

    def begin(self, video_id: str) -> None:
        """Mark the video as in progress."""
        self._set(video_id, status="in_progress")

    def complete(self, video_id: str, result: GenerationResult) -> None:
        """Keep the finished video: first its file, then its record."""
        with replacing(self.path_of(video_id)) as partial:
            partial.write_bytes(result.video)
        self._set(video_id, status="completed", completed_at=time.time(), report=json.dumps(result.report))

    def fail(self, video_id: str, code: str, message: str) -> None:
        """Mark the video as failed, with an error code and a sentence for whoever asked for it."""
        self._set(video_id, status="failed", completed_at=time.time(), error_code=code, error=message)

    def recover(self) -> int:
        """Queue again what was in progress when the last process ended. Returns how many videos that were."""
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
    engine = create_engine(
        URL.create("sqlite", database=str(path)),
        connect_args={"timeout": _LOCK_TIMEOUT},
        hide_parameters=True,  # errors are logged, and prompts are not
    )

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


def _waiting(session: Session) -> int:
    return session.scalar(select(func.count()).where(_Row.status == "queued")) or 0
