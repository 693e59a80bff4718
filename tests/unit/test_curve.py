"""The loss curve on disk, its picture, and the status file: what a run writes and another process follows."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from framegrove.training import curve
from framegrove.training.status import STATUS, Status, StatusFile, StatusReader


def write_lines(folder: Path, *steps: int, torn: str = "") -> None:
    (folder / curve.LINES).write_text("".join(json.dumps({"step": step}) + "\n" for step in steps) + torn)


def test_an_incomplete_last_line_is_skipped(tmp_path: Path) -> None:
    write_lines(tmp_path, 1, torn='{"step": 2')
    assert curve.read(tmp_path / curve.LINES) == [{"step": 1}]


def test_a_curve_opened_at_a_step_forgets_what_came_after(tmp_path: Path) -> None:
    (tmp_path / curve.LINES).write_text("".join(f'{{"step": {n}, "seconds": {n}}}\n' for n in (2, 4, 6)))
    opened = curve.Curve(tmp_path, 5)
    assert opened.seconds == 4
    opened.add({"step": 6, "seconds": 9})
    assert [line["seconds"] for line in curve.read(tmp_path / curve.LINES)] == [2, 4, 9]
    assert [path.name for path in tmp_path.iterdir()] == [curve.LINES]


def test_a_follower_sees_new_lines_and_steps_back(tmp_path: Path) -> None:
    follower = curve.Follower(tmp_path)
    assert follower.news() == (None, [])
    write_lines(tmp_path, 2)
    assert follower.news() == (None, [{"step": 2}])
    write_lines(tmp_path, 2, 4, 6, torn='{"st')
    assert follower.news() == (None, [{"step": 4}, {"step": 6}])
    assert follower.news() == (None, [])
    write_lines(tmp_path, 2, 4)
    assert follower.news() == (4, [])
    write_lines(tmp_path, 2, 4, 6)
    assert follower.news() == (None, [{"step": 6}])
    write_lines(tmp_path, 3, 5, 7, 9, 11)
    assert follower.news() == (0, [{"step": step} for step in (3, 5, 7, 9, 11)])
    (tmp_path / curve.LINES).unlink()
    assert follower.news() == (0, [])


def test_a_follower_reads_only_what_is_new(tmp_path: Path) -> None:
    """What it has read already may as well be gone: it is overwritten here, and nobody notices."""
    write_lines(tmp_path, *range(10, 60))
    follower = curve.Follower(tmp_path)
    with (tmp_path / curve.LINES).open("r+b") as file:
        file.write(b"?" * 100)
        file.seek(0, os.SEEK_END)
        file.write(b'{"step": 60}\n')
    assert follower.news() == (None, [{"step": 60}])
    assert [line["step"] for line in follower.lines] == list(range(10, 61))


def a_line(step: int, phase: str, **losses: float) -> dict[str, Any]:
    return {"step": step, "phase": phase, "losses": losses}


def test_the_picture_names_the_phases_and_leaves_a_gap_where_nothing_was_trained(tmp_path: Path) -> None:
    lines = [
        a_line(5, "image", loss=0.5, stage0=0.2, stage1=0.7, image=0.5),
        a_line(10, "image", loss=0.4, stage0=0.2, stage1=0.6, image=0.4),
        a_line(15, "low", loss=0.3, stage0=0.3, image=0.4, video=0.2),
        a_line(30, "high", loss=0.2, stage0=0.1, stage1=0.3, image=0.3, video=0.1),
    ]
    by_stage, by_kind = curve.figure_of(lines).axes
    for panel in (by_stage, by_kind):
        assert [(text.get_text(), text.get_position()[0]) for text in panel.texts] == [
            ("image", 5.0),
            ("low", 12.5),
            ("high", 22.5),
        ]
    drawn = {line.get_label(): line.get_ydata() for line in by_stage.lines}
    assert list(drawn) == ["loss", "stage0", "stage1"]
    assert [value for value in drawn["stage1"] if not math.isnan(value)] == [0.7, 0.6, 0.3]
    assert math.isnan(drawn["stage1"][2])
    curve.draw(lines, tmp_path / curve.PICTURE)
    assert (tmp_path / curve.PICTURE).read_bytes().startswith(b"\x89PNG")


def test_a_status_is_news_once(tmp_path: Path) -> None:
    file = StatusFile(tmp_path)
    file.say("left by an earlier session")
    reader = StatusReader(tmp_path)
    assert reader.news() is None
    file.say("loading the model")
    assert reader.news() == Status("loading the model")
    assert reader.news() is None
    file.step(1)
    file.step(2)  # within a second of the one before: not written
    assert reader.news() == Status("training", 1)
    assert json.loads((tmp_path / STATUS).read_text()) == {"doing": "training", "step": 1}
