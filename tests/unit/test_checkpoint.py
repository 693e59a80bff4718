"""Checkpoints: found again, for one run only, whole or not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from framegrove.errors import UserError
from framegrove.training import checkpoint
from tests.tiny_training import make_config


def save(folder: Path, step: int) -> Path:
    return checkpoint.save(folder, step, make_config(Path("somewhere")), lambda path: None)


def test_the_newest_is_found_and_old_ones_go(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path) is None
    for step in (5, 10, 15):
        save(tmp_path, step)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-0000010", "step-0000015"]
    newest = checkpoint.newest(tmp_path)
    assert newest is not None
    assert checkpoint.step_of(newest, make_config(Path("somewhere"))) == 15


def test_what_breaks_off_has_no_name(tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        checkpoint.save(tmp_path, 5, make_config(Path("somewhere")), write)
    assert checkpoint.newest(tmp_path) is None
    save(tmp_path, 5)
    assert not list(tmp_path.glob("*/half"))


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, 5)
    with pytest.raises(UserError, match=r"another configuration \(its seed is 0 and here it is 3\)"):
        checkpoint.step_of(path, make_config(Path("somewhere"), seed=3))
    assert checkpoint.step_of(path, make_config(Path("somewhere"), log_every=7)) == 5
    phases = [phase.model_dump(mode="json") for phase in make_config(Path("somewhere")).phases]
    phases[1]["steps"] = 5
    with pytest.raises(UserError, match=r"\(its phases\.1\.steps is 4 and here it is 5\)"):
        checkpoint.step_of(path, make_config(Path("somewhere"), phases=phases))
    with pytest.raises(UserError, match="with --workers 1, not 2"):
        checkpoint.step_of(path, make_config(Path("somewhere")), workers=2)
    (path / "run.json").write_text("{")
    with pytest.raises(UserError, match="is not a checkpoint"):
        checkpoint.step_of(path, make_config(Path("somewhere")))
