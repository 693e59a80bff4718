"""Copies of a store that is in use."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sqlalchemy import delete, select

from framegrove.errors import UserError
from framegrove.files import replacing
from framegrove.serving.database import Database, open_sqlite
from framegrove.serving.filing import clip_place
from framegrove.serving.media import MediaStore
from framegrove.serving.records import Damaged, Row, StoredFile, files_of


def back_up(database: Database, media: MediaStore, target: Path) -> None:
    """Copy the records of this moment, and then their files, to a folder that is not there yet.

    The folder appears once it is complete. Raises UserError where it is there already, or cannot be made, or the
    records are in Postgres.
    """
    if target.exists():
        raise UserError(f"{target} is there already: choose a new folder for the copy")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as partial:
            partial.mkdir(mode=0o700)
            database.copy_to(partial / "videos.sqlite")
            copy = open_sqlite(partial / "videos.sqlite")
            try:
                _copy_files(database, media, copy, MediaStore(partial / "videos"))
            finally:
                copy.close()
    except OSError as error:
        raise UserError(
            f"the copy in {target} could not be finished ({error}): make room, or see to the disk"
        ) from None


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
