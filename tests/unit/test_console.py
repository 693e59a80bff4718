"""What all jobs do at a terminal: shared options, exit statuses, progress."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import typer

from framegrove.config.model import Recipe
from framegrove.digits import world
from framegrove.errors import UserError
from framegrove.models.pretrained import embedded_model, read_shape
from jobs import console
from jobs.console import Display, one_line_errors, refuse_finished, refuse_taken


def ended_by(error: BaseException) -> int:
    with pytest.raises(typer.Exit) as ended, one_line_errors():
        raise error
    return ended.value.exit_code


def test_a_mistake_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    assert ended_by(UserError("no model\nthere")) == 1
    assert capfd.readouterr().err == "error: no model there\n"


def test_an_interruption_has_a_status_of_its_own(capfd: pytest.CaptureFixture[str]) -> None:
    assert ended_by(KeyboardInterrupt()) == 130
    assert capfd.readouterr().err == "stopped\n"


@pytest.mark.parametrize("defect", [ValueError("nine units"), OSError("disk"), RuntimeError("actor lost")])
def test_a_defect_shows_its_traceback(defect: Exception, capfd: pytest.CaptureFixture[str]) -> None:
    assert ended_by(defect) == 70
    said = capfd.readouterr().err
    assert "Traceback (most recent call last):" in said
    assert f"{type(defect).__name__}: {defect}" in said


def test_a_defect_is_one_json_object_where_the_log_is_json(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FRAMEGROVE_LOG", "json")
    assert ended_by(ValueError("nine units")) == 70
    (line,) = capfd.readouterr().err.splitlines()
    assert json.loads(line)["level"] == "critical"
    assert "ValueError: nine units" in json.loads(line)["traceback"]


def test_a_silent_task_is_mentioned(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(console, "_TICK", 0.01)
    with Display() as display:
        display.begin("starting the engine", patience=0.1)
        display.show(0.25, "1 of 4")
        deadline = time.monotonic() + 20
        said = ""
        while said.count("still") < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
            said += capsys.readouterr().out
    assert said.startswith("starting the engine ...\nstill starting the engine after 0 s, 25%, 1 of 4\nstill starting")


def test_the_time_left_is_guessed_from_what_was_seen_to_get_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: clock[0])
    with Display() as display:
        display.begin("training")
        for clock[0], done in ((0.0, 0.5), (12.0, 0.5), (24.0, 0.6), (36.0, 0.8), (48.0, 1.0)):
            display.show(done, "steps")
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("training: ")]
    assert said == [
        "training: 50%, steps (12 s)",
        "training: 60%, steps (24 s, about 96 s left)",
        "training: 80%, steps (36 s, about 24 s left)",
        "training: 100%, steps (48 s)",
    ]


def test_what_is_finished_is_replaced_only_if_that_is_asked_for(tmp_path: Path) -> None:
    refuse_finished(tmp_path / "report.json", overwrite=False)
    (tmp_path / "report.json").touch()
    refuse_finished(tmp_path / "report.json", overwrite=True)
    with pytest.raises(UserError, match=r"a finished run is in .* give another --out, or --overwrite to replace it"):
        refuse_finished(tmp_path / "report.json", overwrite=False)


def test_a_folder_is_replaced_only_if_it_is_of_the_same_kind(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    refuse_taken(folder, "framegrove.json", overwrite=False)
    folder.mkdir()
    (folder / "thesis.txt").touch()
    with pytest.raises(UserError, match="already exists: give another --out, or --overwrite to replace it"):
        refuse_taken(folder, "framegrove.json", overwrite=False)
    with pytest.raises(UserError, match=r"has no framegrove\.json and so is not from this command: remove it"):
        refuse_taken(folder, "framegrove.json", overwrite=True)
    (folder / "framegrove.json").touch()
    refuse_taken(folder, "framegrove.json", overwrite=True)


@pytest.mark.parametrize(("seconds", "said"), [(44.6, "45 s"), (720, "12 min"), (11_100, "3 h 05 min")])
def test_a_length_of_time_in_words(seconds: float, said: str) -> None:
    assert console.duration(seconds) == said


def test_a_prompt_that_a_model_does_not_know_is_told() -> None:
    _, _, recipe = read_shape(embedded_model(), None)
    drawn = [world.caption(objects) for objects in world.prompts(200, seed=3)]
    assert [prompt for prompt in drawn if recipe.outside(prompt)] == []
    assert recipe.outside("A red 3  moves left and right. ") is None
    for strange in ("a dog runs on the beach", "a red 3 moves", "a red 3 moves left and right on the beach"):
        advice = recipe.outside(strange)
        assert advice is not None
        assert "handwritten digits" in advice
        assert "beach" not in advice, "prompts do not belong in the log"
    assert Recipe().outside("a dog runs on the beach") is None


def test_the_embedded_models_words_stand_in_help() -> None:
    assert "handwritten digits" in console._embedded_knows()
