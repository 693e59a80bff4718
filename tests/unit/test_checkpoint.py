"""Checkpoints: whole or not there, the newest good one found, and no more of them than wanted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from framegrove.errors import UserError
from framegrove.training import checkpoint
from framegrove.training.checkpoint import About, Checkpoint
from framegrove.training.fragments import WEIGHTS, Counts, Fragment, write


class Alone:
    """The only worker of a run."""

    rank, world = 0, 1

    def most(self, count: int) -> int:
        return count

    def gathered(self, texts: list[str]) -> list[str]:
        return texts


def make(folder: Path, step: int, phase: str = "only", **losses: float) -> Path:
    """A whole checkpoint, as a saver makes it."""
    folder.mkdir(exist_ok=True)
    unfinished = checkpoint.unfinished_path(folder, step, 7)
    checkpoint.begin(unfinished, 0)
    files = write(unfinished, 0, [Fragment(WEIGHTS, "a", 0, torch.full((4,), float(step)))])
    about = About(step, phase, {"seed": 0}, "plain", 1, (), "vae", losses)
    path = checkpoint.path_of(folder, step)
    checkpoint.finish(unfinished, Checkpoint(path, about, Counts(step, {"a": step}), tuple(files)))
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_checkpoint_appears_when_it_is_whole(tmp_path: Path) -> None:
    unfinished = checkpoint.unfinished_path(tmp_path, 3, 7)
    checkpoint.begin(unfinished, 0)
    assert checkpoint.newest_whole(tmp_path, Alone()) == (None, [])
    path = make(tmp_path, 3)
    assert names(tmp_path) == ["step-0000003"]
    assert names(path) == ["index.json", "worker-00000-000.safetensors"]
    found, warnings = checkpoint.newest_whole(tmp_path, Alone())
    assert found is not None
    assert found == checkpoint.opened(path)
    assert (found.about.step, found.counts, warnings) == (3, Counts(3, {"a": 3}), [])


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("name", ["index.json", "worker-00000-000.safetensors"])
def test_a_damaged_newest_one_is_set_aside_by_name_and_the_one_before_is_used(name: str, tmp_path: Path) -> None:
    make(tmp_path, 3)
    path = make(tmp_path, 6)
    truncate(path / name)
    found, (warning,) = checkpoint.newest_whole(tmp_path, Alone())
    assert found is not None
    assert found.about.step == 3
    assert warning.startswith(f"{path} is damaged ({name} ")
    assert names(tmp_path) == ["damaged-step-0000006", "step-0000003"]
    make(tmp_path, 6)
    checkpoint.tidy(tmp_path, 2, 0)
    assert names(tmp_path) == ["step-0000003", "step-0000006"]


def test_a_run_whose_checkpoints_are_all_damaged_does_not_begin_anew(tmp_path: Path) -> None:
    for step in (3, 6):
        (make(tmp_path, step) / "index.json").unlink()
    for _ in range(2):  # nor when it is asked to once more
        with pytest.raises(UserError, match=r"every checkpoint in .* is damaged: put a good one there"):
            checkpoint.newest_whole(tmp_path, Alone())
    assert names(tmp_path) == ["damaged-step-0000003", "damaged-step-0000006"]


def test_the_last_and_the_best_of_the_phase_stay(tmp_path: Path) -> None:
    make(tmp_path, 1, "image", loss=0.1)
    for step, loss in ((2, 0.9), (3, 0.5), (4, 0.8), (5, 0.7)):
        make(tmp_path, step, "video", loss=loss)
    assert checkpoint.best(tmp_path) == tmp_path / "step-0000003"
    checkpoint.tidy(tmp_path, 2, 1)
    assert names(tmp_path) == ["step-0000003", "step-0000004", "step-0000005"]
    make(tmp_path, 6, "video", loss=0.9, held_out=0.3)
    make(tmp_path, 7, "video", loss=0.9, held_out=0.4)
    assert checkpoint.best(tmp_path) == tmp_path / "step-0000006"
    checkpoint.tidy(tmp_path, 1, 1)
    assert names(tmp_path) == ["step-0000006", "step-0000007"]


def test_what_a_killed_run_left_is_removed_and_what_a_living_one_writes_stays(tmp_path: Path) -> None:
    code = "import os, sys; from pathlib import Path; from framegrove.training import checkpoint\n"
    code += "checkpoint.begin(Path(sys.argv[1]), 0); os.kill(os.getpid(), 9)"
    orphan = checkpoint.unfinished_path(tmp_path, 3, 1)
    subprocess.run([sys.executable, "-c", code, str(orphan)], check=False, timeout=60)
    mine = checkpoint.unfinished_path(tmp_path, 3, 2)
    checkpoint.begin(mine, 0)
    elsewhere = [checkpoint.unfinished_path(tmp_path, 3, session) for session in (3, 4)]
    for path in elsewhere:  # on another machine, whose processes cannot be asked for
        checkpoint.begin(path, 0)
        (path / "owner.json").write_text(json.dumps({"host": "another", "process": 1, "started": "1"}))
    for path in (elsewhere[1], elsewhere[1] / "owner.json"):
        os.utime(path, (0, 0))
    assert orphan.exists()
    checkpoint.remove_orphans(tmp_path)
    assert set(tmp_path.iterdir()) == {mine, elsewhere[0]}


def test_a_checkpoint_of_an_earlier_version_is_not_taken_for_a_damaged_one(tmp_path: Path) -> None:
    old = tmp_path / "step-0000003"
    old.mkdir()
    (old / "run.json").write_text("{}")
    with pytest.raises(UserError, match="was written by an earlier version"):
        checkpoint.newest(tmp_path)


def test_a_try_that_failed_after_the_renaming_is_no_harm(tmp_path: Path) -> None:
    path = make(tmp_path, 3)
    whole = checkpoint.opened(path)
    checkpoint.finish(checkpoint.unfinished_path(tmp_path, 3, 7), whole)
    assert checkpoint.opened(path) == whole
