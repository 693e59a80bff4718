"""Question sets: what is asked where and about which view, and what a YAML file may say."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from framegrove.config.base import ConfigError
from framegrove.config.verifier import shipped_sets
from framegrove.types import Assessment
from framegrove.verification.questions import load_question_set
from framegrove.verification.views import View

OF_ONE_THING_EACH = ("general", "brief")  # the shipped sets for yes/no questions
PROMPT = "a paper boat drifts down a stream, then sinks"


@pytest.mark.parametrize("name", OF_ONE_THING_EACH)
@pytest.mark.parametrize("assessment", list(Assessment))
def test_every_shipped_set_asks_something_everywhere_and_repeats_itself(name: str, assessment: Assessment) -> None:
    asked = load_question_set(name).questions(assessment, PROMPT)
    assert asked == load_question_set(name).questions(assessment, PROMPT)
    assert len({question.text for question in asked}) == len(asked) >= 2
    assert all(0 < question.weight <= 1 for question in asked)


@pytest.mark.parametrize("name", sorted({*shipped_sets()} - {*OF_ONE_THING_EACH}))
@pytest.mark.parametrize("assessment", list(Assessment))
def test_other_shipped_sets_ask_once_for_several_scores(name: str, assessment: Assessment) -> None:
    asked = load_question_set(name).questions(assessment, PROMPT)
    assert len({question.text for question in asked}) == 1
    assert len({question.score for question in asked}) == len(asked) >= 2
    assert "paper boat" in asked[0].text


def test_the_general_set_covers_its_aspects_where_they_can_be_told() -> None:
    questions = load_question_set("general")
    aspects = {each: {q.aspect for q in questions.questions(each, PROMPT)} for each in Assessment}
    still = {"alignment", "composition", "quality", "fidelity", "safety"}
    assert aspects[Assessment.FINAL] == still | {"stability", "motion"}
    assert aspects[Assessment.IMAGE] == still
    assert aspects[Assessment.POTENTIAL] == {"alignment", "quality"}
    weights: dict[str, float] = {}
    for question in questions.questions(Assessment.FINAL, PROMPT):
        weights[question.score] = weights.get(question.score, 0.0) + question.weight
    assert weights == pytest.approx(dict.fromkeys(weights, 1.0))


def test_prompts_are_judged_by_their_stages() -> None:
    brief = load_question_set("brief")
    assert "paper boat" in brief.questions(Assessment.IMAGE, PROMPT)[0].text
    assert "sinks" not in brief.questions(Assessment.MOTION, PROMPT)[0].text
    assert any(q.text.endswith("like this? sinks") for q in brief.questions(Assessment.FINAL, PROMPT))
    braces = "a sign that reads {prompt} {0}"
    assert brief.questions(Assessment.FINAL, braces)[0].text.endswith(braces)


@pytest.mark.parametrize("name", OF_ONE_THING_EACH)
def test_a_middle_unit_is_judged_by_what_is_new_and_the_video_as_a_whole(name: str) -> None:
    views = {each: {q.view for q in load_question_set(name).questions(each, PROMPT)} for each in Assessment}
    assert views[Assessment.POTENTIAL] == views[Assessment.MOTION] == {View.UNIT}
    assert views[Assessment.IMAGE] == views[Assessment.FINAL] == {View.VIDEO}


def test_a_question_may_have_a_view_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f"questions:\n- {{{GOOD}, view: recent}}\n- {{{GOOD}, view: {{motion: dense}}}}\n")
    asked = load_question_set(str(file))
    assert [q.view for q in asked.questions(Assessment.FINAL, "a cat")] == [View.RECENT, View.VIDEO]
    assert [q.view for q in asked.questions(Assessment.MOTION, "a cat")] == [View.RECENT, View.DENSE]
    before = asked.fingerprint
    file.write_text(f"questions:\n- {{{GOOD}, view: recent}}\n- {{{GOOD}, view: {{motion: unit}}}}\n")
    assert load_question_set(str(file)).fingerprint != before


GOOD = "text: 'Is it {prompt}?', score: alignment, aspect: alignment"


def test_a_set_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        f"questions:\n- {{{GOOD}}}\n"
        "- {text: 'Is it {{grey}}?', score: dull, aspect: colour, weight: 0.5, assessments: [image], polarity: against}"
    )
    first, second = load_question_set(str(file)).questions(Assessment.IMAGE, "a cat")
    assert (first.text, first.score, first.weight, first.against) == ("Is it a cat?", "alignment", 1.0, False)
    assert (second.text, second.aspect, second.weight, second.against) == ("Is it {grey}?", "colour", 0.5, True)
    before = load_question_set(str(file)).fingerprint
    file.write_text(f"# The same.\nquestions:\n- {{{GOOD}}}\n- {{{GOOD}, weight: 0.5}}")
    assert load_question_set(str(file)).fingerprint != before
    assert len(load_question_set(str(file)).questions(Assessment.FINAL, "a cat")) == 2


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("{text: 'Is it {scene}?', score: a, aspect: a}", r"nothing to put in for \{scene\}: allowed are \{prompt\}"),
        ("{text: 'Is it {prompt.x}?', score: a, aspect: a}", r"nothing to put in for \{prompt\.x\}"),
        ("{text: 'Is it {prompt?', score: a, aspect: a}", "braces do not match"),
        ("{text: 'Is it?', aspect: a}", "the key score is missing"),
        (
            "{text: 'Is it?', score: a, aspect: a, assessments: [later]}",
            "assessments.0 must be 'potential', .* not 'later'",
        ),
        ("{text: 'Is it?', score: a, aspect: a, weight: -1}", "weight must be greater than 0, not -1"),
        ("{text: 'Is it?', score: a, aspect: a, view: all}", "a view must be one of video, recent, unit, dense, or"),
        ("{text: 'Is it?', score: a, aspect: a, view: {motion: all}}", "a view must be one of video, recent"),
        ("{text: 'Is it?', score: a, aspect: a, view: {middle: unit}}", r"view.*must be 'potential', .* not 'middle'"),
        ("{text: 'Is it?', score: a, aspect: a, polarity: no}", "polarity must be 'for' or 'against'"),
        ("{text: 'Is it?', score: a, aspect: a, aspects: b}", "did you mean 'aspect'"),
        ("Is it?", "must hold keys and values"),
    ],
)
def test_a_faulty_entry_is_named_in_one_sentence(tmp_path: Path, entry: str, said: str) -> None:
    file = tmp_path / "faulty.yaml"
    file.write_text(f"questions:\n- {{{GOOD}}}\n- {entry}\n")
    with pytest.raises(ConfigError, match=rf"(?s)faulty\.yaml, question 2: .*{said}") as caught:
        load_question_set(str(file))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "questions: []", "questions: {text: a}", f"questions: [{{{GOOD}}}]\nmore: 1"])
def test_a_file_holds_a_list_of_questions(tmp_path: Path, text: str) -> None:
    (tmp_path / "set.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"set\.yaml must hold the key questions"):
        load_question_set(str(tmp_path / "set.yaml"))


def test_sets_in_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_questions.py").write_text(
        "class Own:\n    fingerprint = '1'\n    def questions(self, assessment, prompt):\n        return ()\n"
        "OWN = Own()\nNOT = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert load_question_set("own_questions:OWN").fingerprint == "1"
    for source, said in [
        ("own_questions:NOT", "must have a method questions"),
        ("own_questions:MISSING", "module own_questions has no MISSING"),
        ("no_such_module_at_all:OWN", "cannot be imported"),
        ("general2", "shipped sets are brief, general"),
    ]:
        with pytest.raises(ConfigError, match=said):
            load_question_set(source)
    sys.modules.pop("own_questions")
