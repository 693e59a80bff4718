"""A unit's tokens are those of the paper, and every figure of the bench is there."""

from __future__ import annotations

import pytest
import torch

from framegrove.evaluation import bench_units
from tests.tiny import tiny_pipeline


def test_the_last_unit_of_ten_seconds_at_768p_has_the_papers_tokens() -> None:
    finding = bench_units.tokens(30, (96, 160), 3, 2)
    assert (finding.ours, finding.plain) == (15_360, 119_040)


def test_units_are_counted_and_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_units, "_UNITS", (0, 3, 5))
    monkeypatch.setattr(bench_units, "load_pipeline", tiny_pipeline)  # as large in latents as the embedded one
    findings = bench_units.units(torch.device("cpu"), 1)
    assert [finding.unit for finding in findings] == [""] * 3 + ["s"] * 3 + [""] * 3
    assert [finding.ours for finding in findings[:3]] == [16, 16 + 16 + 4 + 1, 16 + 16 + 4 + 3]
    assert all(finding.ours > 0 for finding in findings)
    assert [finding.met is None for finding in findings[3:6]] == [True, True, False]
