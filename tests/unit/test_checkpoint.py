"""Checkpoints and curves on disk: found again, of one run only, whole or passed over."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from framegrove.errors import UserError
from framegrove.training import checkpoint, curve
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
    with pytest.raises(UserError, match="with --workers 1, not 2"):
        checkpoint.step_of(path, make_config(Path("somewhere")), workers=2)
    (path / "run.json").write_text("{")
    with pytest.raises(UserError, match="is not a checkpoint"):
        checkpoint.step_of(path, make_config(Path("somewhere")))


def write_lines(folder: Path, *steps: int, torn: str = "") -> None:
    (folder / curve.LINES).write_text("".join(json.dumps({"step": step}) + "\n" for step in steps) + torn)


def test_a_torn_line_of_the_curve_is_passed_over(tmp_path: Path) -> None:
    write_lines(tmp_path, 1, torn='{"step": 2')
    assert curve.read(tmp_path / curve.LINES) == [{"step": 1}]


def test_a_curve_opened_at_a_step_forgets_what_came_after(tmp_path: Path) -> None:
    (tmp_path / curve.LINES).write_text("".join(f'{{"step": {n}, "seconds": {n}}}\n' for n in (2, 4, 6)))
    opened = curve.Curve(tmp_path, 5)
    assert opened.seconds == 4
    opened.add({"step": 6, "seconds": 9})
    assert [line["seconds"] for line in curve.read(tmp_path / curve.LINES)] == [2, 4, 9]


def test_a_follower_sees_new_lines_and_steps_back(tmp_path: Path) -> None:
    write_lines(tmp_path, 2)
    follower = curve.Follower(tmp_path)
    assert follower.news() == (None, [])
    write_lines(tmp_path, 2, 4, 6, torn='{"st')
    assert follower.news() == (None, [{"step": 4}, {"step": 6}])
    write_lines(tmp_path, 2, 4)
    assert follower.news() == (4, [])
    write_lines(tmp_path, 2, 4, 6)
    assert follower.news() == (None, [{"step": 6}])
