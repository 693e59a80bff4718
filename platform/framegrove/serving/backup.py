"""Copies of a store that is in use."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from sqlalchemy import delete, select

from framegrove.errors import UserError
from framegrove.files import replacing
from framegrove.serving.database import Database, open_sqlite
from framegrove.serving.filing import clip_place
from framegrove.serving.media import MediaStore
from framegrove.serving.records import Damaged, Row, StoredFile, files_of

RECORDS, FILES, USAGE, KEYS = "videos.sqlite", "videos", "usage.sqlite", "keys.json"  # in an endpoint's folder


def back_up(folder: Path, target: Path, *, storage: str = "", keys: Path | None = None) -> None:
    """Copy an endpoint's folder, whether or not an endpoint runs on it, to a folder that is not there yet.

    The copy is one that an endpoint can be started on: the records of one moment, and their files, which are taken from
    ``storage`` if they are not in the folder, except for videos that were deleted meanwhile; what the owners of keys
    have used; and the file of API keys, if it is named. It appears once it is complete.

    Raises UserError where no records are in ``folder``, or the copy cannot be made.
    """
    if not (folder / RECORDS).is_file():
        raise UserError(
            f"no records of videos are in {folder}: name the endpoint's --folder; records in Postgres are backed up "
            "with pg_dump, and the storage of the files after it"
        )
    if keys is not None and not keys.is_file():
        raise UserError(f"there is no keys file at {keys}: leave --keys out, or name the endpoint's")
    if target.exists():
        raise UserError(f"{target} is there already: choose a new folder for the copy")
    database = open_sqlite(folder / RECORDS, migrate=False)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as partial:
            partial.mkdir(mode=0o700)
            if keys is not None:
                shutil.copyfile(keys, partial / KEYS)
                (partial / KEYS).chmod(0o600)
            if (folder / USAGE).is_file():
                _copy_usage(folder / USAGE, partial / USAGE)
            database.copy_to(partial / RECORDS)
            copy = open_sqlite(partial / RECORDS)
            try:
                _copy_files(database, MediaStore(storage or folder / FILES), copy, MediaStore(partial / FILES))
            finally:
                copy.close()
    except OSError as error:
        raise UserError(
            f"the copy in {target} could not be finished ({error}): make room, or see to the disk"
        ) from None
    finally:
        database.close()


def _copy_usage(usage: Path, copy: Path) -> None:
    copy.touch(mode=0o600)
    with closing(sqlite3.connect(usage)) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)


def _copy_files(database: Database, media: MediaStore, copy: Database, target: MediaStore) -> None:
    with copy.reads() as session:
        listed = session.execute(select(Row.id, Row.status, Row.files, Row.clip)).all()
    for video_id, status, made, given in listed:
        try:
            places = {clip_place(video_id): files_of(given)} if given else {}
            places |= {video_id: files_of(made)} if status == "completed" else {}
        except Damaged:
            continue  # a store that opens the copy finds the same
        found = {place: _fetched(media, place, files) for place, files in places.items()}
        whole = all(len(found[place]) == len(files) for place, files in places.items())
        if whole or _is_kept(database, video_id):  # what is lost in the one is lost in the other
            for place, files_there in found.items():
                target.write(place, files_there)
        else:  # deleted since its record was copied
            with copy.writes() as session:
                session.execute(delete(Row).where(Row.id == video_id))


def _fetched(media: MediaStore, video_id: str, files: Sequence[StoredFile]) -> dict[str, bytes]:
    """Those of a video's files that are there; none where they are removed at this moment."""
    try:
        return {
            file.name: b"".join(media.read(video_id, file.name, 0, file.size))
            for file in files
            if media.holds(video_id, file)
        }
    except FileNotFoundError:
        return {}


def _is_kept(database: Database, video_id: str) -> bool:
    with database.reads() as session:
        return session.scalar(select(Row.id).where(Row.id == video_id)) is not None
