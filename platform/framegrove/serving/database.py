"""The database of the records: one SQLite file, or a Postgres server at a URL; for one process at a time."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import CursorResult, Engine, create_engine, event
from sqlalchemy.engine import URL, Connection, make_url
from sqlalchemy.exc import ArgumentError, DatabaseError, OperationalError
from sqlalchemy.orm import Session

from framegrove.errors import UserError
from framegrove.files import InUse

_PATIENCE = 30.0  # seconds that a transaction of SQLite waits for another program's to end
_LOCK = 0x6672616D65  # the number of the advisory lock; locks of one database do not meet those of another
_LOCK_PATIENCE = "2s"  # for the lock of a process that has just been killed
_LOCK_NOT_AVAILABLE = "55P03"  # Postgres's code for a lock that was waited for in vain

# A server whose machine or network fails must be given up in a minute, not in the hours that TCP takes; and the server
# must notice the same of this process, whose lock it keeps until then.
_POSTGRES = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
    "options": "-c tcp_keepalives_idle=10 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=3",
}


class Database:
    """Transactions on the records.

    Reads may go on at any time. Writes take turns: SQLite allows no two at a time anyway, and what they read
    before they write stays true, in Postgres too, without locks on rows.
    """

    def __init__(self, name: str, reading: Engine, writing: Engine) -> None:
        self._name = name
        self._reading = reading
        self._writing = writing
        self._turn = threading.Lock()

    @contextmanager
    def reads(self) -> Iterator[Session]:
        """A transaction that changes nothing."""
        with Session(self._reading) as session:
            yield session

    @contextmanager
    def writes(self) -> Iterator[Session]:
        """A transaction that is committed where the block ends well."""
        with self._turn, Session(self._writing) as session, session.begin():
            yield session

    def migrate(self) -> None:
        """Bring the schema to this version's. Raises UserError where a newer version has written the database."""
        with self._writing.begin() as connection:
            config = _migrations()
            self._check_version(connection, ScriptDirectory.from_config(config))
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    def copy_to(self, path: Path) -> None:
        """Write a copy of an SQLite database, as it is at this moment, to a new file. Writers need not wait."""
        with self._reading.connect() as connection:
            source = connection.connection.driver_connection
            assert isinstance(source, sqlite3.Connection)
            target = sqlite3.connect(path)
            try:
                source.backup(target)
            finally:
                target.close()

    def close(self) -> None:
        """Release the database for other processes."""
        self._reading.dispose()
        self._writing.dispose()

    def _check_version(self, connection: Connection, known: ScriptDirectory) -> None:
        version = MigrationContext.configure(connection).get_current_revision()
        if version is not None and version not in {script.revision for script in known.walk_revisions()}:
            raise UserError(
                f"{self._name} was written by a newer version of Framegrove (its schema is {version}, this version "
                f"knows {known.get_current_head()}): install that version, or keep videos elsewhere"
            )


def open_sqlite(path: Path, *, migrate: bool = True) -> Database:
    """The database in a file, which is made where there is none; the caller sees that no other process uses it.

    One that another process may use is opened without ``migrate``, and is only read. Raises UserError.
    """
    engine = create_engine(
        URL.create("sqlite", database=str(path)),
        connect_args={"timeout": _PATIENCE},
        hide_parameters=True,  # errors are logged, and prompts are not
    )

    @event.listens_for(engine, "connect")
    def prepare(connection: sqlite3.Connection, _: Any) -> None:
        # Python's module begins transactions late, and for no change of the schema: a migration could stop half-way.
        connection.isolation_level = None
        # A text that is no UTF-8 must not stop the reading of all others: it is found damaged where it is used.
        connection.text_factory = lambda text: text.decode("utf-8", "surrogateescape")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN")

    database = Database(str(path), engine, engine)
    try:
        path.touch(mode=0o600)
        path.chmod(0o600)  # it holds prompts; SQLite gives the same permissions to the files beside it
        if migrate:
            database.migrate()
    except OSError as error:
        raise UserError(f"{path} cannot be used ({error.strerror}): choose another --folder") from None
    except OperationalError as error:
        database.close()
        raise UserError(f"{path} cannot be used ({error.orig}): choose another --folder") from None
    except DatabaseError:
        database.close()
        raise UserError(f"{path} is damaged: move it away, or choose another --folder") from None
    except UserError:
        database.close()
        raise
    return database


def open_postgres(given: str) -> Database:
    """The database at a URL, ``postgresql://USER@HOST/NAME``. Raises UserError, also where another process has it.

    All writes go through one connection, and whoever has it has the database's advisory lock: a process that has lost
    the connection can write again only once it has the lock again. A pooler that shares connections between clients
    (PgBouncer's transaction mode) must not stand in between.
    """
    url = _postgres_url(given)
    name = url.set(drivername="postgresql").render_as_string(hide_password=True)
    options: dict[str, Any] = {"connect_args": _POSTGRES, "pool_pre_ping": True, "hide_parameters": True}
    writing = create_engine(url, pool_size=1, max_overflow=0, **options)

    @event.listens_for(writing, "connect")
    def lock(connection: Any, _: Any) -> None:
        connection.execute(f"SET lock_timeout = '{_LOCK_PATIENCE}'")
        connection.execute(f"SELECT pg_advisory_lock({_LOCK})")
        connection.commit()

    database = Database(name, create_engine(url, **options), writing)
    try:
        database.migrate()
    except DatabaseError as error:
        database.close()
        if getattr(error.orig, "sqlstate", None) == _LOCK_NOT_AVAILABLE:
            raise InUse(f"another endpoint uses {name}: stop it, or choose another database") from None
        reason = " ".join(str(error.orig).split())
        raise UserError(f"{name} cannot be used ({reason}): see to the server, or correct the URL") from None
    except UserError:
        database.close()
        raise
    return database


def changed(session: Session, statement: Any) -> bool:
    """Execute an update or a deletion. Returns whether it has met a row."""
    return bool(cast(CursorResult[Any], session.execute(statement)).rowcount)


def _postgres_url(given: str) -> URL:
    try:
        url = make_url(given)
    except ArgumentError:
        url = None
    if url is None or url.drivername not in ("postgresql", "postgres", "postgresql+psycopg"):
        raise UserError(  # what was given may hold a password
            "the database's URL is not of the form postgresql://USER@HOST/NAME; leave it out for a file in --folder"
        )
    return url.set(drivername="postgresql+psycopg")


def _migrations() -> Config:
    config = Config()
    # Alembic reads its options with configparser, to which a single % means something.
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")).replace("%", "%%"))
    return config
