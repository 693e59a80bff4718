"""Writing checkpoints: beside the training, waited for, and what becomes of it when storage fails."""

from __future__ import annotations

import errno
import logging
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from framegrove import files
from framegrove.training import checkpoint
from framegrove.training.checkpoint import About
from framegrove.training.fragments import WEIGHTS, Counts, File, Fragment, Fragments, write
from framegrove.training.saver import CheckpointFailed, Saver
from tests.unit.test_checkpoint import Alone

ROOT = Path(__file__).parents[2]


class Weight(Alone):
    """An engine of one parameter."""

    def __init__(self) -> None:
        self.weight = torch.zeros(1000)

    def fragments(self) -> list[Fragment]:
        return [Fragment(WEIGHTS, "a", 0, self.weight)]

    def counts(self) -> Counts:
        return Counts(1, {})

    def gathered(self, texts: Sequence[str], aside: bool = False) -> list[str]:
        return list(texts)


def about(step: int) -> About:
    return About(step, "only", {}, "plain", 1, (), "vae", {})


def test_training_goes_on_while_a_checkpoint_is_written_and_the_next_one_waits(tmp_path: Path) -> None:
    gate = threading.Event()

    def slowly(folder: Path, rank: int, held: Sequence[Fragment]) -> list[File]:
        gate.wait(60)
        return write(folder, rank, held)

    engine = Weight()
    saver = Saver(tmp_path, engine, 7, write_files=slowly)
    engine.weight.fill_(1)
    saver.save(about(1))
    engine.weight.fill_(2)  # the next step, before anything of the last is on the disk
    saver.check()
    assert checkpoint.newest(tmp_path) is None
    threading.Timer(0.2, gate.set).start()
    saver.save(about(2))
    saver.wait()
    for step in (1, 2):
        held = checkpoint.opened(checkpoint.path_of(tmp_path, step))
        values = Fragments(held.path, held.files).read(WEIGHTS, "a", 0, 1000)
        assert torch.equal(values, torch.full((1000,), float(step)))


def test_a_full_disk_is_one_sentence_and_the_last_good_checkpoint_intact(tmp_path: Path) -> None:
    def full(folder: Path, rank: int, held: Sequence[Fragment]) -> list[File]:
        (folder / "begun").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    saver = Saver(tmp_path, Weight(), 7)
    saver.save(about(1))
    saver.wait()
    saver = Saver(tmp_path, Weight(), 7, write_files=full)
    saver.save(about(2))
    with pytest.raises(CheckpointFailed, match=r"after step 2 cannot .* left on device; the last .* step-0000001") as e:
        saver.wait()
    assert "\n" not in str(e.value)
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000001"]
    found, _ = checkpoint.newest_whole(tmp_path, Alone())
    assert found is not None
    assert found.about.step == 1


def test_a_limit_of_the_kernels_is_a_full_disk_too(tmp_path: Path) -> None:
    """No fake: the kernel refuses to let a file grow beyond the limit."""
    code = (
        "import resource, sys; from pathlib import Path; from tests.unit.test_saver import Weight, about\n"
        "from framegrove.training.saver import Saver\n"
        "saver = Saver(Path(sys.argv[1]), Weight(), 7); saver.save(about(1)); saver.wait()\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000)); saver.save(about(2)); saver.wait()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert "CheckpointFailed: the checkpoint after step 2 cannot be written" in done.stderr
    assert "File too large" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000001"]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 2000


def test_storage_that_is_gone_for_a_while_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(files, "_PAUSE_S", 0.05)
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    saver = Saver(folder, Weight(), 7)
    folder.rename(tmp_path / "unmounted")
    with caplog.at_level(logging.WARNING):
        saver.save(about(1))
        time.sleep(0.3)
        assert not folder.exists(), "nothing is written in the place of what is gone"
        (tmp_path / "unmounted").rename(folder)
        saver.wait()
    assert "writing the checkpoint after step 1 failed" in caplog.text
    assert "trying again" in caplog.text
    assert checkpoint.newest(folder) is not None


def test_storage_that_stays_away_ends_the_run_with_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_PAUSE_S", 0.01)
    monkeypatch.setattr(files, "_PATIENCE_S", 0.05)
    saver = Saver(tmp_path / "gone", Weight(), 7)
    saver.save(about(1))
    with pytest.raises(CheckpointFailed, match=r"there is none before it\): see to the storage"):
        saver.wait()
