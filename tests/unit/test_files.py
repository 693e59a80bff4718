"""Files that are never half-written."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from framegrove.errors import UserError
from framegrove.files import contents, fingerprint, locked, replacing


def test_a_file_or_a_folder_takes_its_place_whole_or_not_at_all(tmp_path: Path) -> None:
    file, folder = tmp_path / "file", tmp_path / "folder"
    for content in ("one", "two"):
        with replacing(file) as partial:
            partial.write_text(content)
        with replacing(folder) as partial:
            (partial / "inside").mkdir(parents=True)
            (partial / "inside" / content).write_text(content)

    def fail() -> None:
        with replacing(file) as partial:
            partial.write_text("three")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert file.read_text() == "two"
    assert [path.name for path in sorted(folder.rglob("*"))] == ["inside", "two"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_files_of_one_folder_can_be_written_side_by_side(tmp_path: Path) -> None:
    """Whoever finishes must not stumble over what others are still writing there."""

    def write(index: int) -> None:
        with replacing(tmp_path / f"unit-{index}") as partial:
            partial.write_text(str(index))

    with ThreadPoolExecutor(8) as writers:
        list(writers.map(write, range(300)))
    assert {path.read_text() for path in tmp_path.iterdir()} == {str(index) for index in range(300)}


def test_contents_are_told_wherever_they_stand(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "part").mkdir(parents=True)
        (tmp_path / name / "part" / "weights").write_bytes(b"123")
    first, second = contents(tmp_path / "one"), contents(tmp_path / "two")
    assert first == second
    (tmp_path / "two" / "README.md").write_text("a note")
    assert contents(tmp_path / "two") == first
    (tmp_path / "two" / "part" / "weights").write_bytes(b"124")
    assert contents(tmp_path / "two") != first


def test_a_copy_of_a_small_folder_is_the_same_and_its_notes_do_not_count(tmp_path: Path) -> None:
    first, copy = tmp_path / "first", tmp_path / "copy"
    first.mkdir()
    (first / "weights").write_bytes(b"123")
    before = fingerprint(first, "float32")
    shutil.copytree(first, copy, copy_function=shutil.copyfile)  # with other times
    os.utime(copy / "weights", (1, 1))
    (copy / "README.md").write_text("about it")
    assert fingerprint(copy, "float32") == before
    assert fingerprint(copy, "bfloat16") != before
    (copy / "weights").write_bytes(b"124")
    assert fingerprint(copy, "float32") != before


def test_a_lock_is_had_by_one_at_a_time_and_goes_with_its_file(tmp_path: Path) -> None:
    with locked(tmp_path / "lock", "it is taken"), pytest.raises(UserError, match="it is taken"):
        locked(tmp_path / "lock", "it is taken")
    with locked(tmp_path / "lock", "it is taken"):
        pass


def test_storage_without_locks_gives_none_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked(tmp_path / "lock", "it is taken"), locked(tmp_path / "lock", "it is taken"):
        assert "cannot be locked" in caplog.text
