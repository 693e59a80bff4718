"""jobs.evaluate over a cache, with a tiny model and the oracle as judge: neither Ray nor vLLM in here."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from framegrove.config.verifier import Calibration, PanelConfig, VerifierConfig, load_panel
from framegrove.types import Assessment
from jobs import evaluate
from jobs.evaluations import calibrating, comparing
from tests.tiny import save_tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny")


def run(model: Path, cache: Path, out: Path, *more: str, status: int = 0) -> Result:
    given = ["--policies", "linear,tof", "--budgets", "1x,2x", "--prompts", "1", "--digits", "1"]
    given += ["--model", str(model), "--judge", "oracle", "--out", str(out), *more]
    result = CliRunner().invoke(evaluate.app, [*given, "--cache", str(cache)])
    assert result.exit_code == status, result.output
    return result


def rows(out: Path) -> Sequence[dict[str, object]]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()[1:]]


def test_the_second_time_nothing_is_sampled(model: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = run(model, cache, tmp_path / "first")
    assert "sampled 0 units" not in first.output
    second = run(model, cache, tmp_path / "second")
    assert "sampled 0 units and gave 0 verdicts" in second.output
    assert rows(tmp_path / "second") == rows(tmp_path / "first")
    assert [row["policy"] for row in rows(tmp_path / "first")] == ["single", "linear", "tof"]
    for row in rows(tmp_path / "first"):
        assert float(str(row["seconds"])) > 0
        assert 0 < float(str(row["generators_busy"])) <= 1
        assert row["verifiers_busy"] == 0  # the oracle takes no time
        assert row["verifier_score"] == (0.98 if row["fully_right"] else 0.02)
    for name in ("results.parquet", "curves.png", "summary.json"):
        assert (tmp_path / "second" / name).is_file()
    assert "single is the sample without a search" in second.output
    from_anywhere = "framegrove.search.policies.linear:ENTRY"
    run(model, cache, tmp_path / "third", "--policies", from_anywhere)
    assert [row["policy"] for row in rows(tmp_path / "third")] == ["single", from_anywhere]
    assert rows(tmp_path / "third")[1]["branches"] == rows(tmp_path / "first")[1]["branches"]


def test_a_finished_evaluation_is_added_to_or_replaced_but_never_in_silence(model: Path, tmp_path: Path) -> None:
    cache, out = tmp_path / "cache", tmp_path / "out"
    first = run(model, cache, out, "--policies", "linear")
    assert "there already" not in first.output
    for same_or_other in ((), ("--policies", "tof"), ("--budgets", "1x")):
        refused = run(model, cache, out, *same_or_other, "--policies", "linear", *same_or_other[:2], status=1)
        assert "a finished evaluation is in" in refused.stderr
    more = run(model, cache, out, "--policies", "linear", "--prompts", "2")
    assert "2 of 4 videos are there already: measuring the others" in more.output
    assert len(rows(out)) == 4
    alone = run(model, cache, out, "--budgets", "1x", "--overwrite")
    assert len(rows(out)) == 1
    assert "no differences to show" in alone.output
    assert "Paired differences" not in alone.output
    nothing = run(model, cache, tmp_path / "other", "--policies", "single", "--budgets", "4x", status=1)
    assert "nothing to evaluate: single searches on no budget" in nothing.stderr


def test_virtual_seconds_are_not_mixed(model: Path, tmp_path: Path) -> None:
    """A ledger of two generators is not continued with four."""
    run(model, tmp_path / "cache", tmp_path / "out")
    given = ["--budgets", "1x,2x", "--prompts", "2", "--digits", "1", "--model", str(model), "--judge", "oracle"]
    given += ["--out", str(tmp_path / "out"), "--replay", str(tmp_path / "cache"), "--generators", "4"]
    result = CliRunner().invoke(evaluate.app, given)
    assert result.exit_code == 1
    assert "holds results of another evaluation" in result.stderr
    assert (tmp_path / "out" / comparing.SUMMARY).is_file()


SUITE = """
lengths: [{units: 2, prompts: 2}, {units: 3, prompts: 1}]
digits: 1
seed: 500
tuning_seed: 600
margin: 0.03
trees: [dfs]
aims: {units: 3, of_plateau: 0.3333, of_stop: 0.5}
optional: [yet-to-come]
settings:
  - {policy: single}
  - {label: linear 2, policy: linear, budget: 40x, options: {roots: 2}}
  - {label: linear 3, policy: linear, budget: 40x, options: {roots: 3}}
  - {label: linear with stop, policy: linear, budget: 40x, until: 0.5, options: {roots: 3}}
  - {policy: dfs, budget: 3x, options: {most: 2}, path_score: last}
  - {policy: yet-to-come, budget: 2x}
