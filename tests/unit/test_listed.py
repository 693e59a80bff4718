"""Published lists of weighted questions."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from framegrove.config.base import ConfigError
from framegrove.types import Assessment
from framegrove.verification.questions import load_question_set
from framegrove.verification.scoring import scores_of


def written(folder: Path, questions: str, weights: str) -> str:
    (folder / "weight.json").write_text(weights)
    (folder / "select.txt").write_text(questions)
    return str(folder / "select.txt")


def test_the_score_is_the_published_one_with_probabilities_for_answers(tmp_path: Path) -> None:
    """VisionReward: the mean of answers of 1 and -1 times weights; here brought from its range to [0, 1]."""
    weights = [0.8, -0.3, 0.0, 0.4]
    source = written(tmp_path, "Is it [[prompt]]?\nIs it bad?\nOr?\n\nIs it sharp?\n", str(weights))
    asked = load_question_set(source).questions(Assessment.FINAL, "a {cat}")
    assert [each.text for each in asked] == ["Is it a {cat}?", "Is it bad?", "Is it sharp?"]
    chances = {"Is it a {cat}?": 0.9, "Is it bad?": 0.2, "Is it sharp?": 0.6}
    odds = [math.log(chances[each.text] / (1 - chances[each.text])) for each in asked]
    ((name, score),) = scores_of(Assessment.FINAL, asked, odds, "mean")
    published = sum((2 * chance - 1) * weight for chance, weight in zip((0.9, 0.2, 0.6), (0.8, -0.3, 0.4), strict=True))
    most = sum(abs(weight) for weight in weights)
    assert name == "preference"
    assert score == pytest.approx((published / most + 1) / 2)


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ("[1, 2]", "has 1 questions and weight.json beside it 2 weights"),
        ("[0]", "no question with a weight other than 0"),
        ("{}", "must hold a list of finite numbers"),
        ("[true]", "must hold a list of finite numbers"),
        ("[1", "is not valid JSON"),
    ],
)
def test_a_list_that_does_not_fit_is_one_sentence(tmp_path: Path, weights: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_question_set(written(tmp_path, "Is it?", weights))
