"""Studies without a cluster: spaces and their mistakes, fronts, results on disk, and trials that are counted once."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from datetime import date
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given as drawn
from hypothesis import strategies as st
from optuna.storages import InMemoryStorage
from typer.testing import CliRunner

from framegrove.config.base import load, overridden
from framegrove.config.model import ModelSource
from framegrove.config.study import NAMED, Params, StudyConfig
from framegrove.config.train import TrainConfig
from framegrove.config.verifier import PanelConfig, VerifierConfig
from framegrove.errors import UserError
from framegrove.evaluation import study_page, study_pictures
from framegrove.evaluation.study_front import front, is_beaten, standings
from framegrove.evaluation.study_optuna import Space, importances, open_study
from framegrove.evaluation.study_results import Trial, Video, read_parquet, write_parquet
from framegrove.files import locked
from jobs import sweep
from jobs.console import Display
from jobs.studies import notes as study_notes
from jobs.studies import pyramid, stages
from jobs.studies.kinds import Kind
from jobs.studies.notes import Notes, rows_of
from jobs.studies.pyramid import PyramidStudy
from jobs.studies.search import SearchStudy
from jobs.studies.tuning import Brake, Work, _scheduler, noting
from tests.tiny_training import PHASE, make_config, make_world

SEARCH: dict[str, Any] = {
    "kind": "search",
    "prompts": 2,
    "space": {"policy": {"choice": ["linear", "dfs"]}, "cap": {"low": 2, "high": 8}},
}


def study(**changes: Any) -> StudyConfig:
    return StudyConfig.model_validate(SEARCH | changes)


def video(prompt: int, score: float = 0.5, flops: float = 1e9, motion: float = 1.0) -> Video:
    return Video(prompt, f"prompt {prompt}", score, score == 1, motion, 2.0, flops, flops, flops, 0.0, 1.0)


def trial(number: int, scores: tuple[float, ...], flops: float, motion: float = 1.0, **params: Any) -> Trial:
    given = params or {"policy": "dfs", "cap": number + 1}
    return Trial(number, given, "finished", "", tuple(video(n, s, flops, motion) for n, s in enumerate(scores)))


def applies(name: str, given: Params) -> bool:
    return not name.startswith("options.") or name.split(".")[1] == given["policy"]


# ---- spaces


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"space": {"polcy": {"choice": ["dfs"]}}}, "unknown parameter 'polcy', did you mean 'policy'?"),
        ({"space": {"colour": {"choice": [1]}}}, "those of a search study are policy, cap, until"),
        ({"space": {"budget": {"choice": [1]}}}, "unknown parameter 'budget'"),
        ({"prompts": 0}, "a study without prompts measures nothing"),
        ({"prompts": []}, "a study without prompts measures nothing"),
        ({"space": {"cap": {"low": 2}}}, "give either a choice, as in {choice: [1, 2]}, or a low and a high"),
        ({"space": {"cap": {"low": 8, "high": 2}}}, "low must not be above high"),
        ({"space": {"cap": {"low": 0, "high": 2, "log": True}}}, "with log, low must be above 0"),
        ({"space": {"steps": {"choice": [2, 2]}}}, "the choice has a value twice"),
        ({"objectives": ["beauty"]}, "there is no objective 'beauty': choose among score, right, flops"),
        ({"settings": {"cap": 4}}, "cap is both varied (space) and fixed (settings)"),
        ({"grid": True, "space": {"cap": {"low": 1.5, "high": 2}}}, "a grid needs values that can be counted"),
        ({"stop": {}}, "train and stop are for a study of kind pyramid"),
        ({"kind": "pyramid", "space": {"stages": {"low": 1, "high": 2}}}, "name a training configuration (train)"),
        ({"kind": "pyramid", "space": {"policy": {"choice": ["dfs"]}}}, "those of a pyramid study are stages"),
        ({"trails": 3}, "unknown key 'trails', did you mean 'trials'?"),
        ({"verifier": "mine.yaml"}, "verifier: there is no mine.yaml beside"),
        (
            {"kind": "pyramid", "train": "mine.yaml", "space": {"stages": {"low": 1, "high": 2}}},
            "train: there is no mine.yaml beside",
        ),
    ],
)
def test_a_mistake_in_a_study_is_one_sentence(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(SEARCH | changes))
    result = CliRunner().invoke(sweep.app, ["--study", str(tmp_path / "study.yaml"), "--out", str(tmp_path / "out")])
    assert result.exit_code == 1, result.output
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"policy": {"choice": ["dsf"]}}, "space.policy has dsf: there is no policy 'dsf'"),
        ({"options.dfs.acept": {"low": 0.1, "high": 0.9}, "policy": {"choice": ["dfs"]}}, "unknown key 'acept'"),
        (
            {"options.dfs.accept": {"low": 0.1, "high": 1.9}, "policy": {"choice": ["dfs"]}},
            "accept must be less than 1",
        ),
        ({"options.evo.accept": {"choice": [0.5]}, "policy": {"choice": ["dfs"]}}, "none of the study's policies"),
        ({"cap": {"choice": [0.5]}}, "space.cap must be at least 1, not 0.5"),
        ({"panel": {"choice": [["nobody"]]}}, "there is no verifier 'nobody'"),
        ({"guidance": {"choice": [-1.0]}}, "guidance must be at least 0"),
    ],
)
def test_a_value_that_no_search_takes_is_told_before_anything_runs(
    space: dict[str, Any], message: str, tmp_path: Path
) -> None:
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(SEARCH | {"space": space}))
    result = CliRunner().invoke(sweep.app, ["--study", str(tmp_path / "study.yaml"), "--out", str(tmp_path / "out")])
    assert result.exit_code == 1, result.output
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            ["--study", "nothing"],
            "there is no study 'nothing': give one of budget, pyramid, search, stages, or the path",
        ),
        (["--study", "budget", "--set", "policy"], "not of the form key=value"),
        (["--study", "budget", "--model", "nowhere"], "no model folder at nowhere"),
        (["--study", "budget", "--verifier", "nowhere.yaml"], "no configuration file at nowhere.yaml"),
        (["--study", "budget", "--dtype", "half"], "dtype must be 'float32' or 'bfloat16', not 'half'"),
        (["--study", "stages", "--generators", "2"], "--generators is for a study of searches"),
        (
            ["--study", "stages", "--dtype", "float32"],
            "--dtype is for a study of searches, and stages trains its models",
        ),
        (["--study", "budget", "--workers", "2"], "--workers is for a study of trainings, and budget is not one"),
        (["--study", "stages", "--set", "data=nowhere"], "data folder"),
        (["--study", "stages", "--set", "model.start=shipped"], "set model.start=null"),
        (["--study", "budget", "--resume"], "there is no study in"),
    ],
)
def test_a_mistake_at_the_command_line_is_one_sentence(given: list[str], message: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(sweep.app, [*given, "--out", str(tmp_path / "out")])
    assert result.exit_code == 1, result.output
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("path", sorted(sweep.FOLDER.glob("study_*.yaml")), ids=lambda path: path.stem)
def test_shipped_studies_load(path: Path) -> None:
    config = load(StudyConfig, path)
    assert set(config.names) == set(config.space)


def test_a_copy_of_a_shipped_study_finds_the_files_that_it_names(tmp_path: Path) -> None:
    copied = tmp_path / "mine.yaml"
    copied.write_text((sweep.FOLDER / "study_search.yaml").read_text())
    result = CliRunner().invoke(sweep.app, ["--study", str(copied), "--plan"])
    assert result.exit_code == 0, result.output
    assert "40 trials" in result.stdout


def test_a_space_draws_what_matters() -> None:
    config = study(
        space={
            "options.dfs.accept": {"low": 0.5, "high": 0.9},
            "panel": {"choice": [["a", "b"], None]},
            "policy": {"choice": ["linear", "dfs"]},
            "cap": {"low": 2, "high": 8},
            "guidance": {"low": 1.0, "high": 4.0, "log": True},
        }
    )
    space = Space(config, applies)
    optuna = open_study(config, InMemoryStorage(), [], [{"policy": "linear", "cap": 3, "panel": ["a", "b"]}])
    seen = []
    for _ in range(12):
        asked = optuna.ask()
        space(asked)
        seen.append(space.params(asked.params))
        optuna.tell(asked, [0.5, 1.0, 1.0])
    assert seen[0]["policy"] == "linear", "what waits comes first"
    assert (seen[0]["cap"], seen[0]["panel"]) == (3, ["a", "b"])
    for params in seen:
        assert ("options.dfs.accept" in params) == (params["policy"] == "dfs")
        assert params["panel"] in (["a", "b"], None)
        assert isinstance(params["cap"], int)
    assert space.kept({"policy": "linear", "options.dfs.accept": 0.5, "cap": 2}) == {"policy": "linear", "cap": 2}


def test_a_grid_has_every_combination_once() -> None:
    config = study(grid=True, space={"cap": {"choice": [1, 2]}, "policy": {"choice": ["linear", "dfs"]}})
    assert len({json.dumps(each) for each in config.combinations()}) == 4


def test_a_trial_searches_as_its_parameters_say() -> None:
    panel = PanelConfig(verifiers=(VerifierConfig(name="verifier"), VerifierConfig(name="signals", kind="signals")))
    space = {
        "policy": {"choice": ["linear", "dfs"]},
        "cap": {"low": 1, "high": 8},
        "until": {"choice": [None, 0.8]},
        "panel": {"choice": [["verifier"], None]},
        "options.dfs.most": {"low": 2, "high": 4},
        "steps": {"choice": [None, 4]},
    }
    found = SearchStudy.of(
        study(space=space, settings={"fusion": "ranks"}), ModelSource(), panel, {"verifier": "p.yaml"}
    )
    params = {"policy": "dfs", "cap": 3, "until": 0.8, "options.dfs.most": 4, "panel": ["verifier"], "steps": 4}
    wanted = found.request(1, found.wanted(params))
    assert (wanted.request.policy, wanted.request.budget, wanted.request.seed) == ("dfs", 3.0, 95_001)
    assert wanted.request.sampling.steps == 4
    assert wanted.request.verifiers == {"verifier": 1.0}
    assert (wanted.search.until, wanted.search.fusion, wanted.search.options) == (0.8, "ranks", {"dfs": {"most": 4}})
    assert found.winner(Trial(1, params, "finished")) == {
        "units": 8,
        "policy": "dfs",
        "budget": "3x",
        "speculate": "off",
        "fusion": "ranks",
        "until": 0.8,
        "options": {"dfs": {"most": 4}},
        "panel": ["verifier"],
        "steps": 4,
        "verifier": "p.yaml",
    }
    assert found.applies("options.dfs.most", {"policy": "dfs"})
    assert not found.applies("options.dfs.most", {"policy": "linear"})
    assert found.wanted({"cap": 1}).policy == "single", "1x leaves nothing to search with"


def test_a_pyramid_is_shaped_by_its_parameters(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    base = make_config(world, phases=[PHASE | {"name": "only", "units": 3, "steps": 40, "decay": 0.5}])
    config = StudyConfig.model_validate(
        {"kind": "pyramid", "prompts": 1, "train": "x.yaml", "space": {"stages": {"low": 1, "high": 3}}}
    )
    found = PyramidStudy(config, base, ("a red 3 moves left and right",), tuple(stages.flops_of_phases(base)))
    params = {"stages": 2, "boundaries": 2.0, "steps": 5, "weights": 0.5, "history": 1, "corruption": 0.1}
    run = found.run(params)
    recipe, (phase,) = run.model.recipe, run.phases
    assert recipe.pyramid.boundaries == (0.0, 0.25, 1.0)
    assert recipe.steps.first == (5, 5)
    assert phase.objective.stage_weights == (1.0, 0.5)
    assert (phase.objective.corruption, phase.units) == (0.1, 2)
    (now,), (wanted,) = stages.flops_of_phases(run), found.flops
    assert now == pytest.approx(wanted, rel=0.05), "as nearly equal as whole steps can be"
    assert found.shaped({"phases.0.learning_rate": 1e-4}).phases[0].learning_rate == 1e-4
    with pytest.raises(UserError, match="unknown key"):
        found.shaped({"phases.0.learning": 1e-4})
    assert not found.applies("weights", {"stages": 1})


# ---- values that a study cannot have

PYRAMID: dict[str, Any] = {
    "kind": "pyramid",
    "prompts": 1,
    "train": "train.yaml",
    "space": {"stages": {"choice": [1, 2]}},
}
INFINITE, DATE, HUGE = float("inf"), date(2024, 1, 1), 10**400


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The training configuration of a tiny world, in a folder for studies."""
    world = make_world(tmp_path_factory.mktemp("world"))
    run = make_config(world, phases=[PHASE | {"name": "only", "units": 2, "steps": 12}])
    (world / "train.yaml").write_text(yaml.safe_dump(run.model_dump(mode="json")))
    return world / "train.yaml"


