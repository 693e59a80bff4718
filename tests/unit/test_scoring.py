"""From log-probabilities to scores."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from framegrove.errors import UserError
from framegrove.types import Assessment
from framegrove.verification.questions import Question, load_question_set
from framegrove.verification.scoring import Answer, averaged, on_grid, probability, read_answer, scores_of

CASES = json.loads((Path(__file__).resolve().parents[1] / "cases" / "logits.json").read_text())
GENERAL = load_question_set("general")
PROMPT = "a paper boat drifts down a stream, then sinks"


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case.get("error", case.get("p"))))
def test_log_probabilities_a_verifier_may_return(case: dict[str, Any]) -> None:
    yes, no = ([float(value) for value in case[side]] for side in ("yes", "no"))
    logprobs = dict(enumerate([*yes, *no]))
    tokens = list(logprobs)
    if "error" in case:
        with pytest.raises(UserError) as caught:
            read_answer(logprobs, tokens[: len(yes)], tokens[len(yes) :])
        assert case["error"] in str(caught.value)
    else:
        answer = read_answer(logprobs, tokens[: len(yes)], tokens[len(yes) :])
        assert probability(answer.odds) == case["p"]
        assert abs(on_grid(answer.odds)) == 16


def test_words_that_say_the_same_add_up() -> None:
    logprobs = {1: math.log(0.3), 2: math.log(0.1), 3: math.log(0.2), 4: -math.inf, 9: math.log(0.4)}
    answer = read_answer(logprobs, [1, 2], [3, 4])
    assert answer.odds == pytest.approx(math.log(0.4 / 0.2))
    assert answer.mass == pytest.approx(0.6)
    with pytest.raises(ValueError, match=r"no log-probability for the tokens \[5\]"):
        read_answer(logprobs, [1], [5])


@pytest.mark.parametrize("position", [0, 1])
def test_not_a_number_is_found_wherever_it_stands(position: int) -> None:
    logprobs = {1: -0.5, 2: -1.0, 3: -2.0}
    logprobs[1 + position] = math.nan
    with pytest.raises(UserError, match="not a number"):
        read_answer(logprobs, [1, 2], [3])


def test_half_a_per_cent_is_enough_to_answer_with() -> None:
    assert read_answer({1: math.log(0.004), 2: math.log(0.0011)}, [1], [2]).odds > 0
    with pytest.raises(UserError, match="only 5e-3 of the probability"):
        read_answer({1: math.log(0.004), 2: math.log(0.0009)}, [1], [2])


@given(st.floats(-2000, 2000))
def test_a_probability_for_any_odds(odds: float) -> None:
    assert 0 <= probability(odds) <= 1
    assert probability(odds) == pytest.approx(1 - probability(-odds))


@given(st.floats(-40, 40))
def test_the_grid_is_a_64th_wide_and_bounded(value: float) -> None:
    rounded = on_grid(value)
    assert rounded * 64 == int(rounded * 64)
    assert abs(rounded - max(-16.0, min(16.0, value))) <= 1 / 128


@given(st.lists(st.integers(-1024, 1024), min_size=26, max_size=26), st.integers(0, 25))
def test_scores_are_probabilities_and_a_surer_answer_for_the_video_never_lowers_one(
    steps: list[int], which: int
) -> None:
    asked = GENERAL.questions(Assessment.FINAL, PROMPT)
    odds = [step / 64 for step in steps]
    scores = dict(scores_of(Assessment.FINAL, asked, odds))
    assert all(0 <= score <= 1 for score in scores.values())
    better = -3.0 if asked[which].against else 3.0
    raised = [odd + (better if at == which else 0.0) for at, odd in enumerate(odds)]
    after = dict(scores_of(Assessment.FINAL, asked, raised))
    assert all(after[name] >= scores[name] for name in scores)
    assert after[asked[which].score] > scores[asked[which].score] or scores[asked[which].score] == 1.0


def test_several_views_are_averaged_and_none_is_surer_than_certain() -> None:
    assert averaged([Answer(math.inf, 0.9)]) == Answer(math.inf, 0.9)
    assert averaged([Answer(3.0, 0.9), Answer(-1.0, 0.5)]) == Answer(1.0, 0.5)
    assert averaged([Answer(math.inf, 1.0), Answer(-math.inf, 1.0)]) == Answer(0.0, 1.0)
    assert averaged([Answer(math.inf, 1.0), Answer(-2.0, 1.0)]) == Answer(7.0, 1.0)


def test_a_score_is_the_product_of_its_answers() -> None:
    asked = [Question("a?", "motion", "motion"), Question("b?", "motion", "stability", weight=0.5)]
    (name, score), *rest = scores_of(Assessment.MOTION, asked, [1.0, -2.0])
    assert (name, rest) == ("motion", [])
    assert score == pytest.approx(probability(1.0) * probability(-2.0) ** 0.5)


def test_a_question_against_the_video_counts_its_no() -> None:
    asked = [Question("flawed?", "clarity", "quality", against=True)]
    ((_, score),) = scores_of(Assessment.IMAGE, asked, [2.0])
    assert score == pytest.approx(1 - probability(2.0))


def test_an_unclear_preview_is_no_verdict() -> None:
    asked = GENERAL.questions(Assessment.POTENTIAL, PROMPT)

    def alignment(clear: float, rest: float) -> float:
        odds = [clear if question.score == "clarity" else rest for question in asked]
        return dict(scores_of(Assessment.POTENTIAL, asked, odds))["alignment"]

    assert alignment(-16, 16) == pytest.approx(0.5, abs=1e-5)
    assert alignment(-16, -16) == pytest.approx(0.5, abs=1e-5)
    assert alignment(16, 16) > 0.99
    assert alignment(16, -16) < 0.01


def test_answers_must_match_questions() -> None:
    with pytest.raises(ValueError, match="as many answers"):
        scores_of(Assessment.IMAGE, GENERAL.questions(Assessment.IMAGE, PROMPT), [0.0])
