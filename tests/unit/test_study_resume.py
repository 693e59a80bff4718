"""A study's folder after kills, losses and failures: nothing is lost, counted twice, or touched that is not its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import typer
from typer.testing import CliRunner

from framegrove.errors import UserError
from framegrove.evaluation.study_results import Video
from jobs import evaluate, evidence, generate, sweep, train
from jobs.studies import notes as study_notes
from jobs.studies.kinds import Kind
from jobs.studies.notes import Notes, rows_of
from jobs.studies.tuning import Brake

KIND = cast(Kind, SimpleNamespace(facts=lambda: {"seed": 1}, config=SimpleNamespace(prompt_count=2)))


def video(prompt: int) -> Video:
    return Video(prompt, f"prompt {prompt}", 0.5, False, 1.0, 2.0, 1e9, 1e9, 1e9, 0.0, 1.0)


def opened(out: Path, **options: bool) -> list[study_notes.Begun]:
    """The trials of a study that is resumed."""
    with sweep._folder(out, KIND, resume=True, overwrite=False, **options) as notes:
        return notes.trials


def test_a_study_removes_nothing_that_is_not_from_a_study(tmp_path: Path) -> None:
    (tmp_path / "trials").mkdir()
    (tmp_path / "trials" / "precious.txt").touch()
    for overwrite in (False, True):
        with (
            pytest.raises(UserError, match="has trials, which is from no study"),
            sweep._folder(tmp_path, KIND, resume=False, overwrite=overwrite),
        ):
            pass
    assert (tmp_path / "trials" / "precious.txt").is_file()


@pytest.mark.parametrize(
    ("there", "app", "given"),
    [
        ("tree.html", sweep.app, ["--study", "budget"]),
        ("results.jsonl", sweep.app, ["--study", "budget", "--overwrite"]),
        ("trials.jsonl", generate.app, ["--prompt", "a red 3 moves left and right"]),
        ("checkpoints", generate.app, ["--prompt", "a red 3 moves left and right", "--overwrite"]),
        ("tree.html", train.app, ["--config", "jobs/configs/digits_demo.yaml", "--engine", "plain"]),
        ("trials.jsonl", evaluate.app, ["--prompts", "1"]),
    ],
)
def test_results_of_another_command_are_not_mixed_with(
    there: str, app: typer.Typer, given: list[str], tmp_path: Path
) -> None:
    (tmp_path / there).touch()
    result = CliRunner().invoke(app, [*given, "--out", str(tmp_path)])
    assert result.exit_code == 1, result.output
    assert f"({there}): give another --out" in result.stderr
    assert [each.name for each in tmp_path.iterdir()] == [there]


def finished(out: Path, rows: int) -> None:
    """A study with one trial that has finished, with so many rows."""
    notes = Notes(out, KIND.facts())
    notes.begin({"cap": 2})
    for prompt in range(rows):
        rows_of(notes.folder(1)).add(video(prompt))
    notes.end(1, "finished")


def test_a_finished_trial_whose_rows_are_gone_is_carried_out_again(tmp_path: Path) -> None:
    finished(tmp_path, rows=2)
    assert [each.state for each in opened(tmp_path)] == ["finished"]
    (tmp_path / "trials" / "0001" / "videos.jsonl").unlink()
    rows_of(tmp_path / "trials" / "0001").add(video(0))
    assert [(each.number, each.params, each.state) for each in opened(tmp_path)] == [(1, {"cap": 2}, None)]
    rows_of(tmp_path / "trials" / "0001").add(video(1))
    Notes(tmp_path, KIND.facts()).end(1, "finished")
    assert [each.state for each in opened(tmp_path)] == ["finished"], "its end after that counts"


def test_failed_trials_are_carried_out_again_where_that_is_wanted(tmp_path: Path) -> None:
    notes = Notes(tmp_path, KIND.facts())
    for cap in (2, 3):
        notes.begin({"cap": cap})
        notes.end(cap - 1, "failed" if cap == 2 else "stopped", "why")
    assert [each.state for each in opened(tmp_path)] == ["failed", "stopped"]
    assert [each.state for each in opened(tmp_path, retry_failed=True)] == [None, "stopped"]
    refused = CliRunner().invoke(sweep.app, ["--study", "budget", "--retry-failed", "--out", str(tmp_path)])
    assert "--retry-failed is for a study that is resumed" in refused.stderr


@pytest.mark.parametrize(
    "damage",
    [
        lambda lines: [lines[0], "no json", *lines[1:]],
        lambda lines: ["[1]", *lines[1:]],
        lambda lines: [lines[0], lines[2]],
        lambda lines: [lines[0], json.dumps({"what": 1})],
    ],
    ids=("no JSON", "no facts", "ended, not begun", "neither"),
)
def test_a_damaged_study_is_told_in_a_sentence(damage: Callable[[list[str]], list[str]], tmp_path: Path) -> None:
    finished(tmp_path, rows=2)
    ledger = study_notes.ledger_of(tmp_path)
    ledger.write_text("\n".join([*damage(ledger.read_text().splitlines()), ""]))
    with pytest.raises(UserError, match=r"trials\.jsonl is damaged"):
        opened(tmp_path)


def test_a_study_ends_when_trial_after_trial_fails_alike() -> None:
    def after(*ends: str | None) -> str:
        brake = Brake()
        for why in ends:
            brake.finished() if why is None else brake.failed(why)
        return brake.why

    assert after("a", "a") == after("a", "a", "b", "a", "a") == after("a", "a", None, "a", "a") == ""
    assert after("a", "no memory.", "no memory.", "no memory.").startswith(
        "3 trials in a row failed with: no memory; the study stops here."
    )


def test_a_lost_pool_ends_a_study_and_fails_no_trial() -> None:
    brake = Brake()
    brake.interrupted("the study's generators and verifiers were lost (ActorDiedError)")
    assert brake.why.endswith("continue the study by --resume")


def test_options_that_would_be_ignored_are_refused(tmp_path: Path) -> None:
    def said(app: typer.Typer, *given: Any) -> str:
        result = CliRunner().invoke(app, list(map(str, given)))
        assert result.exit_code == 1
        return result.stderr

    assert "budget tries every combination" in said(sweep.app, "--study", "budget", "--trials", 2, "--plan")
    assert "stand alone" in said(evidence.app, "--table", tmp_path, "--prompts", 5)
    assert "stand alone" in said(evidence.app, "--list", "--out", tmp_path)


def test_a_budget_that_is_named_twice_is_one() -> None:
    from framegrove.config.search import SearchConfig

    assert len(evaluate._settings("linear", "4x,4,4.0", SearchConfig())) == 1