def varied(kind: dict[str, Any], **space: Any) -> dict[str, Any]:
    """A study of the values in each list, or of a range."""
    of = {name: {"choice": each} if isinstance(each, list) else each for name, each in space.items()}
    return kind | {"space": of}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (SEARCH | {"settings": ["a"]}, "settings must be keys and values"),
        (SEARCH | {"settings": "foo"}, "settings must be keys and values, as in {policy: beam}, not 'foo'"),
        (SEARCH | {"settings": {"fusion": DATE}}, "settings.fusion: 2024-01-01 is a date"),
        (SEARCH | {"settings": {"policy.x": 1}}, "settings.policy.x: policy is a single value"),
        (SEARCH | {"settings": {"policy": "nope"}, "space": {"cap": {"choice": [2]}}}, "settings: there is no policy"),
        (SEARCH | {"seed": 5_000_000_000}, "seed must be at most 4000000000, not 5000000000"),
        (SEARCH | {"prompts": True}, "prompts must be a whole number, of how many, or a list of texts"),
        (SEARCH | {"prompts": [1]}, "prompts must be a whole number, of how many, or a list of texts"),
        (SEARCH | {"prompts": 10**9}, "more than 100000 prompts are never finished"),
        (SEARCH | {"units": True}, "units must be a whole number, not true"),
        (SEARCH | {"units": 100_000}, "error: a video of 100000 units cannot be made: this model makes 1 to 32"),
        (PYRAMID | {"units": 100_000}, "error: units: a video of 100000 units cannot be made"),
        (varied(SEARCH, cap=["a", "b"]), "space.cap: a budget is a number of unsearched samples, such as 4x"),
        (varied(SEARCH, cap=["4x", 4]), "space.cap: the choice has a value twice: 4"),
        (varied(SEARCH, cap=[None]), "space.cap must be a number, not null"),
        (varied(SEARCH, cap=[[1]]), "space.cap must be a number, not [1]"),
        (varied(SEARCH, cap=[{"a": 1}]), "space.cap must be a number, not {'a': 1}"),
        (varied(SEARCH, cap=[True]), "space.cap must be a number, not true"),
        (varied(SEARCH, cap=[0]), "space.cap must be at least 1, not 0"),
        (varied(SEARCH, cap=[DATE]), "space.cap.choice: 2024-01-01 is a date"),
        (varied(SEARCH, cap={"low": 1, "high": HUGE}), "space.cap.high: whole numbers must lie between"),
        (varied(SEARCH, cap={"low": 1, "high": 10**6}), "space.cap must be at most 999999, not 1000000"),
        (varied(SEARCH, cap={"low": True, "high": 2}), "space.cap.low must be a number, not true"),
        (varied(SEARCH, cap={"low": 1, "high": 4, "step": INFINITE}), "space.cap.step: numbers must be finite"),
        (varied(SEARCH, cap={"low": 1, "high": 4, "step": 1e-9}), "space.cap: a step of 1e-09 makes more than 100000"),
        (varied(SEARCH, cap={"low": 1, "high": 999_999}) | {"grid": True}, "a grid of more than 100000 combinations"),
        (varied(SEARCH, policy=[None, "tof"], cap=[2]), "space.policy must be text, not null"),
        (varied(SEARCH, policy=[".:"]), "space.policy has .:, which cannot be used"),
        (varied(SEARCH, cap=[2], policy=["dsf"]), "space.policy has dsf: there is no policy"),
        (varied(SEARCH, **{"policy.x": [1]}), "space.policy.x: policy is a single value, those with keys"),
        (varied(SEARCH, steps=[2, 2.0]), "space.steps.choice: the choice has a value twice: 2.0"),
        (varied(SEARCH, guidance=[INFINITE]), "space.guidance.choice: numbers must be finite, not inf"),
        (varied(SEARCH, attempts=[0]), "error: space.attempts has 0: attempts must be at least 1, not 0"),
        (
            varied(SEARCH, policy=["dfs"], **{"options.dfs.acept": [0.6]}),
            "error: space.options.dfs.acept: options.dfs: unknown key 'acept', did you mean 'accept'?",
        ),
        (varied(PYRAMID, stages=["two"]), "space.stages must be a whole number, not 'two'"),
        (varied(PYRAMID, stages=[0]), "space.stages must be at least 1, not 0"),
        (varied(PYRAMID, stages=[1.5]), "space.stages must be a whole number, not 1.5"),
        (varied(PYRAMID, stages=[None]), "space.stages must be a whole number, not null"),
        (varied(PYRAMID, stages=[5]), "space.stages has 5: a video of 64x64 does not fit this model"),
        (varied(PYRAMID, stages={"low": 1, "high": 3, "step": 0.5}), "space.stages must be a whole number, not 1.5"),
        (varied(PYRAMID, boundaries=[-1]), "space.boundaries must be greater than 0, not -1"),
        (varied(PYRAMID, boundaries=["a"]), "space.boundaries must be a number, not 'a'"),
        (varied(PYRAMID, boundaries=[None]), "space.boundaries must be a number, not null"),
        (varied(PYRAMID, weights=["a"]), "space.weights must be a number, not 'a'"),
        (varied(PYRAMID, weights=[None]), "space.weights must be a number, not null"),
        (varied(PYRAMID, weights=[INFINITE]), "space.weights.choice: numbers must be finite, not inf"),
        (varied(PYRAMID, history=["a"]), "space.history must be a whole number, not 'a'"),
        (varied(PYRAMID, history=[None]), "space.history must be a whole number, not null"),
    ],
)
def test_a_value_that_cannot_be_is_one_sentence_that_names_the_key(
    data: dict[str, Any], message: str, tiny_run: Path
) -> None:
    path = tiny_run.with_name("study.yaml")
    path.write_text(yaml.safe_dump(data))
    result = CliRunner().invoke(sweep.app, ["--study", str(path), "--plan"])
    assert result.exit_code == 1, result.output
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