"""


def run_suite(model: Path, folder: Path, *more: str, status: int = 0) -> Result:
    file = folder / "suite.yaml"
    file.write_text(SUITE)
    given = ["--suite", str(file), "--cache", str(folder / "cache"), "--out", str(folder / "out"), *more]
    result = CliRunner().invoke(evaluate.app, [*given, "--model", str(model)])
    assert result.exit_code == status, result.output
    return result


def test_a_suite_goes_on_and_tells_settings_of_one_policy_apart(model: Path, tmp_path: Path) -> None:
    first = run_suite(model, tmp_path, "--judge", "oracle", "--prompts", "1")
    assert "yet-to-come 2x is left out" in first.output
    assert "nothing to show yet" in first.output, "a ceiling alone is no result"
    assert (tmp_path / "out" / "ceiling-3.png").is_file()
    assert not (tmp_path / "out" / "evidence.md").exists()
    lines = (tmp_path / "out" / "oracle-2.jsonl").read_text().splitlines()
    assert len(lines) == 1 + 5
    kept = {line["label"]: line for line in map(json.loads, lines[1:])}
    assert (kept["linear 2"]["branches"], kept["linear 3"]["branches"]) == (4, 6)
    assert kept["dfs 3x"]["options"] == {"most": 2}
    assert kept["single"]["wasted_flops"] == kept["linear 3"]["wasted_flops"] == 0
    assert set(kept["single"]["held_out"]) == {"signals/flicker", "signals/sharpness", "signals/motion"}
    assert kept["single"]["search_score"] is None
    assert kept["linear 2"]["search_score"] == pytest.approx(kept["linear 2"]["panel_log_p"])

    (tmp_path / "out" / "oracle-2.jsonl").write_text("\n".join(lines[:4]) + "\n")  # as if it had been killed
    again = run_suite(model, tmp_path, "--judge", "oracle", "--prompts", "1")
    assert "making 2 videos" in again.output
    assert "sampled 0 units and gave 0 verdicts" in again.output
    more = run_suite(model, tmp_path, "--judge", "oracle", "--searches", "3")
    assert "making 5 videos" in more.output
    assert len((tmp_path / "out" / "oracle-2.jsonl").read_text().splitlines()) == 1 + 10


def test_a_suites_results_with_its_ceiling(model: Path, tmp_path: Path) -> None:
    """A panel without a model: what is shown, and where."""
    panel = tmp_path / "panel.yaml"
    panel.write_text("verifiers: [{name: red, kind: callable, function: 'tests.fakes:redness'}]\n")
    run_suite(model, tmp_path, "--verifier", str(panel))
    run_suite(model, tmp_path, "--verifier", str(panel), "--judge", "oracle")
    out = tmp_path / "out"
    shown = json.loads((out / "evidence.json").read_text())
    assert [length["found"]["units"] for length in shown["lengths"]] == [2, 3]
    assert [length["found"]["prompts"] for length in shown["lengths"]] == [2, 1]
    for length in shown["lengths"]:
        assert length["ceiling"]["prompts"] == length["found"]["prompts"]
        assert length["blame"]["setting"] == "dfs 3x"
        assert [each["setting"]["label"] for each in length["found"]["outcomes"]][1] == "linear 2"
    text = (out / "evidence.md").read_text()
    assert "## 2 units, 2 prompts" in text
    assert "## 3 units, 1 prompt\n" in text
    assert "### Ceiling" in text
    for name in ("right-2.png", "judge-3.png", "ceiling-2.png", "rows.parquet"):
        assert (out / name).is_file()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--policies", "tof"], "--policies is set by the suite"),
        (["--overwrite"], "--overwrite is not for a suite"),
        (["--held-out", "{panel}", "--verifier", "{panel}"], "is one of the panel"),
    ],
)
def test_a_suite_that_cannot_be_run(model: Path, tmp_path: Path, more: list[str], said: str) -> None:
    panel = tmp_path / "panel.yaml"
    panel.write_text("verifiers: [{name: red, kind: callable, function: 'tests.fakes:redness'}]\n")
    result = run_suite(model, tmp_path, *(word.format(panel=panel) for word in more), status=1)
    assert said in result.stderr


def test_a_suite_needs_a_cache_and_a_name(model: Path, tmp_path: Path) -> None:
    for given, said in (
        (["--suite", "digits-long"], "add --cache DIR"),
        (
            ["--suite", "digits-lung", "--cache", str(tmp_path / "cache")],
            "give one of digits-long, digits-panel, or the path",
        ),
        (["--tuning"], "--tuning is for a suite"),
    ):
        result = CliRunner().invoke(evaluate.app, [*given, "--model", str(model), "--out", str(tmp_path / "out")])
        assert result.exit_code == 1
        assert said in result.stderr


def test_settings_are_judged_by_the_members_they_name_and_the_ceiling_by_the_oracle(
    model: Path, tmp_path: Path
) -> None:
    panel, file = tmp_path / "panel.yaml", tmp_path / "suite.yaml"
    red = "{name: %s, kind: callable, function: 'tests.fakes:redness'}"
    panel.write_text(f"verifiers: [{red % 'one'}, {red % 'other'}]\n")
    options = "policy: linear, budget: 40x, options: {roots: 2}"
    panels = {"one": "[one]", "both": "[one, other]"}
    settings = "\n".join(f"  - {{label: {name}, {options}, panel: {names}}}" for name, names in panels.items())
    file.write_text(SUITE.split("settings:")[0] + f"ceiling: [single]\nsettings:\n  - {{policy: single}}\n{settings}\n")
    given = ["--suite", str(file), "--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "out")]
    given += ["--model", str(model), "--prompts", "1"]
    for judge in ("panel", "oracle"):
        result = CliRunner().invoke(evaluate.app, [*given, "--verifier", str(panel), "--judge", judge])
        assert result.exit_code == 0, result.output
    by_panel, by_oracle = (
        [json.loads(line) for line in (tmp_path / "out" / f"{judge}-2.jsonl").read_text().splitlines()[1:]]
        for judge in ("panel", "oracle")
    )
    assert {row["label"]: row["panel"] for row in by_panel} == {
        "single": None,
        "one": ["one"],
        "both": ["one", "other"],
    }
    assert [row["label"] for row in by_oracle] == ["single"]
    alone = CliRunner().invoke(evaluate.app, [*given, "--judge", "panel"])
    assert alone.exit_code == 1
    assert "setting one is judged by one, and the panel has verifier" in alone.output
    (team,) = json.loads((tmp_path / "out" / "evidence.json").read_text())["lengths"][0]["found"]["teamwork"]
    assert (team["panel"], team["best"]) == ("both", "one")


def test_a_panel_is_calibrated_by_what_the_oracle_reads(model: Path, tmp_path: Path) -> None:
    panel = tmp_path / "panel.yaml"
    panel.write_text("verifiers: [{name: red, kind: callable, function: 'tests.fakes:redness', weight: 0.5}]\n")
    given = ["--calibrate", "--policies", "beam,linear", "--budgets", "3x", "--prompts", "2", "--digits", "1"]
    given += ["--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "out"), "--model", str(model)]
    result = CliRunner().invoke(evaluate.app, [*given, "--verifier", str(panel), "--searches", "4"])
    assert result.exit_code == 0, result.output
    assert "Expected calibration error" in result.output
    assert "too few branches" in result.output
    (before,), (after,) = (load_panel(str(file)).verifiers for file in (panel, tmp_path / "out" / "verifiers.yaml"))
    assert before.model_copy(update={"calibration": after.calibration}) == after
    assert {Assessment.IMAGE, Assessment.FINAL} <= set(after.calibration)
    broken = CliRunner().invoke(evaluate.app, [*given, "--judge", "oracle"])
    assert broken.exit_code == 1
    assert "a panel is calibrated over a cache of branches" in broken.output


def test_a_calibrated_panel_is_written_as_it_is(tmp_path: Path) -> None:
    """Also what is as the shipped model has it where a general one would be served in another way."""
    panel = tmp_path / "panel.yaml"
    entry = "{name: qwen, engine: {model: Qwen/Qwen2.5-VL-7B-Instruct, dtype: float32, max_frames: 6, instruction: ''}}"
    panel.write_text(
        f"verifiers: [{entry}, {{name: moves, kind: signals, weight: {{motion: 1}}}}, {{name: shipped}}]\n"
    )
    before = load_panel(str(panel))
    qwen = Calibration(bias=0.5, slopes={"alignment": 0.25})
    found = calibrating.Fitted("qwen", Assessment.FINAL, 100, 0.5, 0.1, 0.05, qwen)
    qwens, *others = load_panel(str(calibrating.write(before, [found], tmp_path))).verifiers
    assert qwens == before.verifiers[0].model_copy(update={"calibration": {Assessment.FINAL: qwen}})
    assert others == list(before.verifiers[1:])


def verdicts(odds: float) -> calibrating.Said:
    """A verifier that is always as sure, and right in three quarters of all cases."""
    score = 1 / (1 + math.exp(-odds))
    truths = [index % 4 != 3 for index in range(400)]
    scores = [{"score": score if truth or index % 8 == 3 else 1 - score} for index, truth in enumerate(truths)]
    return calibrating.Said(scores, truths, [index // 8 for index in range(400)])


def test_a_verifier_that_is_too_sure_is_calibrated_on_prompts_that_the_fit_has_not_seen() -> None:
    own = VerifierConfig(name="own", kind="callable", function="a:b", judges=(Assessment.FINAL,))
    said = {("own", Assessment.FINAL): verdicts(9.0)}
    (found,) = calibrating.fits(said, PanelConfig(verifiers=(own,)))
    assert (found.branches, found.share_right, found.few) == (400, 0.75, False)
    assert found.before == pytest.approx(1 / 8, abs=0.01)
    assert found.after < 0.03
    assert 0.8 < math.exp(found.calibration.log_p({"score": 0.9999})) < 0.95
