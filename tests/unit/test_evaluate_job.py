"""jobs.evaluate over a cache, with a tiny model and the oracle as judge: neither Ray nor vLLM in here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from jobs import evaluate
from tests.tiny import save_tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny")


def run(model: Path, cache: Path, out: Path, *more: str) -> Result:
    given = ["--policies", "linear,tof", "--budgets", "1x,2x", "--prompts", "1", "--digits", "1"]
    given += ["--model", str(model), "--judge", "oracle", "--out", str(out), *more]
    result = CliRunner().invoke(evaluate.app, [*given, "--cache", str(cache)])
    assert result.exit_code == 0, result.output
    return result


def rows(out: Path) -> Sequence[dict[str, object]]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()[1:]]


def test_the_second_time_nothing_is_sampled(model: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = run(model, cache, tmp_path / "first")
    assert "0 units were sampled" not in first.output
    second = run(model, cache, tmp_path / "second")
    assert "0 units were sampled and 0 verdicts given" in second.output
    assert rows(tmp_path / "second") == rows(tmp_path / "first")
    assert [row["policy"] for row in rows(tmp_path / "first")] == ["single", "linear", "tof"]
    for row in rows(tmp_path / "first"):
        assert float(str(row["seconds"])) > 0
        assert 0 < float(str(row["generators_busy"])) <= 1
        assert row["verifiers_busy"] == 0  # the oracle takes no time
        assert row["verifier_score"] == (0.98 if row["fully_right"] else 0.02)
    for name in ("results.parquet", "curves.png", "summary.json"):
        assert (tmp_path / "second" / name).is_file()
    again = run(model, cache, tmp_path / "second", "--generators", "2")
    assert "0 units" in again.output
    assert len(rows(tmp_path / "second")) == 3


def test_virtual_seconds_are_not_mixed(model: Path, tmp_path: Path) -> None:
    """A ledger of two generators does not go on with four."""
    run(model, tmp_path / "cache", tmp_path / "out")
    given = ["--budgets", "1x", "--prompts", "1", "--digits", "1", "--model", str(model), "--judge", "oracle"]
    given += ["--out", str(tmp_path / "out"), "--replay", str(tmp_path / "cache"), "--generators", "4"]
    result = CliRunner().invoke(evaluate.app, given)
    assert result.exit_code == 1
    assert "holds results of another evaluation" in result.stderr
