"""Panels of verifiers: what --verifier may name, what their YAML may say, and what identifies one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from actors.verifier import VllmVerifier
from actors.verifier_kinds import set_environment, verifier_class
from framegrove.config.base import ConfigError, validated
from framegrove.config.engine import EngineConfig, model_folder, shipped_folder
from framegrove.config.scores import Pairwise
from framegrove.config.verifier import (
    Calibration,
    PanelConfig,
    VerifierConfig,
    environment,
    load_panel,
    own_settings,
    question_source,
)
from framegrove.digits.questions import write_settings
from framegrove.errors import UserError
from framegrove.types import Assessment
from framegrove.verification.callables import CallableVerifier
from framegrove.verification.identity import verifier_identity
from framegrove.verification.signals import SignalsVerifier
from framegrove.verification.verdicts import checked_questions

SERVED: dict[str, Any] = {"kind": "endpoint", "endpoint": {"url": "http://localhost:8000/v1", "model": "m"}}
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


SHIPPED = sorted(file.name for file in CONFIGS.glob("verifier*.yaml") if "digits" not in file.name)
FOR_FILES_OF_THE_USERS_OWN = {"verifier_vision_reward.yaml", "verifier_reward.yaml"}


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_panels_load_and_survive_the_journey_as_json(name: str) -> None:
    panel = load_panel(str(CONFIGS / name))
    assert PanelConfig.model_validate(json.loads(panel.model_dump_json())) == panel
    if name in FOR_FILES_OF_THE_USERS_OWN:
        with pytest.raises(ConfigError, match=r"there is no file of questions|no verifier at"):
            panel.check_files()
        return
    panel.check_files()
    for verifier in panel.verifiers:
        if verifier.kind in ("vllm", "endpoint") and not isinstance(verifier.score, Pairwise):
            checked_questions(verifier)


@pytest.mark.parametrize("name", ["verifier_gpu.yaml", "verifiers_example.yaml", "verifier_unified_reward.yaml"])
def test_some_shipped_panels_judge_everything_a_search_asks(name: str) -> None:
    panel = load_panel(str(CONFIGS / name))
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
        ({"verifiers": [{"kind": "oracle"}]}, "kind must be 'vllm', 'endpoint', 'reward', .*, not 'oracle'"),
        ({"verifiers": [{"weight": -1}]}, "weight: a weight must be a finite number of at least 0, .*, not -1"),
        ({"verifiers": [{"weight": {"a": float("nan")}}]}, "weight: a weight must be a finite number"),
        ({"verifiers": [{"weight": "much"}]}, "weight: a weight must be .*, not 'much'"),
        ({"verifiers": [{"actors": 0}]}, "actors: give a number as 4 or a range as 2:8, not 0"),
        ({"verifiers": [{"judges": []}]}, "verifier verifier judges nothing"),
        ({"verifiers": [{"judges": ["late"]}]}, "judges.0 must be .*not 'late'"),
        ({"verifiers": [{"kind": "callable"}]}, "needs a function of the form module:function"),
        ({"verifiers": [{"kind": "callable", "function": "a.b"}]}, "module:function, not 'a.b'"),
        ({"verifiers": [{"kind": "signals", "questions": "general"}]}, "only vllm, endpoint and reward take questions"),
        ({"verifiers": [{"kind": "endpoint", "engine": {"max_frames": 4}}]}, "only vllm and reward take an engine"),
        ({"verifiers": [{"kind": "callable", "score": {"kind": "digits"}}]}, "only vllm, .* take a score to be read"),
        ({"verifiers": [{"endpoint": {"url": "http://a/v1", "model": "m"}}]}, "only endpoint takes an endpoint"),
        ({"verifiers": [{"kind": "endpoint"}]}, "needs an endpoint, with its url and model"),
        ({"verifiers": [{"kind": "reward"}]}, "is of kind reward and needs score: {kind: reward"),
        ({"verifiers": [{"score": {"kind": "stars"}}]}, "score must have as 'kind' one of 'yes_no', 'digits'"),
        ({"verifiers": [{"score": {"low": 1}}]}, "score must have a 'kind'"),
        ({"verifiers": [{"score": {"kind": "digits", "hi": 5}}]}, "unknown key 'verifiers.0.score.digits.hi'"),
        ({"verifiers": [{"score": {"kind": "digits", "low": 5}}]}, "a scale must ascend, and low is 5, high 5"),
        ({"verifiers": [{"score": {"kind": "digits", "high": 10}}]}, "high must be at most 9, not 10"),
        *(
            (
                {"verifiers": [{"score": {"kind": "generated", "scores": {"a": label}}}]},
                "label of a is no regular expression",
            )
            for label in ("(", "(?i)look:", "(?P<whole>look)")  # by itself, and before a number
        ),
        (
            {
                "verifiers": [
                    {
                        "kind": "reward",
                        "score": {"kind": "reward", "outputs": {"a": {}}},
                        "engine": {"tensor_parallel": 2},
                    }
                ]
            },
            "is of kind reward and runs on one GPU: leave tensor_parallel out",
        ),
        ({"verifiers": [{"score": {"kind": "json", "scores": []}}]}, "scores must have at least 1 entry"),
        ({"verifiers": [{"score": {"kind": "pairwise", "question": "A or B?"}}]}, "the question must hold {prompt}"),
        ({"verifiers": [{"score": {"kind": "pairwise"}, "questions": "brief"}]}, "leave questions out"),
        (
            {"verifiers": [{"score": {"kind": "json", "scores": ["a", "b"]}, "weight": {"c": 1}}]},
            "verifier verifier has a weight for 'c', but its scores are a, b",
        ),
        (
            {"verifiers": [{"kind": "signals", "weight": {"sharp": 1}}]},
            "weight for 'sharp', but its scores are sharpness",
        ),
        (
            {"verifiers": [{**SERVED, "endpoint": {"url": "localhost:8000", "model": "m"}}]},
            "of the form https://host/v1",
        ),
        (
            {"verifiers": [{**SERVED, "endpoint": {"url": "http://a/v1", "model": "m", "key": "sk-1234"}}]},
            "name of an environment variable such as OPENAI_API_KEY, not the key itself",
        ),
        (
            {"verifiers": [{**SERVED, "endpoint": {"url": "http://a/v1", "model": "m", "extra": {"n": 2}}}]},
            "extra must not hold n: the verifier says that itself",
        ),
        (
            {"verifiers": [{**SERVED, "score": {"kind": "reward", "outputs": {"a": {}}}}]},
            "an endpoint tells no rewards",
        ),
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


def test_a_published_list_stands_beside_its_weights(tmp_path: Path) -> None:
    questions, weights = tmp_path / "select.txt", tmp_path / "weight.json"
    questions.write_text("Is there [[prompt]]?\nIs it odd?\nDoes it matter?\n")
    config = VerifierConfig(questions=str(questions))
    with pytest.raises(ConfigError, match=r"no weight\.json beside the questions"):
        PanelConfig(verifiers=(config,)).check_files()
    weights.write_text("[0.5, -1.5, 0]")
    PanelConfig(verifiers=(config,)).check_files()
    before = verifier_identity(config)["questions"]
    weights.write_text("[0.5, -1, 0]")
    assert verifier_identity(config)["questions"] != before


def test_missing_files_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for verifier, said in [
        (VerifierConfig(engine=EngineConfig(model="no such folder")), "no verifier at no such folder"),
        (VerifierConfig(questions="no_such.yaml"), "no file of questions at no_such.yaml"),
        (VerifierConfig(questions="genral"), "no questions called 'genral'.*brief, general"),
    ]:
        with pytest.raises(UserError, match=said):
            PanelConfig(verifiers=(verifier,)).check_files()
    monkeypatch.setattr("framegrove.config.engine.shipped_folder", lambda: tmp_path)
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


def test_an_endpoints_identity_is_what_it_is_asked_and_how_that_is_read() -> None:
    def told(score: dict[str, Any] | None = None, **endpoint: Any) -> dict[str, Any]:
        data = SERVED | {"endpoint": SERVED["endpoint"] | endpoint} | ({"score": score} if score else {})
        return verifier_identity(VerifierConfig.model_validate(data))

    usual = told()
    assert json.loads(json.dumps(usual)) == usual
    assert told(key="OTHER", at_a_time=1, timeout=5.0, retries=0) == usual
    for other in [
        told(model="n"),
        told(url="http://localhost:8001/v1"),
        told(logprobs=False),
        told(media="video"),
        told(price=1e12),
        told({"kind": "yes_no", "combine": "mean"}),
        told({"kind": "digits"}),
        told({"kind": "digits", "high": 4}),
    ]:
        assert other != usual
    assert "score" not in usual  # searches from before there were several kinds go on
    assert told({"kind": "pairwise"})["score"]["kind"] == "pairwise"


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


def test_the_hub_is_left_alone_unless_a_judge_beside_comes_from_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Judges that take turns in one process share its environment, whichever comes first."""
    local, hub = (
        {"name": name, "engine": {"model": model}} for name, model in (("a", str(tmp_path)), ("b", "own/vlm"))
    )
    frames = {"name": "c", "kind": "frames", "frames": {"model": "own/clip"}}
    for entries, alone in (([local], True), ([local, hub], False), ([hub, local], False), ([local, frames], False)):
        with monkeypatch.context() as patched:
            for name in ("HF_HUB_OFFLINE", "VLLM_CPU_KVCACHE_SPACE"):
                patched.setenv(name, "unset")
            set_environment([VerifierConfig.model_validate(entry) for entry in entries])
            assert os.environ["HF_HUB_OFFLINE"] == ("1" if alone else "unset")
            assert os.environ["VLLM_CPU_KVCACHE_SPACE"] == "1"