PANEL = PanelConfig(verifiers=(VerifierConfig(name="one"), VerifierConfig(name="two")))


def test_values_may_be_written_as_elsewhere() -> None:
    space = varied(SEARCH, cap=["4x", 2, "2.5x"], speculate=[False, "thrift"], guidance=["1e0", None])["space"]
    found = study(space=space).space
    assert found["cap"].choice == (4, 2, 2.5)
    assert [str(each) for each in found["cap"].examples] == ["4.0", "2", "2.5"], "whole numbers stay whole"
    assert found["speculate"].choice == ("off", "thrift")
    assert found["guidance"].choice == (1.0, None)
    fixed = study(space={"policy": {"choice": ["dfs"]}}, settings={"cap": "3x"})
    assert SearchStudy.of(fixed, ModelSource(), PANEL, {}).wanted({}).multiple == 3


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from([HUGE, 4, "4x", "dfs"])
    | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


@contextlib.contextmanager
def only_refused(name: str) -> Iterator[None]:
    """Let nothing pass but a refusal that names the parameter."""
    with contextlib.suppress(UserError):
        try:
            yield
        except UserError as error:
            if name not in str(error) or "\n" in str(error):
                raise AssertionError(f"it does not say in a line that {name} is wrong: {error}") from error
            raise


