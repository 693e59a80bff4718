"""What trainers of small models share: the average of the weights, checkpoints, the log."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from framegrove.errors import UserError
from framegrove.files import append_line
from framegrove.models.trainer_state import (
    check_same_run,
    read_checkpoint,
    save_checkpoint,
    update_average,
)


def test_the_average_forgets_the_first_weights_quickly_and_later_ones_slowly() -> None:
    averaged = [torch.zeros(2)]
    update_average(averaged, [torch.ones(2)], decay=0.99, updates=1)
    assert averaged[0].tolist() == pytest.approx([0.9, 0.9])
    update_average(averaged, [torch.zeros(2)], decay=0.99, updates=10_000)
    assert averaged[0].tolist() == pytest.approx([0.9 * 0.99] * 2)


def test_a_checkpoint_is_read_back_or_refused_in_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    assert read_checkpoint(path) is None
    save_checkpoint(path, {"weights": [torch.arange(3)], "step": 4})
    held = read_checkpoint(path)
    assert held is not None
    assert held["weights"][0].tolist() == [0, 1, 2]
    check_same_run(path, {"seed": 1}, {"seed": 1})
    with pytest.raises(UserError, match=r"of another configuration \(its seed is 1 and here it is 2\)"):
        check_same_run(path, {"seed": 1}, {"seed": 2})
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(UserError, match="not a readable checkpoint"):
        read_checkpoint(path)


def test_a_log_grows_by_lines(tmp_path: Path) -> None:
    for step in (1, 2):
        append_line(tmp_path / "log.jsonl", {"step": step})
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]
