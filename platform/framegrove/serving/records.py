"""What is kept of a video: the record that the service reads, and the row of the database that holds it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter
from sqlalchemy import BigInteger, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, undefer

from framegrove.serving.api import Status
from framegrove.types import GenerationRequest

FINISHED: tuple[Status, ...] = ("completed", "failed", "cancelled")

DAMAGED = "damaged"  # the error code of a row that cannot be read
FILE_MISSING = "file_missing"  # the error code of a completed video whose mp4 is gone


@dataclass(frozen=True)
class StoredFile:
    """A file of a video. ``etag`` is the SHA-256 of its contents, in hexadecimal and without quotes."""

    name: str
    size: int
    etag: str


@dataclass(frozen=True)
class VideoRecord:
    """What is known of a video. ``seconds`` and ``model`` are as the API shows them; times are in Unix seconds.

    ``owner`` is the name of the API key with which it was asked for, empty where the endpoint has no keys.
    ``remixed_from`` and ``extends`` are ids of other videos, ``batch`` those of all videos of a request for several.
    ``clip`` is the stored clip that the video goes on from. ``price`` is the estimated work, in units of the
    service's choice. ``idempotency`` is the key that the client gave and a digest of the request's body.

    Where ``error_code`` is "damaged", ``request`` is empty: what was asked for cannot be read any more.
    """

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
    owner: str = ""
    user: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    remixed_from: str | None = None
    extends: str | None = None
    started_at: float | None = None
    expires_at: float | None = None
    price: float = 0.0
    idempotency: tuple[str, str] | None = None
    files: tuple[StoredFile, ...] = ()
    batch: tuple[str, ...] = ()
    clip: StoredFile | None = None


@dataclass(frozen=True)
class QueuedVideo:
    """What a fair choice needs to know of a video that waits. ``number`` is its place in the order of arrival."""

    id: str
    owner: str
    price: float
    created_at: float
    number: int
    model: str


@dataclass(frozen=True)
class Usage:
    """What an owner takes up: the bytes of all files of its videos, clips included, and how many videos are queued."""

    stored: int
    waiting: int


class Damaged(ValueError):
    """A row of which some part cannot be read."""


class Base(DeclarativeBase):
    pass


class Row(Base):
    """A video. The tables are made and changed by the migrations alone, which must agree with these classes."""

    __tablename__ = "videos"

    number: Mapped[int] = mapped_column(primary_key=True)  # the order of arrival
    id: Mapped[str] = mapped_column(unique=True)
    request: Mapped[str]
    image: Mapped[bytes | None] = mapped_column(deferred=True)  # large, and seldom needed
    model: Mapped[str]
    seconds: Mapped[str]
    status: Mapped[str] = mapped_column(index=True)
    created_at: Mapped[float]
    completed_at: Mapped[float | None]
    error_code: Mapped[str | None]
    error: Mapped[str | None]
    report: Mapped[str | None]
    owner: Mapped[str]
    user: Mapped[str | None]
    facts: Mapped[str] = mapped_column("metadata")  # SQLAlchemy keeps the name `metadata` for itself
    remixed_from: Mapped[str | None]
    extends: Mapped[str | None]
    started_at: Mapped[float | None]
    expires_at: Mapped[float | None]
    price: Mapped[float]
    idempotency_key: Mapped[str | None]
    idempotency_digest: Mapped[str | None]
    files: Mapped[str | None]  # None in a completed video: it is from before versions, see filing.py
    size: Mapped[int] = mapped_column(BigInteger)  # of all files, in bytes
    batch: Mapped[str | None]
    clip: Mapped[str | None]  # the file that the video goes on from, see filing.py


class LooseFiles(Base):
    """An id under which the storage may hold files that belong to no video, and are to be removed.

    It is noted before the first of them is written, and when a video is deleted, so that no crash leaves files behind
    that nobody knows of.
    """

    __tablename__ = "loose_files"

    id: Mapped[str] = mapped_column(primary_key=True)


def find(session: Session, video_id: str, *, image: bool = False) -> Row | None:
    """The row of a video, if there is one; with its first frame where that is needed, which takes no second query."""
    found = select(Row).where(Row.id == video_id)
    return session.scalar(found.options(undefer(Row.image)) if image else found)


def row_of(record: VideoRecord) -> Row:
    """The row of a new record, which has no files yet."""
    key, digest = record.idempotency or (None, None)
    return Row(
        id=record.id,
        request=json.dumps(dataclasses.asdict(dataclasses.replace(record.request, image=None, clip=None))),
        image=record.request.image,
        model=record.model,
        seconds=record.seconds,
        status=record.status,
        created_at=record.created_at,
        owner=record.owner,
        user=record.user,
        facts=json.dumps(dict(record.metadata)),
        remixed_from=record.remixed_from,
        extends=record.extends,
        expires_at=record.expires_at,
        price=record.price,
        idempotency_key=key,
        idempotency_digest=digest,
        size=record.clip.size if record.clip else 0,
        batch=json.dumps(record.batch) if record.batch else None,
        clip=as_json((record.clip,)) if record.clip else None,
    )


def record_of(row: Row, image: bytes | None) -> VideoRecord:
    """The record in a row, with this first frame. Raises Damaged where a part of the row cannot be read."""
    return _record(
        row,
        request=dataclasses.replace(_read("request", _REQUEST, row.request), image=image),
        report=_read("report", _REPORT, row.report) if row.report else None,
        metadata=_read("metadata", _METADATA, row.facts),
        files=files_of(row.files),
        batch=_read("batch", _IDS, row.batch) if row.batch else (),
        clip=clip_of(row.clip),
    )


def files_of(listed: str | None) -> tuple[StoredFile, ...]:
    """The files that a row lists. Raises Damaged."""
    files: tuple[StoredFile, ...] = _read("list of files", _FILES, listed) if listed else ()
    return files


def clip_of(listed: str | None) -> StoredFile | None:
    """The clip that a row lists. Raises Damaged."""
    return next(iter(files_of(listed)), None)


def what_is_left(row: Row) -> VideoRecord:
    """The record of a damaged row, without the parts that are kept as JSON."""
    return _record(row, request=_UNREADABLE, report=None, metadata={}, files=(), batch=(), clip=None)


def as_json(files: tuple[StoredFile, ...]) -> str:
    """A list of files, in the form in which a row keeps it."""
    return json.dumps([dataclasses.asdict(file) for file in files])


def _record(
    row: Row,
    *,
    request: GenerationRequest,
    report: dict[str, Any] | None,
    metadata: dict[str, str],
    files: tuple[StoredFile, ...],
    batch: tuple[str, ...],
    clip: StoredFile | None,
) -> VideoRecord:
    key, digest = row.idempotency_key, row.idempotency_digest
    return VideoRecord(
        id=row.id,
        request=request,
        model=row.model,
        seconds=row.seconds,
        status=row.status,  # type: ignore[arg-type]
        created_at=row.created_at,
        completed_at=row.completed_at,
        error_code=row.error_code,
        error=row.error,
        report=report,
        owner=row.owner,
        user=row.user,
        metadata=metadata,
        remixed_from=row.remixed_from,
        extends=row.extends,
        started_at=row.started_at,
        expires_at=row.expires_at,
        price=row.price,
        idempotency=(key, digest) if key is not None and digest is not None else None,
        files=files,
        batch=batch,
        clip=clip,
    )


# Pydantic reads the dataclasses back, those inside others too, and refuses what is not of their types.
_REQUEST = TypeAdapter(GenerationRequest)
_REPORT: TypeAdapter[dict[str, Any]] = TypeAdapter(dict[str, Any])
_METADATA = TypeAdapter(dict[str, str])
_IDS = TypeAdapter(tuple[str, ...])
_FILES: TypeAdapter[tuple[StoredFile, ...]] = TypeAdapter(tuple[StoredFile, ...])

_UNREADABLE = GenerationRequest(prompt="", seed=0, units=0, height=0, width=0)


def _read(name: str, adapter: TypeAdapter[Any], text: str) -> Any:
    """A value kept as JSON. The error does not quote it: it is logged, and prompts are not."""
    try:
        # Text that is no UTF-8 comes from SQLite with lone surrogates (see database.py), which cannot be encoded.
        # What a damaged row has in place of text is no JSON as a string either.
        return adapter.validate_json(str(text).encode())
    except ValueError:  # pydantic's ValidationError and UnicodeEncodeError are both ValueErrors
        raise Damaged(f"its {name} cannot be read") from None
