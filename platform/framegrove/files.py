"""Files that are never half-written, storage that is waited for, and what tells one run from another."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, TypeVar

from framegrove.errors import UserError

_log = logging.getLogger(__name__)

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # a disk, a quota, or a limit on files: waiting makes no room
_PATIENCE_S, _PAUSE_S = 300.0, 2.0
_SMALL = 2**26  # bytes of a folder that is read as a whole


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path beside ``path`` to write a file or a folder to; it takes ``path``'s place once the block ends well.

    When the block raises, ``path`` stays as it was and what was written is removed. Contents are on the disk before
    the name changes, so that a power cut leaves either the old or the new file. A folder replaces a folder; a crash
    between the two renames that this takes leaves the old one beside it, as ``.NAME.old``. Two processes that write
    the same ``path`` at the same time are not provided for.

    >>> with replacing(Path("runs/report.json")) as partial:
    ...     partial.write_text("{}")
    """
    partial = path.with_name(f".{path.name}.partial")
    _remove(partial)
    try:
        yield partial
        for written in (*partial.rglob("*"), partial) if partial.is_dir() else (partial,):
            sync(written)
        if partial.is_dir() and path.is_dir():  # rename does not replace a folder that is not empty
            _replace_folder(partial, path)
        else:
            os.replace(partial, path)
        sync(path.parent)
    except BaseException:
        _remove(partial)
        raise


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of it: a disk that is nearly full takes less than it is given, and only then raises OSError."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


class InUse(UserError):
    """Another process has what this one needs for itself."""


def locked(path: Path, taken: str) -> IO[str]:
    """A file at ``path`` that no other process can have locked while this one is open; it holds nothing.

    The lock goes with the process that has it. Storage that knows no locks gives none, with a warning. Raises InUse
    with the sentence ``taken`` where another process has it, OSError where there can be no file.
    """
    file = path.open("w", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise InUse(taken) from None
    except OSError as error:
        _log.warning("%s cannot be locked (%s): see that no two processes use its folder", path, error.strerror)
    return file


def whole_lines(path: Path) -> list[Any]:
    """The values in a file of JSON lines; none where there is no file. A torn last line is cut off, to be written anew.

    Raises UserError where another line is no JSON.
    """
    if not path.is_file():
        return []
    text = path.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    if len(whole) < len(text):
        with path.open("r+b") as torn:
            torn.truncate(len(whole))
    try:
        return [json.loads(line) for line in whole.splitlines()]
    except ValueError:
        raise damaged(path) from None


def damaged(path: Path) -> UserError:
    """What to tell of a file that does not hold what was written there."""
    return UserError(f"{path} is damaged, not all of its lines are as they were written: restore it, or do without it")


def append_line(path: Path, value: Any) -> None:
    """Add a value to a file of JSON lines; when this returns it is on the disk."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(value) + "\n")
        file.flush()
        os.fsync(file.fileno())


def write_lines(path: Path, values: Iterable[Any]) -> None:
    """Write a file of JSON lines as a whole, in the place of the one that is there."""
    with replacing(path) as partial:
        partial.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")


Returned = TypeVar("Returned")


class StorageFailed(UserError):
    """No room, or storage that stayed away. ``reason`` is what the last try has met with."""

    def __init__(self, message: str, reason: str = "", full: bool = False) -> None:
        super().__init__(message)
        self.reason, self.full = reason, full


def patiently(doing: str, act: Callable[[], Returned]) -> Returned:
    """What ``act`` returns; where it raises OSError it is called again, for five minutes.

    ``doing`` is for the log: "writing the checkpoint". Raises StorageFailed, at once where the disk is full.
    """
    began = time.monotonic()
    while True:
        try:
            return act()
        except OSError as error:
            waited, full = time.monotonic() - began, error.errno in _FULL
            if full or waited >= _PATIENCE_S:
                todo = "make room" if full else "see to the storage"
                said = f"{doing} failed ({error}): {todo}, and run the same command again"
                raise StorageFailed(said, error.strerror or str(error), full) from error
            _log.warning("%s failed (%s): trying again for %.0f s more", doing, error, _PATIENCE_S - waited)
        time.sleep(_PAUSE_S)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, whole or not at all."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def identity(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What decides a run's outcome, in the form in which a JSON file gives it back: tuples are lists, and so on."""
    return dict(json.loads(json.dumps(facts)))


def difference(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str | None:
    """The first fact on which two identities differ, for a sentence: "its seed is 1 and here it is 2"."""
    for key in sorted({*theirs, *ours}):
        if theirs.get(key) != ours.get(key):
            return f"its {key} is {_said(theirs.get(key))} and here it is {_said(ours.get(key))}"
    return None


def _said(value: Any) -> str:
    return "not given" if value is None else repr(value)


def difference_from(file: Path, ours: Mapping[str, Any]) -> str | None:
    """The first fact on which what an earlier run has left in a JSON file differs from ours; None without a file."""
    return difference(json.loads(file.read_text(encoding="utf-8")), ours) if file.is_file() else None


def fingerprint(folder: Path, *read: object) -> str:
    """Changes whenever a file below ``folder`` does, or what else is given (how it is read).

    Small folders are told by what stands in them, so that a copy is the same; large ones by sizes and times.
    """
    stats = {path: path.stat() for path in sorted(path for path in folder.rglob("*") if path.is_file())}
    if sum(stat.st_size for stat in stats.values()) <= _SMALL:
        facts: object = contents(folder)
    else:
        facts = [(str(path.relative_to(folder)), stat.st_size, stat.st_mtime_ns) for path, stat in stats.items()]
    return hashlib.blake2b(repr((facts, read)).encode(), digest_size=12).hexdigest()


def contents(folder: Path) -> str:
    """Changes whenever what stands in a file below ``folder`` does, wherever the folder is; notes (.md) do not count.

    Reads everything: a second for a gigabyte or two.
    """
    digest = hashlib.blake2b(digest_size=12)
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".md"):
        with path.open("rb") as file:
            each = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{path.relative_to(folder).as_posix()} {each}\n".encode())
    return digest.hexdigest()


def _replace_folder(partial: Path, path: Path) -> None:
    old = path.with_name(f".{path.name}.old")
    _remove(old)
    os.replace(path, old)
    os.replace(partial, path)
    _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Make sure that a file's contents, or the names in a folder, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
