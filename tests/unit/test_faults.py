"""The bench of faults: how a run's curve is compared with an undisturbed one's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from framegrove.training import curve
from framegrove.training.resume import HISTORY
from jobs.benches.faults import FAULTS, Run, _compared


def a_run(out: Path, losses: dict[int, float]) -> Run:
    out.mkdir()
    lines = [{"step": step, "losses": {"loss": loss, "stage0": 1.0}} for step, loss in losses.items()]
    (out / curve.LINES).write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    events = ("started", "set aside", "resumed")
    (out / HISTORY).write_text("".join(f"{json.dumps({'event': event})}\n" for event in events))
    return Run(out / "config.yaml", out, "plain")


@pytest.mark.parametrize(
    ("losses", "far"),
    [
        ({1: 2.0, 2: 1.5}, 0.0),
        ({1: 2.0, 2: 1.25}, 0.25),
        ({1: 2.0}, float("inf")),
        ({1: 2.0, 2: 1.5, 3: 1.0}, float("inf")),
        ({}, float("inf")),
    ],
)
def test_a_curve_is_the_undisturbed_one_or_it_is_not(losses: dict[int, float], far: float, tmp_path: Path) -> None:
    whole = a_run(tmp_path / "whole", {1: 2.0, 2: 1.5})
    found = _compared(FAULTS[0], a_run(tmp_path / "cut", losses), whole)
    assert (found.ours, found.met) == (far, far == 0)
    assert "a worker killed" in found.what
    assert "(2 starts)" in found.what
