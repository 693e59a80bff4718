"""jobs.improve over a cache, with a tiny model: rounds follow each other, a killed loop goes on, guards are told."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner

from framegrove.config.base import load
from framegrove.config.improve import ImproveConfig
from framegrove.digits import world
from framegrove.errors import UserError
from framegrove.evaluation.guards import GuardRow, draw, instead, open_ledger, variety_of, verdicts
from framegrove.models.pretrained import load_pipeline
from jobs import collecting, improve, improving
from tests.tiny import save_tiny
from tests.tiny_training import PHASE

RED = "verifiers: [{name: red, kind: callable, function: 'tests.fakes:redness'}]\n"
APART = "verifiers: [{name: apart, kind: callable, function: 'tests.fakes:redness'}]\n"


def config_of(folder: Path, **changes: Any) -> dict[str, Any]:
    objective = {"stage_weights": [1, 1, 1], "preference": {"kind": "prefer", "beta": 100}}
    phase = PHASE | {"name": "learn", "units": 2, "steps": 2, "objective": objective, "images": 0.5}
    train = {
        "data": [{"path": f"collected/{name}", "weight": 1.0} for name in ("examples", "pairs")],
        "model": {"start": str(folder / "tiny")},
        "phases": [phase],
        "precision": "fp32",
        "tracking": {"to": "none"},
    }
    guard = {
        "prompts": str(folder / "held.txt"),
        "judge": str(folder / "apart.yaml"),
        "varied": 1,
        "same": 2,
        "gain": -1,
    }
    guard["settings"] = [{"policy": "single"}, {"policy": "linear", "budget": "2x"}]
    collect = {"prompts": str(folder / "prompts.txt"), "policy": "tree", "margin": 0, "least": 0}
    given = {"rounds": 2, "units": 2, "verifier": str(folder / "panel.yaml"), "collect": collect, "guard": guard}
    return given | {"train": train} | changes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("improve")
    save_tiny(made / "tiny")
    (made / "panel.yaml").write_text(RED)
    (made / "apart.yaml").write_text(APART)
    (made / "prompts.txt").write_text("a red 3\na blue 5\n")
    (made / "held.txt").write_text("a green 2\na red 7\n")
    (made / "improve.yaml").write_text(yaml.safe_dump(config_of(made)))
    return made


def run(folder: Path, out: Path, *more: str, status: int = 0) -> Result:
    given = ["--config", str(folder / "improve.yaml"), "--out", str(out), "--cache", str(folder / "cache")]
    result = CliRunner().invoke(improve.app, [*given, "--engine", "plain", *more])
    assert result.exit_code == status, result.output
    return result


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    run(folder, out)
    return out


def test_every_round_searches_with_the_model_of_the_one_before(folder: Path, whole: Path) -> None:
    report = json.loads((whole / "report.json").read_text())
    assert [each["round"] for each in report["rounds"]] == [1, 2]
    first, second = (json.loads((whole / f"round-{n}/collected/collection.json").read_text()) for n in (1, 2))
    assert first["made_by"] != second["made_by"]
    assert first["seed"] != second["seed"]
    rows = open_ledger(whole / "round-2/guards.jsonl", _facts(whole / "round-2/guards.jsonl")).rows
    assert {(row.prompt, row.setting) for row in rows} == {(p, s) for p in (0, 1) for s in ("single", "linear 2x")}
    assert {row.prompt: row.videos for row in rows if row.setting == "single"} == {0: 2, 1: 1}
    (varied,) = (row.variety for row in rows if row.variety is not None)
    assert varied > 0
    assert load_pipeline(whole).transformer.config == load_pipeline(folder / "tiny").transformer.config
    assert (whole / "improved.png").stat().st_size > 10_000
    _, second = report["rounds"]
    cost = sum(each[part]["flops"] for each in report["rounds"] for part in ("collected", "training"))
    (worth,) = second["instead"]
    assert worth["setting"] == "linear 2x"
    assert worth["saved"] > 0
    assert worth["videos"] == math.ceil(cost / worth["saved"])


def _facts(path: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(path.read_text().splitlines()[0])
    return facts


@pytest.mark.parametrize("killed_in", ["searching", "training", "judging"])
def test_a_killed_loop_goes_on_and_does_nothing_twice(
    folder: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_in: str
) -> None:
    out, left = tmp_path / "out", 3 if killed_in == "judging" else 1

    def dies(*given: Any, **named: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return real(*given, **named)

    target: Any = {"searching": collecting, "training": improve, "judging": improving._Look}[killed_in]
    name = {"searching": "crop_of", "training": "in_this_process", "judging": "_motion"}[killed_in]
    real = getattr(target, name)
    with monkeypatch.context() as patch:
        patch.setattr(target, name, dies)
        run(folder, out, status=130)
    run(folder, out)
    for name in ("round-1/guards.jsonl", "round-2/guards.jsonl"):
        ours, theirs = (sorted((each / name).read_text().splitlines()) for each in (out, whole))
        assert ours == theirs
    reports = [json.loads((each / "report.json").read_text())["rounds"] for each in (out, whole)]
    for one, other in zip(*reports, strict=True):
        assert one["over_first"] == other["over_first"]
        assert one["collected"]["pairs"] == other["collected"]["pairs"]


def test_a_training_that_was_killed_after_a_checkpoint_is_gone_on_with(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, real = tmp_path / "out", improve.in_this_process

    def dies(*given: Any, **named: Any) -> Any:
        real(*given, **named)
        raise KeyboardInterrupt  # with a model in its folder, as there is from the first checkpoint on

    with monkeypatch.context() as patch:
        patch.setattr(improve, "in_this_process", dies)
        run(folder, out, status=130)
    resumed: list[Path] = []

    def goes_on(config: Any, at: Path, *given: Any, **named: Any) -> Any:
        resumed.append(at)
        return real(config, at, *given, **named)

    monkeypatch.setattr(improve, "in_this_process", goes_on)
    run(folder, out)
    run(folder, out)
    assert [each.parent.name for each in resumed] == ["round-1", "round-2"]


def test_the_loop_ends_where_the_judge_finds_no_gain(folder: Path, tmp_path: Path) -> None:
    said = run(folder, tmp_path / "out", "--set", "guard.gain=0.9").output
    assert "the loop ends, and the model of round 0 is the best" in " ".join(said.split())
    assert not (tmp_path / "out" / "round-2").exists()
    assert not (tmp_path / "out" / "model").exists()


def test_what_cannot_be_improved_is_told(folder: Path, tmp_path: Path) -> None:
    (folder / "same.txt").write_text("a blue 5\na red 3\n")
    said = run(folder, tmp_path / "s", "--set", f"guard.prompts={folder / 'same.txt'}", status=1).output
    assert "are searched for, too: a model is held to others" in " ".join(said.split())
    assert "the oracle judges prompts of the digits world alone" in run(
        folder, tmp_path / "a", "--set", "guard.judge=oracle", status=1
    ).output.replace("\n", " ")
    given = config_of(folder)
    given["train"]["data"] = "elsewhere"
    with pytest.raises(ValueError, match=r"train\.data must name collected/examples"):
        ImproveConfig.model_validate(given)
    given = config_of(folder)
    given["guard"]["settings"] = [{"policy": "linear", "budget": "2x"}]
    with pytest.raises(ValueError, match="the first of the settings must be unsearched"):
        ImproveConfig.model_validate(given)


def test_the_shipped_configuration_loads() -> None:
    config = shipped()
    assert config.guard.settings[0].policy == "single"
    assert config.train.phases[0].objective.preference is not None


def test_no_pairs_left_is_one_sentence_with_the_numbers(folder: Path, tmp_path: Path) -> None:
    said = " ".join(run(folder, tmp_path / "out", "--set", "collect.margin=40", status=1).output.split())
    assert "round 1 has no pairs left to learn from: of" in said


GROUPS = [("", "single"), ("", "linear 2x")]


def rows(judged: float, motion: float, variety: float, panel: float = 0.5) -> list[GuardRow]:
    return [GuardRow("", n, "single", 1, judged if n else 0.0, panel, motion, variety, 1.0) for n in range(4)]


def test_verdicts_are_paired_and_motion_and_variety_are_ratios(tmp_path: Path) -> None:
    (verdict,) = verdicts(rows(0.4, 2.0, 0.5), rows(0.8, 1.0, 0.25, panel=0.9), GROUPS)
    assert verdict.gain.difference.mean == pytest.approx(0.3)
    assert verdict.panel_gain.difference.mean == pytest.approx(0.4)
    assert (verdict.motion, verdict.variety, verdict.worse) == (0.5, 0.5, 0.0)
    (worse,) = verdicts(rows(0.8, 0.0, 0.5), rows(0.4, 0.0, 0.5), GROUPS)
    assert (worse.motion, worse.worse) == (None, 0.75)
    draw({0: rows(0.4, 2.0, 0.5), 1: rows(0.8, 1.0, 0.25)}, GROUPS, tmp_path / "improved.png")
    assert variety_of([np.zeros((2, 2), np.float32)]) is None
    assert variety_of([np.zeros(4, np.float32), np.full(4, 2.0, np.float32)]) == 2.0


def test_what_a_model_has_cost_is_held_against_the_searches_that_it_saves() -> None:
    def row(prompt: int, setting: str, judged: float, price: float, kind: str = "") -> GuardRow:
        return GuardRow(kind, prompt, setting, 1, judged, 0.5, 1.0, None, price)

    groups = [*GROUPS, ("", "tree 2x"), ("other", "single")]
    before = [row(n, setting, 0.5, price) for n in (0, 1) for setting, price in (("single", 10.0), ("tree 2x", 25.0))]
    after = [row(n, "single", 0.75, 10.0) for n in (0, 1, 2)]
    (found,) = instead(before, after, groups, cost=31.0)
    assert (found.kind, found.setting, found.saved, found.videos) == ("", "tree 2x", 15.0, 3)
    assert found.difference.prompts == 2
    assert found.difference.difference.mean == 0.25
    (dear,) = instead(before, [row(0, "single", 0.75, 30.0)], groups, cost=31.0)
    assert dear.videos is None
    assert instead(before, [], groups, cost=31.0) == []


def shipped(**changes: Any) -> ImproveConfig:
    config = Path(improve.__file__).parent / "configs" / "digits_improve.yaml"
    return load(ImproveConfig, config, [f"{name}={value}" for name, value in changes.items()])


def test_no_model_is_held_to_a_prompt_that_any_round_searches_for() -> None:
    given = {"guard.prompts": "digits:30", "collect.prompts": "digits:400"}
    config = shipped(**given)
    cases = list(improving._cases(config))
    searched = {prompt for number in (1, 2) for prompt, _ in improving._prompts(config, number)}
    assert len(searched) > 500
    asked = {case.kind: {each.prompt for each in cases if each.kind == case.kind} for case in cases}
    assert list(asked) == ["two digits", "one digit"]
    assert not searched & (asked["two digits"] | asked["one digit"])
    assert len(asked["two digits"]) == 30
    assert all(case.prompt == world.caption(case.objects) for case in cases)
    assert cases == list(improving._cases(shipped(**given)))


def test_what_costs_a_search_is_tried_on_fewer_prompts_of_the_first_kind() -> None:
    config = shipped(**{"guard.prompts": "digits:5", "guard.searched": 2, "collect.prompts": "digits:2"})
    counts: dict[tuple[str, str], int] = {}
    for case in improving._cases(config):
        counts[case.group] = counts.get(case.group, 0) + 1
    (first, second, *searched) = counts.items()
    assert [first, second] == [(("two digits", "single"), 5), (("one digit", "single"), 5)]
    assert searched
    assert {(kind, count) for (kind, _), count in searched} == {("two digits", 2)}


def test_figures_of_another_model_are_refused(tmp_path: Path) -> None:
    open_ledger(tmp_path / "guards.jsonl", {"model": "one"}).add(rows(1, 1, 1)[0])
    with pytest.raises(UserError, match="its model is 'one' and here it is 'two'"):
        open_ledger(tmp_path / "guards.jsonl", {"model": "two"})
