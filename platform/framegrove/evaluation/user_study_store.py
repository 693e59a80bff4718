"""The choices of a study, in an SQLite file: a row for each person, pair and question, and never two."""

from __future__ import annotations

import hashlib
import json
import secrets
import sqlite3
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from sqlalchemy import UniqueConstraint, create_engine, event, select
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.engine import URL
from sqlalchemy.exc import DatabaseError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from framegrove.errors import UserError
from framegrove.evaluation.user_study import Better, Choice

FILE = "user_study.sqlite"  # in the folder of the evaluation whose videos it is about
_VERSION = "1"
_PATIENCE = 30.0  # seconds that a write waits for another process's


class _Base(DeclarativeBase):
    pass


class _Fact(_Base):
    """What the file says of itself."""

    __tablename__ = "facts"
    name: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[str]


class _Row(_Base):
    __tablename__ = "choices"
    __table_args__ = (UniqueConstraint("person", "prompt_index", "take", "one", "other", "question"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    person: Mapped[str]
    prompt_index: Mapped[int]
    take: Mapped[int]
    one: Mapped[str]
    other: Mapped[str]
    question: Mapped[str]
    better: Mapped[str]
    left: Mapped[str]
    answered_at: Mapped[float]


class StudyStore:
    """Choices that are kept as they are made; several processes may use one file.

    ``evaluation``, JSON values, tells whose videos they are about. Raises UserError where the file is of another
    evaluation or of another version of this program, and where it cannot be used.
    """

    def __init__(self, path: Path, evaluation: Mapping[str, Any]) -> None:
        self._path = path
        self._engine = create_engine(
            URL.create("sqlite", database=str(path)), connect_args={"timeout": _PATIENCE}, hide_parameters=True
        )

        @event.listens_for(self._engine, "connect")
        def prepare(connection: sqlite3.Connection, _: Any) -> None:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")  # a choice that was answered for is on the disk

        try:
            _Base.metadata.create_all(self._engine)
            self._facts = self._checked(evaluation)
        except DatabaseError as error:
            self.close()
            raise UserError(f"{path} cannot be used ({error.orig}): move it away to begin a study anew") from None
        except UserError:
            self.close()
            raise

    def _checked(self, evaluation: Mapping[str, Any]) -> dict[str, str]:
        digest = hashlib.blake2b(json.dumps(evaluation, sort_keys=True).encode(), digest_size=16).hexdigest()
        ours = {"version": _VERSION, "evaluation": digest, "secret": secrets.token_hex(16)}
        with Session(self._engine) as session, session.begin():
            for name, value in ours.items():
                session.execute(insert(_Fact).values(name=name, value=value).on_conflict_do_nothing())
            theirs = {fact.name: fact.value for fact in session.scalars(select(_Fact))}
        if theirs["version"] != _VERSION:
            raise UserError(f"{self._path} is of another version of Framegrove: move it away to begin a study anew")
        if theirs["evaluation"] != digest:
            raise UserError(f"{self._path} has choices between other videos: move it away to begin a study anew")
        return theirs

    @property
    def secret(self) -> str:
        """What addresses of videos are made with, so that nobody can tell from one what it shows."""
        return self._facts["secret"]

    def add(self, choices: Iterable[Choice]) -> int:
        """Keep choices, all or none; when this returns they are on the disk.

        What the same person has said of the same pair and question before stays as it was. Returns how many are new.
        """
        rows = [
            {
                "person": choice.person,
                **dict(zip(("prompt_index", "take", "one", "other"), choice.key, strict=True)),
                "question": choice.question,
                "better": choice.better,
                "left": choice.left,
                "answered_at": time.time(),
            }
            for choice in choices
        ]
        new = 0
        with Session(self._engine) as session, session.begin():
            for row in rows:
                found = session.execute(insert(_Row).values(**row).on_conflict_do_nothing())
                new += cast(Any, found).rowcount
        return new

    def choices(self) -> list[Choice]:
        """All of them, in the order in which they were made."""
        with Session(self._engine) as session:
            return [
                Choice(
                    row.person,
                    (row.prompt_index, row.take, row.one, row.other),
                    row.question,
                    cast(Better, row.better),
                    "one" if row.left == "one" else "other",
                )
                for row in session.scalars(select(_Row).order_by(_Row.id))
            ]

    def answered(self) -> dict[tuple[int, int, str, str], set[str]]:
        """Who has answered about each pair."""
        found: dict[tuple[int, int, str, str], set[str]] = defaultdict(set)
        columns = (_Row.prompt_index, _Row.take, _Row.one, _Row.other, _Row.person)
        with Session(self._engine) as session:
            for prompt_index, take, one, other, person in session.execute(select(*columns).distinct()):
                found[prompt_index, take, one, other].add(person)
        return found

    def close(self) -> None:
        """Let go of the file."""
        self._engine.dispose()
