"""A panel's scores as one number: closed forms of every fusion."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from framegrove.config.verifier import Calibration, PanelConfig, VerifierConfig
from framegrove.errors import UserError
from framegrove.search.fusion import GIVEN_UP, Panel, Scoring, fused, product
from framegrove.types import Assessment

IMAGE, FINAL = Assessment.IMAGE, Assessment.FINAL


def test_a_lone_verifiers_log_p_is_that_of_the_product_of_its_scores() -> None:
    panel = Panel([VerifierConfig(name="eye")], {})
    scores = (("alignment", 0.5), ("motion", 0.8))
    assert panel.log_p(IMAGE, scores) == pytest.approx(math.log(0.4)) == product(IMAGE, scores)
    assert panel.log_p(IMAGE, (("alignment", 0.0),)) == pytest.approx(math.log(1e-6))  # no veto for ever


def test_weights_by_score_are_exponents_and_a_single_weight_is_a_share() -> None:
    half = VerifierConfig(name="half", weight={"a": 0.5, "b": 0.0})
    assert Panel([half], {}).log_p(IMAGE, (("a", 0.25), ("b", 0.1))) == pytest.approx(math.log(0.5))
    three = VerifierConfig(name="three", weight=3.0)
    one = VerifierConfig(name="one", kind="signals", weight=1.0)
    scores = (("three/x", 0.5), ("one/x", 0.1), ("one/motion", 0.9))  # a signal's motion is reported, not weighed
    assert Panel([three, one], {}).log_p(FINAL, scores) == pytest.approx((3 * math.log(0.5) + math.log(0.1)) / 4)
    silent = VerifierConfig(name="silent", weight=0.0)
    assert Panel([silent], {}).log_p(IMAGE, (("a", 0.1),)) == 0
    assert Panel([half], {"b": 1.0}).log_p(IMAGE, (("a", 0.25), ("b", 0.1))) == pytest.approx(math.log(0.05))


def test_a_branch_that_was_given_up_has_no_chance_whatever_a_calibration_adds() -> None:
    shipped = Panel(PanelConfig().verifiers, {})
    for assessment in Assessment:
        assert shipped.log_p(assessment, ((GIVEN_UP, 0.0),)) == pytest.approx(math.log(1e-6))
    by_score = Panel([VerifierConfig(name="eye", weight={"a": 1.0})], {})
    table = fused("ranks", IMAGE, [((GIVEN_UP, 0.0),)] * 2, Scoring(by_score.weigh, by_score.log_p))
    assert table == [0.5, 0.5]


def test_equal_scores_are_level_as_z_scores_too() -> None:
    assert fused("z-scores", IMAGE, [(("a", 0.1),)] * 3, Scoring()) == [0.0, 0.0, 0.0]


def test_a_calibration_turns_scores_into_the_probability_of_being_right() -> None:
    config = VerifierConfig(name="eye", calibration={IMAGE: Calibration(bias=-1.0, slopes={"a": 0.5})})
    panel = Panel([config], {})
    for score in (0.01, 0.5, 0.9, 1.0):
        odds = -1 + 0.5 * math.log(max(score, 1e-6) / max(1 - score, 1e-6))
        assert math.exp(panel.log_p(IMAGE, (("a", score), ("b", 0.3)))) == pytest.approx(
            1 / (1 + math.exp(-odds)), rel=1e-4
        )
    assert panel.log_p(FINAL, (("a", 0.5),)) == pytest.approx(math.log(0.5))  # not calibrated there
    values = [panel.log_p(IMAGE, (("a", score / 100),)) for score in range(101)]
    assert all(left < right for left, right in pairwise(values))


def test_a_weight_of_a_verifier_that_is_not_there_is_refused() -> None:
    with pytest.raises(UserError, match="one of left, right"):
        Panel([VerifierConfig(name="left"), VerifierConfig(name="right")], {"centre/a": 1.0})


def test_ranks_and_z_scores_compare_within_the_cohort() -> None:
    cohort = [(("a", 0.1), ("b", 0.5)), (("a", 0.3), ("b", 0.5)), (("a", 0.2), ("b", 0.5))]
    assert fused("ranks", IMAGE, cohort, Scoring()) == pytest.approx([(1 / 6 + 1 / 2) / 2, (5 / 6 + 1 / 2) / 2, 1 / 2])
    scoring = Scoring(weigh={"a": 3.0, "b": 1.0}.__getitem__)
    apart = math.sqrt(1.5)
    assert fused("z-scores", IMAGE, cohort, scoring) == pytest.approx([-0.75 * apart, 0.75 * apart, 0], abs=1e-9)
    with pytest.raises(UserError, match="different names"):
        fused("ranks", IMAGE, [(("a", 0.1),), (("b", 0.1),)], Scoring())


@pytest.mark.parametrize(("path", "is_"), [("sum", -3.0), ("min", -2.0), ("last", -1.0), (None, -3.0)])
def test_path_scores(path: str | None, is_: float) -> None:
    scoring = Scoring(path=path)  # type: ignore[arg-type]
    assert scoring.along(-2.0, -1.0, "sum") == is_
    assert scoring.along(None, -1.0, "sum") == -1.0


def test_a_request_may_make_a_verifier_count_more_or_less() -> None:
    """A factor multiplies a verifier's weight, whether it has one or one for each score, and changes no opinion."""
    left = VerifierConfig(name="left", weight=2.0)
    right = VerifierConfig(name="right", weight={"a": 1.0, "b": 3.0})
    scores = (("left/a", 0.5), ("right/a", 0.5), ("right/b", 0.5))
    own, changed = Panel([left, right], {}), Panel([left, right], {}, {"left": 0.5, "right": 4.0})
    assert [changed.weigh(name) for name, _ in scores] == [1.0, 4.0, 12.0]
    alone = {name: Panel([each], {}) for name, each in (("left", left), ("right", right))}
    opinions = [
        alone["left"].log_p(IMAGE, (("a", 0.5),)),
        alone["right"].log_p(IMAGE, (("a", 0.5), ("b", 0.5))),
    ]
    assert own.log_p(IMAGE, scores) == pytest.approx((2 * opinions[0] + opinions[1]) / 3)
    assert changed.log_p(IMAGE, scores) == pytest.approx((opinions[0] + 4 * opinions[1]) / 5)
    silent = Panel([left, right], {}, {"left": 0.0})
    assert silent.log_p(IMAGE, scores) == pytest.approx(opinions[1])
