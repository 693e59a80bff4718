"""From log-probabilities to panel scores."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from framegrove.types import Assessment
from framegrove.verification.questions import Aspect, Panel, Question, questions
from framegrove.verification.rewriting import staged
from framegrove.verification.scoring import log_odds, on_grid, panel_scores, probability

PROMPT = staged("a red 3 moves left and right and a blue 2 moves up and down")


def test_log_odds_add_up_the_words_that_say_the_same() -> None:
    logprobs = {1: math.log(0.3), 2: math.log(0.1), 3: math.log(0.2), 9: math.log(0.4)}
    assert log_odds(logprobs, [1, 2], [3]) == pytest.approx(math.log(0.4 / 0.2))
    with pytest.raises(ValueError, match="yes or for no"):
        log_odds({9: -0.1}, [1], [3])


@given(st.floats(-40, 40))
def test_the_grid_is_a_64th_wide_and_bounded(value: float) -> None:
    rounded = on_grid(value)
    assert rounded * 64 == int(rounded * 64)
    assert abs(rounded - max(-16.0, min(16.0, value))) <= 1 / 128


@given(st.lists(st.integers(-1024, 1024), min_size=13, max_size=13), st.integers(0, 12))
def test_scores_are_probabilities_and_a_surer_yes_never_lowers_one(steps: list[int], which: int) -> None:
    asked = questions(Assessment.FINAL, PROMPT)
    odds = [step / 64 for step in steps[: len(asked)]]
    scores = dict(panel_scores(Assessment.FINAL, asked, odds))
    assert all(0 <= score <= 1 for score in scores.values())
    raised = [odd + (3.0 if at == which else 0.0) for at, odd in enumerate(odds)]
    after = dict(panel_scores(Assessment.FINAL, asked, raised))
    assert all(after[name] >= scores[name] for name in scores)


def test_a_score_is_the_product_of_its_answers() -> None:
    asked = [Question("a?", Panel.MOTION, Aspect.MOTION), Question("b?", Panel.MOTION, Aspect.STABILITY, weight=0.5)]
    (name, score), *rest = panel_scores(Assessment.MOTION, asked, [1.0, -2.0])
    assert (name, rest) == ("motion", [])
    assert score == pytest.approx(probability(1.0) * probability(-2.0) ** 0.5)


def test_an_unclear_preview_is_no_verdict() -> None:
    asked = questions(Assessment.POTENTIAL, PROMPT)

    def alignment(clear: float, rest: float) -> float:
        odds = [clear if q.panel is Panel.CLARITY else rest for q in asked]
        return dict(panel_scores(Assessment.POTENTIAL, asked, odds))["alignment"]

    assert alignment(-16, 16) == pytest.approx(0.5, abs=1e-5)
    assert alignment(-16, -16) == pytest.approx(0.5, abs=1e-5)
    assert alignment(16, 16) > 0.99
    assert alignment(16, -16) < 0.01


def test_answers_must_match_questions() -> None:
    with pytest.raises(ValueError, match="as many answers"):
        panel_scores(Assessment.IMAGE, questions(Assessment.IMAGE, PROMPT), [0.0])