@drawn(st.sampled_from(NAMED["search"]), st.lists(JSON, min_size=1, max_size=2))
def test_whatever_is_given_for_a_parameter_of_a_search_is_taken_or_refused(name: str, choice: list[Any]) -> None:
    with only_refused(name):
        config = overridden(StudyConfig, varied(SEARCH, **{name: choice}), (), "study.yaml")
        SearchStudy.of(config, ModelSource(), PANEL, {})


@drawn(st.sampled_from(NAMED["pyramid"]), st.lists(JSON, min_size=1, max_size=2))
def test_whatever_is_given_for_a_parameter_of_a_pyramid_is_taken_or_refused(
    tiny_run: Path, name: str, choice: list[Any]
) -> None:
    base = load(TrainConfig, tiny_run)
    with only_refused(name):
        config = overridden(StudyConfig, varied(PYRAMID, **{name: choice}), (), "study.yaml")
        PyramidStudy(config, base, (), ()).check()


# ---- marks of a training


def test_a_mark_is_reached_once_its_share_of_the_steps_is_done(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = load(TrainConfig, tiny_run)
    config = StudyConfig.model_validate(PYRAMID | {"stop": {"after": 0.25, "keep": 0.5}})
    for steps in (96, 97, 100, 300):
        phase = base.phases[0].model_copy(update={"steps": steps})
        run = base.model_copy(update={"phases": (phase,)})
        run = stages.of_equal_cost(run, stages.flops_of_phases(run), ("a red 3 moves left and right",), seed=0)
        assert run.steps == steps
        due = [step for step in range(1, steps + 1) if run.samples_due(step)]
        told = _reports(due, steps, monkeypatch)
        assert told[-1][1] is None, "what has ended is not stopped"
        marks = [(step, mark) for step, mark in told if mark is not None]
        assert all(1 <= mark < stages.MARKS and step / steps >= mark / stages.MARKS for step, mark in marks)
        assert [mark for _, mark in marks] == sorted({mark for _, mark in marks}), "each one once, and rising"
        stopped = [_stopped_at(_scheduler(config), marks)[-1] for _ in range(2)]
        assert all(step is not None and 0.25 <= step / steps < 0.5 for step in stopped)


def test_a_report_between_two_marks_counts_as_the_samples_that_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _reports([13, 26], 100, monkeypatch, also=(5, 25, 38)) == [(5, None), (13, 1), (25, 1), (26, 2), (38, 2)]


def _reports(
    due: list[int], steps: int, monkeypatch: pytest.MonkeyPatch, also: tuple[int, ...] = ()
) -> list[tuple[int, int | None]]:
    """The mark that Tune is told at each step, where samples are made at those that are ``due``."""
    shown = [SimpleNamespace(step=step, score=SimpleNamespace(mean=0.5)) for step in due]
    monkeypatch.setattr(stages, "marks", lambda folder: shown)
    return [(step, pyramid._mark(Path(), step, steps).get("mark")) for step in sorted({*due, *also})]


def _stopped_at(scheduler: Any, marks: list[tuple[int, int]]) -> list[int | None]:
    """The steps at which trials are stopped, each of which is worse than the one before; None: it goes on."""
    found = []
    for number in range(4):
        trial = SimpleNamespace(trial_id=str(number))
        scheduler.on_trial_add(None, trial)
        told = ((step, {"mark": mark, "score": 1 / (number + 1)}) for step, mark in marks)
        found.append(
            next((step for step, each in told if scheduler.on_trial_result(None, trial, each) == "STOP"), None)
        )
    return found


# ---- fronts


def test_what_nothing_beats_is_on_the_front() -> None:
    losses = np.array([[1.0, 5.0], [2.0, 3.0], [2.0, 4.0], [3.0, 1.0], [3.0, 1.0]])
    assert is_beaten(losses).tolist() == [False, False, True, False, False]


def test_a_front_over_three_objectives_and_how_sure_it_is() -> None:
    goals = study().goals
    trials = [
        trial(1, (1.0, 1.0, 1.0), 4e9),
        trial(2, (0.9, 0.2, 0.4), 1e9),
        trial(3, (0.8, 0.1, 0.3), 2e9),  # dearer and worse than 2 for every prompt
        trial(4, (0.0, 0.0, 0.0), 3e9, motion=1.0),
        Trial(5, {"policy": "dfs", "cap": 2}, "failed", "broken"),
    ]
    found = standings(trials, goals, draws=300)
    assert [each.trial.number for each in found if each.on_front] == [1, 2]
    assert [each.trial.number for each in front(found, goals)] == [1, 2], "the best score first"
    assert [each.chance for each in found] == [1.0, 1.0, 0.0, 0.0]
    close = standings([trial(1, (1.0, 0.0), 1e9), trial(2, (0.0, 0.9), 1e9)], goals, draws=400)
    assert close[0].on_front
    assert not close[1].on_front
    assert 0.5 < close[0].chance < 0.9, "with the second prompt alone the other one would be better"
    assert standings([trials[-1]], goals) == []


# ---- results


def test_results_come_back_from_parquet_as_they_were(tmp_path: Path) -> None:
    config = study(space=SEARCH["space"] | {"until": {"choice": [None, 0.9]}})
    trials = [
        trial(1, (1.0, 0.5), 1e9, policy="dfs", cap=2, until=None),
        Trial(2, {"policy": "linear", "cap": 4, "until": 0.9}, "failed", "NoRoom: nothing fits"),
    ]
    write_parquet(config, trials, tmp_path / "results.parquet")
    assert read_parquet(tmp_path / "results.parquet") == (config, trials)
    table = pq.read_table(tmp_path / "results.parquet")
    assert table["space/cap"].to_pylist() == [2.0, 4.0]
    assert table["space/policy"].to_pylist() == ["dfs", "linear"]
    assert table["score/mean"].to_pylist() == [0.75, None]


def test_results_of_another_version_or_of_something_else_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "results.parquet"
    write_parquet(study(), [trial(1, (1.0, 0.5), 1e9)], file)
    table = pq.read_table(file)
    (key,) = table.schema.metadata
    facts = json.loads(table.schema.metadata[key])
    pq.write_table(table.replace_schema_metadata({key: json.dumps(facts | {"version": 0})}), file)
    with pytest.raises(UserError, match="version 0 of the schema, and this is version 1"):
        read_parquet(file)
    pq.write_table(table.replace_schema_metadata({}), file)
    with pytest.raises(UserError, match="is not the results of a study"):
        read_parquet(file)
    file.write_bytes(b"no parquet")
    with pytest.raises(UserError, match="cannot be read as a study's results"):
        read_parquet(file)


# ---- notes


def test_a_trial_that_was_begun_keeps_its_number_and_counts_once(tmp_path: Path) -> None:
    notes = Notes(tmp_path, {"seed": 1})
    assert [notes.begin({"cap": 2}), notes.begin({"cap": 3})] == [1, 2]
    notes.end(1, "finished")
    with (tmp_path / "trials.jsonl").open("a") as torn:
        torn.write('{"begun": 3, "par')
    again = Notes(tmp_path, {"seed": 1})
    assert [each.number for each in again.ended] == [1]
    assert [(each.number, each.params) for each in again.unfinished] == [(2, {"cap": 3})]
    again.end(2, "failed", "broken")
    again.end(2, "finished")
    assert [(each.state, each.why) for each in Notes(tmp_path, {"seed": 1}).trials] == [
        ("finished", ""),
        ("failed", "broken"),
    ]
    assert again.begin({"cap": 4}) == 3


def test_progress_counts_what_running_trials_have_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[float, str]] = []
    monkeypatch.setattr(Display, "show", lambda self, done, note="": told.append((done, note)))
    notes = Notes(tmp_path, {"seed": 1})
    first, second = (
        SimpleNamespace(config={"number": notes.begin({"cap": cap}), "params": {"cap": cap}}, last_result={})
        for cap in (2, 3)
    )
    with Display() as display:
        work = SimpleNamespace(config=study(trials=4), applies=None, read=None)
        callback = noting(cast(Work, work), notes, Brake(), display)
        callback.on_trial_result(1, [], first, {"step": 30, "share": 0.5})
        callback.on_trial_result(1, [], second, {"videos": 1, "share": 0.25})
        callback.on_trial_complete(1, [], first)
    assert told == [
        (0.125, "0 of 4 trials; trial 1: step 30"),
        (0.1875, "0 of 4 trials; trial 2: 1 video"),
        (0.3125, "1 of 4 trials"),
    ]


