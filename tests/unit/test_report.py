from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from framegrove.data import digits
from framegrove.evaluation import report, tree_picture
from framegrove.evaluation.report import BranchView, Fate, Kind, SearchRecord, Span
from framegrove.types import Cost


def _record() -> SearchRecord:
    frames = digits.clip(seed=3, index=0).frames
    units = [frames[:1], *(frames[1 + 8 * i : 9 + 8 * i] for i in range(3))]
    won = [BranchView((1, *[0] * d), Fate.WINNER, units[d], score=0.4 + d) for d in range(4)]
    lost = [
        BranchView((0,), Fate.CUT, units[0], draft=True, verdicts=(("potential", 0.2),), flops=10),
        BranchView((2,), Fate.KEPT, units[0], score=0.7, verdicts=(("potential", 0.6), ("image", 0.5))),
        BranchView((2, 0), Fate.BET, units[1]),
    ]
    spans = (
        Span("generator 1", 0.0, 1.0, Kind.CERTAIN),
        Span("generator 2", 0.5, 2.0, Kind.WASTED),
        Span("verifier", 0.8, 1.2, Kind.SCORING),
        Span("verifier", 1.8, 3.0, Kind.SCORING),
    )
    return SearchRecord(
        prompt="a red 3 moves left and right", seed=5, policy="tof", budget=4.0, units=4, fps=8.0, frames=frames,
        winner=(1, 0, 0, 0), scores=(("panel", 0.9),), branches=tuple(lost + won), spans=spans,
        certain=Cost(100, 3000, 2.0), wasted=Cost(10, 300, 0.2), verifier=Cost(8, 60, 0.5), single=Cost(60, 1000, 1.0),
        seconds=3.0,
    )  # fmt: skip


def test_report_adds_up_and_is_json() -> None:
    said = json.loads(json.dumps(report.report_json(_record())))
    cost = said["cost"]
    parts = ("generator_certain", "generator_wasted", "verifier")
    for key in ("nfe", "flops", "seconds"):
        assert sum(cost[part][key] for part in parts) == pytest.approx(cost["total"][key])
    assert cost["in_single_samples"]["total"] == 3.36
    assert said["winner"]["path"] == [1, 0, 0, 0]
    assert [tuple(b["path"]) for b in said["branches"]][:3] == [(0,), (1,), (2,)]
    assert said["size"] == "64x64"


def test_overlap_is_counted_once() -> None:
    # Scoring 0.8-1.2 and 1.8-3.0, sampling 0.0-2.0.
    assert report.overlap_seconds(_record().spans) == pytest.approx(0.4 + 0.2)


def test_picture_shows_every_fate(tmp_path: Path) -> None:
    tree_picture.draw(_record(), tmp_path / "tree.png")
    with Image.open(tmp_path / "tree.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    for colour in tree_picture.FATE_COLOUR.values():
        wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (np.abs(pixels.astype(int) - wanted).max(1) <= 2).sum() > 50


def test_picture_of_an_unsearched_sample(tmp_path: Path) -> None:
    record = _record()
    path = tuple(b for b in record.branches if b.fate is Fate.WINNER)
    tree_picture.draw(dataclasses.replace(record, policy="none", branches=path, spans=()), tmp_path / "tree.png")
    with Image.open(tmp_path / "tree.png") as picture:
        assert picture.width > 1000
