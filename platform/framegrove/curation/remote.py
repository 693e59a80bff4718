"""Files wherever they are: on this machine, or at a URL that fsspec can open (s3://, gs://, https://)."""

from __future__ import annotations

import contextlib
import os
import posixpath
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from fsspec.core import url_to_fs

from framegrove.errors import UserError
from framegrove.media.frames import one_line

# What storage services and their clients raise beside OSError: botocore and aiohttp have families of their own.
_CLIENTS = ("botocore", "aiobotocore", "aiohttp", "gcsfs", "google")


class Unreachable(UserError):
    """A file or folder that is not there or may not be read; the message is one sentence that names it."""


def is_remote(location: str) -> bool:
    """Whether a location is a URL."""
    return "://" in location


def joined(folder: str, name: str) -> str:
    """A location below a folder."""
    return f"{folder.rstrip('/')}/{name}" if is_remote(folder) else os.path.join(folder, name)


def stem_of(location: str) -> str:
    """A location without the last suffix."""
    return posixpath.splitext(location)[0]


def is_folder(location: str) -> bool:
    """Whether there is a folder, or a prefix of names, at a location."""
    with _named(location):
        filesystem, path = _opened(location)
        return bool(filesystem.isdir(path))


def files_below(location: str) -> list[str]:
    """The locations of all files below a folder, sorted; hidden ones are left out."""
    with _named(location):
        filesystem, path = _opened(location)
        path = path.rstrip("/")
        names = [str(name)[len(path) + 1 :] for name in filesystem.find(path)]
    return [joined(location, name) for name in sorted(names) if not any(part[:1] == "." for part in name.split("/"))]


def exists(location: str) -> bool:
    """Whether there is a file at a location."""
    with _named(location):
        filesystem, path = _opened(location)
        return bool(filesystem.isfile(path))


def read_text(location: str) -> str:
    """A small text file in UTF-8."""
    with _named(location):
        filesystem, path = _opened(location)
        return str(filesystem.cat_file(path).decode("utf-8-sig"))


def version(location: str) -> str:
    """Changes whenever a file does, as far as that is known without reading it: its size, and a date or tag."""
    with _named(location):
        filesystem, path = _opened(location)
        info = filesystem.info(path)
        marks = [info.get(key) for key in ("size", "ETag", "etag", "mtime", "LastModified", "last_modified")]
        return "|".join("" if mark is None else str(mark) for mark in marks)


@contextlib.contextmanager
def fetched(location: str, part: tuple[int, int] | None = None) -> Iterator[Path]:
    """The file on this machine, or ``part`` (offset and size in bytes) of it, for as long as the block lasts.

    A local file is used where it is; anything else is copied into a temporary folder. Raises Unreachable.
    """
    if part is None and not is_remote(location):
        if not Path(location).is_file():
            reason = "Is a directory" if Path(location).is_dir() else "No such file or directory"
            raise Unreachable(f"{location} cannot be read ({reason})")
        yield Path(location)
        return
    with tempfile.TemporaryDirectory(prefix="framegrove-") as folder:
        copy = Path(folder) / (posixpath.basename(location.partition("?")[0]) or "file")
        with _named(location):
            filesystem, path = _opened(location)
            with filesystem.open(path, "rb") as given, copy.open("wb") as target:
                if part is None:
                    shutil.copyfileobj(given, target, 2**20)
                else:
                    _copy_part(given, target, *part)
        yield copy


@contextlib.contextmanager
def opened(location: str) -> Iterator[Any]:
    """A file for reading and seeking, wherever it is. Raises Unreachable."""
    with _named(location):
        filesystem, path = _opened(location)
        with filesystem.open(path, "rb") as file:
            yield file


def _copy_part(given: Any, target: Any, offset: int, size: int) -> None:
    given.seek(offset)
    while size and (data := given.read(min(size, 2**20))):
        target.write(data)
        size -= len(data)


def _opened(location: str) -> tuple[Any, str]:
    filesystem, path = url_to_fs(location)
    return filesystem, cast(str, path)


@contextlib.contextmanager
def _named(location: str) -> Iterator[None]:
    """Turn what can go wrong with a location into Unreachable, which names it."""
    try:
        yield
    except UserError:
        raise
    except ImportError as error:  # fsspec knows the protocol, and says which package it needs
        raise Unreachable(f"{location} cannot be read: {one_line(error)}") from None
    except OSError as error:
        raise Unreachable(f"{location} cannot be read ({error.strerror or one_line(error)})") from None
    except ValueError as error:
        raise Unreachable(f"{location} cannot be read ({one_line(error)})") from None
    except Exception as error:
        if type(error).__module__.split(".")[0] not in _CLIENTS:
            raise
        raise Unreachable(f"{location} cannot be read ({one_line(error)})") from None