def test_a_row_that_is_there_twice_counts_once(tmp_path: Path) -> None:
    rows = rows_of(tmp_path)
    rows.add(video(0, 0.25))
    rows.add(video(1))
    rows.add(video(0, 0.75))  # by the process of a trial that outlived its command
    begun = study_notes.Begun(1, {}, "finished")
    assert [each.score for each in study_notes.measured(begun, tmp_path, {}).videos] == [0.25, 0.5]


def test_another_study_in_the_folder_is_refused(tmp_path: Path) -> None:
    Notes(tmp_path, {"seed": 1})
    with pytest.raises(UserError, match=r"another study is in .*, its seed is 1 and here it is 2: give another --out"):
        Notes(tmp_path, {"seed": 2})
    Notes(tmp_path, {"seed": 1}).begin({"cap": 2})
    line, *others = (tmp_path / "trials.jsonl").read_text().splitlines()
    (tmp_path / "trials.jsonl").write_text("\n".join([json.dumps(json.loads(line) | {"version": 99}), *others, ""]))
    with pytest.raises(UserError, match="version 99 of the schema"):
        Notes(tmp_path, {"seed": 1})
    given = ["--study", "budget", "--out", str(tmp_path)]
    result = CliRunner().invoke(sweep.app, given)
    assert result.exit_code == 1
    assert "a study is in" in result.stderr
    assert "continue it by --resume" in result.stderr
    with locked(tmp_path / ".lock", ""):
        result = CliRunner().invoke(sweep.app, [*given, "--resume"])
    assert result.exit_code == 1
    assert "another process carries out the study in" in result.stderr


