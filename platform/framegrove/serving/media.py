"""The files of videos, in a place of their own for each: a local folder, or any URL that fsspec can write to."""

from __future__ import annotations

import hashlib
import os
import posixpath
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fsspec.core import url_to_fs

from framegrove.config.base import absolute_place
from framegrove.errors import UserError
from framegrove.files import replacing, sync
from framegrove.serving.records import StoredFile

_MARK = "storage.txt"
_TEXT = b"The files of videos that Framegrove has made, a folder for each video; its endpoint needs this file too.\n"
_PROBE, _PROBED = "probe.bin", 2**16  # a file, and its bytes
_PIECE = 2**21  # bytes that are read at a time

# What storage services and their clients raise beside OSError: botocore and aiohttp have families of their own.
_CLIENTS = ("botocore", "aiobotocore", "aiohttp", "gcsfs", "google")


class MediaStore:
    """Named files by video id. Any thread may call it; OSError is whatever storage fails with.

    Local files can be read by the user who runs the process alone.
    """

    def __init__(self, location: str | Path) -> None:
        """Raises UserError where nothing can be kept at ``location``, a folder or a URL."""
        self._name = absolute_place(str(location))
        self._local = None if "://" in self._name else Path(self._name)
        try:
            if self._local is not None and not self._local.exists():
                self._local.mkdir(mode=0o700, parents=True)
            # Other programs may write to the same bucket: a listing that is remembered may be wrong.
            self._filesystem, root = url_to_fs(self._name, use_listings_cache=False)
            self._root = root.rstrip("/")
            self._put(_MARK, _TEXT)
        except (OSError, ImportError, ValueError, NotImplementedError) as error:
            reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"videos cannot be kept in {self._name} ({reason}): choose another place") from None

    def check(self) -> None:
        """Write something and remove it. Raises OSError."""
        with _as_os_errors():
            self._put(_PROBE, os.urandom(_PROBED))
            self._filesystem.rm(self._path(_PROBE))

    def write(self, video_id: str, files: Mapping[str, bytes]) -> tuple[StoredFile, ...]:
        """Keep the files of a video. They are all there, durably, when this returns.

        In a local folder they appear all at once. Elsewhere each of them is whole or absent, and some may be left of
        what could not be finished.
        """
        if self._local is not None:
            with replacing(self._local / video_id) as partial:
                partial.mkdir(mode=0o700)
                for name, data in files.items():
                    (partial / name).write_bytes(data)
                    (partial / name).chmod(0o600)
        else:
            for name, data in files.items():
                self._put(f"{video_id}/{name}", data)
        return tuple(StoredFile(name, len(data), hashlib.sha256(data).hexdigest()) for name, data in files.items())

    def holds(self, video_id: str, file: StoredFile) -> bool:
        """Whether the file is there, in its full length. Raises OSError where the whole storage is away."""
        with _as_os_errors():
            try:
                return bool(self._filesystem.info(self._path(video_id, file.name))["size"] == file.size)
            except FileNotFoundError:
                # A disk that is not mounted, or a bucket that was renamed, is no reason to give up single videos.
                if not self._filesystem.exists(self._path(_MARK)):
                    raise OSError(f"{self._name} is not there, or not what it was: it has no {_MARK}") from None
                return False

    def read(self, video_id: str, name: str, start: int, end: int) -> Iterator[bytes]:
        """The bytes of a file from ``start`` up to but not including ``end``, in pieces. Raises OSError."""
        path = self._path(video_id, name)
        for offset in range(start, end, _PIECE):
            with _as_os_errors():
                piece = self._filesystem.cat_file(path, start=offset, end=min(offset + _PIECE, end))
            yield piece

    def remove(self, video_id: str) -> None:
        """Remove all files of a video, if there are any, finished or not."""
        unfinished = () if self._local is None else (f".{video_id}.partial", f".{video_id}.old")  # see files.replacing
        for name in (video_id, *unfinished):
            with _as_os_errors(), suppress(FileNotFoundError):
                self._filesystem.rm(self._path(name), recursive=True)
        if self._local is not None:
            sync(self._local)

    def _put(self, name: str, data: bytes) -> None:
        with _as_os_errors():
            self._filesystem.pipe_file(self._path(name), data)

    def _path(self, *names: str) -> str:
        return posixpath.join(self._root, *names)


@contextmanager
def _as_os_errors() -> Iterator[None]:
    """Turn what storage services' clients raise into OSError."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) or _family(error) not in _CLIENTS:
            raise
        raise OSError(" ".join(str(error).split()) or type(error).__name__) from error


def _family(error: Any) -> str:
    return type(error).__module__.partition(".")[0]
