"""What the digits world's verifier is asked: object by object, and as before by sentence and order."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from framegrove.config.verifier import Calibration, VerifierConfig, load_panel, own_settings, question_source
from framegrove.digits.questions import QUESTIONS, Aspect, static_scene, write_settings
from framegrove.digits.world import parse
from framegrove.types import Assessment
from framegrove.verification.questions import load_question_set
from framegrove.verification.views import View

TWO = "a red 3 moves left and right and a blue 2 moves up and down"


def test_the_sentences_and_their_order_are_those_the_shipped_verifier_was_calibrated_with() -> None:
    expected = [
        ("Is there a red 3 in every frame?", "alignment", 1.0),
        ("Does the red 3 move left and right?", "motion", 1.0),
        ("Is there a blue 2 in every frame?", "alignment", 1.0),
        ("Does the blue 2 move up and down?", "motion", 1.0),
        ("Are there exactly two objects?", "alignment", 0.5),
        ("Does everything keep its shape and colour?", "motion", 1.0),
        ("Does this show a red 3 moving left and right and a blue 2 moving up and down?", "alignment", 0.25),
        ("Is the picture clear?", "clarity", 1.0),
    ]
    asked = QUESTIONS.questions(Assessment.FINAL, TWO)
    assert [(q.text, q.score, q.weight) for q in asked] == expected
    assert not any(q.against for q in asked)


def test_every_object_is_asked_about_by_itself() -> None:
    asked = QUESTIONS.questions(Assessment.FINAL, TWO)
    for name in ("red 3", "blue 2"):
        assert {q.aspect for q in asked if name in q.text} == {Aspect.BINDING, Aspect.MOTION, Aspect.MATCH}


def test_a_single_picture_is_not_asked_about_motion() -> None:
    for assessment in (Assessment.POTENTIAL, Assessment.IMAGE):
        assert {q.score for q in QUESTIONS.questions(assessment, TWO)} == {"alignment", "clarity"}
    assert {q.score for q in QUESTIONS.questions(Assessment.MOTION, TWO)} == {"alignment", "motion"}


@pytest.mark.parametrize("assessment", list(Assessment))
def test_other_prompts_get_the_brief_set(assessment: Assessment) -> None:
    prompt = "a paper boat drifts down a stream, then sinks"
    asked = QUESTIONS.questions(assessment, prompt)
    assert asked == load_question_set("brief").questions(assessment, prompt)


def test_a_still_picture_of_a_caption() -> None:
    objects = parse(TWO)
    assert objects is not None
    assert static_scene(objects) == "a red 3 and a blue 2"


def test_little_is_asked_about_a_middle_unit() -> None:
    asked = QUESTIONS.questions(Assessment.MOTION, TWO)
    assert [(q.text, q.score) for q in asked] == [
        ("Is there a red 3 in every frame?", "alignment"),
        ("Does the red 3 now move left and right?", "motion"),
        ("Is there a blue 2 in every frame?", "alignment"),
        ("Does the blue 2 now move up and down?", "motion"),
        ("Are there exactly two objects?", "alignment"),
        ("Does everything keep its shape and colour?", "motion"),
    ]
    assert {q.view for q in asked} == {View.UNIT}
    for assessment in (Assessment.IMAGE, Assessment.FINAL):
        assert {q.view for q in QUESTIONS.questions(assessment, TWO)} == {View.VIDEO}
    final = [q.text for q in QUESTIONS.questions(Assessment.FINAL, TWO)]
    assert "Does the red 3 move left and right?" in final


def test_verifiers_name_the_set_that_they_were_trained_for(tmp_path: Path) -> None:
    assert load_question_set(question_source(VerifierConfig())) is QUESTIONS
    fitted = {Assessment.MOTION: Calibration(bias=-0.5, slopes={"alignment": 0.7})}
    write_settings(tmp_path, fitted)
    settings = own_settings(str(tmp_path))
    assert settings is not None
    assert settings.questions is not None
    assert load_question_set(settings.questions) is QUESTIONS
    assert settings.engine.max_frames == 6
    assert settings.calibration == fitted
    write_settings(tmp_path)
    uncalibrated = own_settings(str(tmp_path))
    assert uncalibrated is not None
    assert uncalibrated.calibration == {}


def test_a_verifier_can_be_made_to_misread_how_things_move() -> None:
    (verifier,) = load_panel("jobs/configs/verifier_misread.yaml").verifiers
    misread, shipped = load_question_set(verifier.questions or ""), load_panel(None).verifiers[0]
    assert misread.fingerprint != QUESTIONS.fingerprint
    for assessment in Assessment:
        for ours, theirs in zip(misread.questions(assessment, TWO), QUESTIONS.questions(assessment, TWO), strict=True):
            assert ours == replace(theirs, against=theirs.aspect is Aspect.MOTION)
    assert verifier.calibration == shipped.calibration