def test_a_study_that_was_interrupted_before_its_first_trial_is_resumed(tmp_path: Path) -> None:
    ours, other = (
        cast(Kind, SimpleNamespace(facts=lambda seed=seed: {"seed": seed}, config=study())) for seed in (1, 2)
    )
    Notes(tmp_path, ours.facts())
    with sweep._folder(tmp_path, ours, resume=True, overwrite=False) as notes:
        assert notes.trials == []
    with (
        pytest.raises(UserError, match="another study is in"),
        sweep._folder(tmp_path, other, resume=True, overwrite=False),
    ):
        pass
    with sweep._folder(tmp_path, other, resume=False, overwrite=False) as notes:  # of the first one nothing is lost
        notes.begin({"cap": 2})
    with sweep._folder(tmp_path, other, resume=True, overwrite=False) as notes:
        assert [each.params for each in notes.trials] == [{"cap": 2}]


# ---- pictures and page


class Page(HTMLParser):
    """What a page loads, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_report_has_everything_in_one_file(tmp_path: Path) -> None:
    config = study(space=SEARCH["space"] | {"cap": {"low": 1, "high": 12}, "panel": {"choice": [None, ["a"]]}})
    rng = np.random.default_rng(0)
    trials = [
        trial(
            n,
            tuple(rng.uniform(size=4)),
            1e9 * n,
            policy=["dfs", "linear"][n % 2],
            cap=n,
            panel=[None, ["a"]][n // 4 % 2],
        )
        for n in range(1, 13)
    ]
    trials.append(Trial(13, {"policy": "dfs", "cap": 2}, "failed", "<script>broken</script>"))
    trials.append(Trial(14, {"policy": "dfs", "cap": 3}, "stopped", "fell behind after step 8"))
    found = standings(trials, config.goals, draws=100)
    shares, _ = importances(config, trials)
    assert sum(shares["flops"].shares.values()) == pytest.approx(1.0)
    assert shares["flops"].beyond == {"cap"}
    study_pictures.draw_front(found, config.goals, tmp_path / "front.png", title="t")
    study_pictures.draw_front(found, config.goals[:1], tmp_path / "one.png", title="t")
    study_pictures.draw_parallel(found, config, tmp_path / "parallel.png", title="t")
    study_pictures.draw_importance(shares, tmp_path / "importance.png", title="t")
    study_pictures.draw_costs(found, tmp_path / "costs.png", title="t")
    pictures = [study_page.Picture(tmp_path / f"{name}.png", name, "note") for name in ("front", "parallel", "costs")]
    report = study_page.Report("mine", config, trials, found, pictures, {1: "winners/trial-0001.yaml"}, "use it")
    study_page.write(report, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    page = Page(text)
    assert len(page.loaded) == 3
    assert all(each.startswith("data:image/png;base64,") for each in page.loaded)
    assert "14 trials: 12 finished, 1 stopped, 1 failed" in page.text
    assert "<script>broken</script>" in page.text
    assert "<script>" not in text
