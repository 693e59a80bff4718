"""Panels of verifiers: what --verifier may name, what their YAML may say, and what identifies one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from actors.verifier import VllmVerifier, verifier_class
from framegrove.config.base import ConfigError, validated
from framegrove.config.verifier import (
    Calibration,
    EngineConfig,
    PanelConfig,
    VerifierConfig,
    environment,
    load_panel,
    model_folder,
    own_settings,
    question_source,
    shipped_folder,
)
from framegrove.digits.questions import write_settings
from framegrove.errors import UserError
from framegrove.types import Assessment
from framegrove.verification.callables import CallableVerifier
from framegrove.verification.identity import verifier_identity
from framegrove.verification.signals import SignalsVerifier

CONFIGS = Path(__file__).resolve().parents[2] / "jobs" / "configs"


def test_without_a_name_the_shipped_verifier_judges() -> None:
    (shipped,) = load_panel(None).verifiers
    assert (shipped.name, shipped.kind, shipped.engine) == ("verifier", "vllm", EngineConfig())
    assert shipped.assessments == tuple(Assessment)
    assert question_source(VerifierConfig()) == shipped.questions
    (named,) = load_panel(str(shipped_folder())).verifiers
    assert named.engine.model_copy(update={"model": None}) == shipped.engine
    assert named.questions == shipped.questions


def test_a_model_without_settings_of_its_own_is_served_as_a_general_one(tmp_path: Path) -> None:
    for general in (str(tmp_path), "Qwen/Qwen2.5-VL-3B-Instruct"):
        (verifier,) = load_panel(general).verifiers
        assert (verifier.engine.model, verifier.engine.dtype, verifier.questions) == (general, "bfloat16", "general")
        assert verifier.engine.instruction


def test_a_model_folder_says_how_it_is_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "verifier.yaml").write_text("questions: own.yaml\nengine: {max_frames: 3, instruction: ' Yes or no?'}")
    (verifier,) = load_panel("model").verifiers
    assert (verifier.engine.model, verifier.engine.max_frames) == (str(folder), 3)
    assert verifier.questions == question_source(verifier) == str(folder / "own.yaml")
    Path("panel.yaml").write_text("verifiers: [{questions: brief, engine: {model: model, max_frames: 6}}]")
    (verifier,) = load_panel("panel.yaml").verifiers
    assert (verifier.questions, verifier.engine.model) == ("brief", str(folder))
    assert (verifier.engine.max_frames, verifier.engine.instruction) == (6, " Yes or no?")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("questions: 'os:path'", "code outside the framegrove package"),
        ("questions: 'framegrover.x:y'", "code outside the framegrove package"),
        ("questions: ../other.yaml", "must be a file beside it"),
        ("questions: /etc/other.yaml", "must be a file beside it"),
        ("engine: {model: other}", "engine.model is 'other', and must be left out"),
        ("kind: callable", "kind must be 'vllm', not 'callable'"),
        ("function: 'os:getpid'", "unknown key 'function'"),
    ],
)
def test_a_downloaded_folder_names_no_code(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "verifier.yaml").write_text(text)
    with pytest.raises(ConfigError, match=said):
        load_panel(str(tmp_path))


@pytest.mark.parametrize("name", ["verifier_gpu.yaml", "verifiers_example.yaml"])
def test_shipped_panels_load_and_survive_the_journey_as_json(name: str) -> None:
    panel = load_panel(str(CONFIGS / name))
    panel.check_files()
    assert PanelConfig.model_validate(json.loads(panel.model_dump_json())) == panel
    assert all(panel.judging(assessment) for assessment in Assessment)


def test_the_example_has_every_kind() -> None:
    digits, signals, contrast = load_panel(str(CONFIGS / "verifiers_example.yaml")).verifiers
    classes = [verifier_class(verifier.kind) for verifier in (digits, signals, contrast)]
    assert classes == [VllmVerifier, SignalsVerifier, CallableVerifier]
    assert digits.engine == EngineConfig()
    assert signals.judges == (Assessment.MOTION, Assessment.FINAL)
    assert "HF_HUB_OFFLINE" in environment(digits)
    assert environment(signals) == environment(contrast) == {}
    (general,) = load_panel(str(CONFIGS / "verifier_gpu.yaml")).verifiers
    assert "HF_HUB_OFFLINE" not in environment(general)


def test_weights_are_one_number_or_a_number_for_each_score() -> None:
    assert VerifierConfig(weight=2.0).weight_of("motion") == 2.0
    by_score = VerifierConfig(weight={"alignment": 3.0})
    assert (by_score.weight_of("alignment"), by_score.weight_of("clarity")) == (3.0, 1.0)
    signals = VerifierConfig(kind="signals", weight=0.5)
    assert (signals.weight_of("flicker"), signals.weight_of("motion")) == (0.5, 0.0)
    assert VerifierConfig(kind="signals", weight={"motion": 2.0}).weight_of("motion") == 2.0


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"verifiers": []}, "verifiers must have at least 1 entry"),
        ({"verifiers": [{}, {"kind": "signals"}]}, "2 verifiers are called 'verifier': give each a name"),
        ({"verifiers": [{"name": "a b"}]}, "verifiers.0.name: a verifier's name must be 1 to 40 letters.*not 'a b'"),
        ({"verifiers": [{"kind": "oracle"}]}, "kind must be 'vllm', 'signals' or 'callable', not 'oracle'"),
        ({"verifiers": [{"weight": -1}]}, "weight: a weight must be a finite number of at least 0, .*, not -1"),
        ({"verifiers": [{"weight": {"a": float("nan")}}]}, "weight: a weight must be a finite number"),
        ({"verifiers": [{"weight": "much"}]}, "weight: a weight must be .*, not 'much'"),
        ({"verifiers": [{"actors": 0}]}, "actors: give a number as 4 or a range as 2:8, not 0"),
        ({"verifiers": [{"judges": []}]}, "verifier verifier judges nothing"),
        ({"verifiers": [{"judges": ["late"]}]}, "judges.0 must be .*not 'late'"),
        ({"verifiers": [{"kind": "callable"}]}, "needs a function of the form module:function"),
        ({"verifiers": [{"kind": "callable", "function": "a.b"}]}, "module:function, not 'a.b'"),
        ({"verifiers": [{"kind": "signals", "questions": "general"}]}, "only vllm takes questions and an engine"),
        ({"verifiers": [{"function": "a:b"}]}, "only callable takes a function"),
        ({"verifiers": [{"questions": "a b:c"}]}, "not of the form module:attribute"),
        ({"verifiers": [{"model": "x"}]}, "unknown key 'verifiers.0.model'"),
    ],
)
def test_a_faulty_panel_is_one_sentence(data: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=f"(?s)panel: .*{said}") as caught:
        validated(PanelConfig, data, "panel")
    assert "\n" not in str(caught.value)


def test_a_file_without_a_list_is_told_the_form(tmp_path: Path) -> None:
    (tmp_path / "old.yaml").write_text("model: owner/name")
    with pytest.raises(ConfigError, match="no list of verifiers"):
        load_panel(str(tmp_path / "old.yaml"))


def test_missing_files_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for verifier, said in [
        (VerifierConfig(engine=EngineConfig(model="no such folder")), "no verifier at no such folder"),
        (VerifierConfig(questions="no_such.yaml"), "no file of questions at no_such.yaml"),
        (VerifierConfig(questions="genral"), "no questions called 'genral'.*brief, general"),
    ]:
        with pytest.raises(UserError, match=said):
            PanelConfig(verifiers=(verifier,)).check_files()
    monkeypatch.setattr("framegrove.config.verifier.shipped_folder", lambda: tmp_path)
    with pytest.raises(UserError, match=r"jobs\.train_verifier"):
        model_folder(EngineConfig())


def test_an_identity_holds_what_decides_the_scores_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    write_settings(tmp_path)
    engine = EngineConfig(model=str(tmp_path))
    one = VerifierConfig(engine=engine)
    told = verifier_identity(one)
    assert json.loads(json.dumps(told)) == told
    roomier = engine.model_copy(
        update={"gpu_memory": 0.5, "cache_gib": 4, "frame_cache_gib": 1.0, "max_questions": 8, "block_size": None}
    )
    assert verifier_identity(VerifierConfig(engine=roomier, actors=3)) == told
    for other in [
        VerifierConfig(engine=engine.model_copy(update={"max_frames": 3})),
        VerifierConfig(engine=engine, questions="brief"),
        VerifierConfig(engine=engine, weight=2.0),
        VerifierConfig(engine=engine, judges=(Assessment.FINAL,)),
        VerifierConfig(engine=engine, calibration={Assessment.FINAL: Calibration(bias=1.0)}),
    ]:
        assert verifier_identity(other) != told
    (tmp_path / "config.json").write_text('{"retrained": true}')
    assert verifier_identity(one)["model"] != told["model"]


def test_a_functions_identity_changes_with_its_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    config = VerifierConfig(kind="callable", function="scores_to_change:score")
    assert verifier_identity(config)["code"] is None
    identities = []
    for value in (0.1, 0.2):
        (tmp_path / "scores_to_change.py").write_text(f"def score(frames, prompt):\n    return {value}\n")
        identities.append(verifier_identity(config))
    assert identities[0] != identities[1]


def test_a_folder_that_is_not_here_says_nothing_of_itself() -> None:
    assert own_settings("owner/name") is None
