"""Score readings: from given tokens and log-probabilities to the score, in closed form."""

from __future__ import annotations

import json
import math

import pytest

from framegrove.config.scores import Digits, Generated, Json, Pairwise, Score, YesNo
from framegrove.config.verifier import load_panel
from framegrove.errors import UserError
from framegrove.verification.readings import Token, Words, read, read_samples
from framegrove.verification.scoring import probability
from tests.readme import ROOT

WORDS = Words(("Yes", "yes"), ("No",))
OUR = Generated(kind="generated", scores={"alignment": r"Alignment Score \(1-5\):", "style": "style"})
QUALITY = Json(kind="json", scores=("sharpness", "motion"), low=0, high=10)


def logs(**probabilities: float) -> dict[str, float]:
    """Log-probabilities; a name that begins with d stands for a digit."""
    return {name.removeprefix("d"): math.log(p) for name, p in probabilities.items()}


def value(score: Score, name: str, *tokens: Token) -> float:
    return probability(read(score, name, tokens, WORDS).odds)


def written(text: str, **at: dict[str, float]) -> list[Token]:
    """A token for each character; of digits that are named by their place, with what else could have stood there."""
    return [Token(char, at.get(f"at{place}", {char: 0.0})) for place, char in enumerate(text)]


def test_yes_is_weighed_against_no_whatever_else_could_be_said() -> None:
    token = Token("Yes", logs(Yes=0.3, yes=0.1) | {" No": math.log(0.1), "Maybe": math.log(0.5)})
    answer = read(YesNo(), "any", [token], WORDS)
    assert probability(answer.odds) == pytest.approx(0.8)
    assert answer.mass == pytest.approx(0.5)


def test_a_word_that_is_not_listed_is_at_most_as_likely_as_the_least_listed() -> None:
    token = Token("Yes", logs(Yes=0.9, Well=0.09, Hm=0.01), unlisted=math.log(0.01))
    assert read(YesNo(), "any", [token], WORDS).odds == pytest.approx(math.log(0.9 / 0.01))
    alone = Token("Yes", logs(Yes=0.9))
    assert read(YesNo(), "any", [alone], WORDS).odds == math.inf
    with pytest.raises(UserError, match="no mass on yes or no"):
        read(YesNo(), "any", [Token("Well", logs(Well=1.0), unlisted=math.log(0.001))], WORDS)


def test_which_of_two_is_read_as_yes_and_no_are() -> None:
    token = Token("A", logs(A=0.6, B=0.2))
    answer = read(Pairwise(kind="pairwise"), "any", [token], Words(("A",), ("B",)))
    assert answer.odds == pytest.approx(math.log(3))


def test_the_expected_digit_of_a_scale_becomes_a_share_of_it() -> None:
    score = Digits(kind="digits", low=1, high=5)
    token = Token("4", logs(d1=0.1, d4=0.3, d5=0.4, d7=0.1))
    answer = read(score, "any", [token], WORDS)
    expected = (0.1 * 1 + 0.3 * 4 + 0.4 * 5) / 0.8
    assert probability(answer.odds) == pytest.approx((expected - 1) / 4)
    assert answer.mass == pytest.approx(0.8)
    assert value(score, "any", Token("5", logs(d5=1.0))) == 1.0
    assert value(score, "any", Token(" 1", {" 1": 0.0})) == 0.0
    with pytest.raises(UserError, match="there is no mass on the digits 1 to 5"):
        read(score, "any", [Token("x", logs(x=1.0))], WORDS)
    with pytest.raises(UserError, match="no answer"):
        read(score, "any", [], WORDS)


def test_a_written_number_is_expected_digit_by_digit() -> None:
    text = "Alignment Score (1-5): 2.4\nstyle 5."
    tokens = written(text, at23=logs(d2=0.5, d3=0.25, d9=0.25), at25=logs(d4=0.5, d6=0.5))
    whole = (2 * 0.5 + 3 * 0.25) / 0.75
    assert value(OUR, "alignment", *tokens) == pytest.approx((whole + 0.5 - 1) / 4)
    assert read(OUR, "alignment", tokens, WORDS).mass == pytest.approx(0.75)
    assert value(OUR, "style", *tokens) == 1.0  # the full stop is no decimal point


def test_no_score_leaves_its_scale() -> None:
    tokens = written("style: 5.9")
    assert value(Generated(kind="generated", scores={"style": "style:"}), "style", *tokens) == 1.0


def test_tokens_of_several_characters_are_found_where_they_stand() -> None:
    tokens = [Token(text, {text: 0.0}) for text in ("Thinking: style 1.", " \ufffd", "\n(3) sty", "le", ": ")]
    score = Generated(kind="generated", scores={"style": "style:?"})
    tokens.append(Token(" 4", {" 4": math.log(0.5), " 2": math.log(0.5)}))
    assert value(score, "style", *tokens) == pytest.approx((3 - 1) / 4)  # the last match counts


@pytest.mark.parametrize("text", ["Style 12", "Alignment Score (1-5): high", "Alignment Score (1-5): 10"])
def test_a_missing_number_is_told(text: str) -> None:
    with pytest.raises(UserError, match=r"no number from 1 to 5 follows 'Alignment Score"):
        read(OUR, "alignment", written(text), WORDS)


def test_numbers_in_json_become_shares_of_the_scale() -> None:
    tokens = written(json.dumps({"reasoning": "{", "sharpness": 10, "motion": 4}))
    assert (value(QUALITY, "sharpness", *tokens), value(QUALITY, "motion", *tokens)) == (1.0, pytest.approx(0.4))
    for text in ('{"sharpness": 1}', '{"sharpness": 1, "motion": true}', '{"motion": 11}', "[1]", '{"mot'):
        with pytest.raises(UserError, match="motion"):
            read(QUALITY, "motion", written(text), WORDS)


def test_samples_count_by_their_frequency_with_half_an_answer_either_way() -> None:
    answer = read_samples(YesNo(), "any", ["Yes", "yes.", " No", "Nope", "Yesterday", "maybe"], WORDS)
    assert probability(answer.odds) == pytest.approx((2 + 0.5) / (3 + 1))
    assert answer.mass == pytest.approx(3 / 6)
    assert probability(read_samples(YesNo(), "any", ["Yes"] * 8, WORDS).odds) == pytest.approx(8.5 / 9)
    digits = Digits(kind="digits", low=1, high=5)
    found = read_samples(digits, "any", ["Score: 5", "3", "none", "9"], WORDS)
    assert probability(found.odds) == pytest.approx((1.0 + 0.5 + 0.5) / 3)
    assert probability(read_samples(OUR, "style", ["style 3", "style 5"], WORDS).odds) == pytest.approx(2.0 / 3)
    quality = read_samples(QUALITY, "motion", ['{"sharpness": 1, "motion": 5}', "{"], WORDS)
    assert probability(quality.odds) == pytest.approx(0.5)
    with pytest.raises(UserError, match="none of 2 answers says yes or no"):
        read_samples(YesNo(), "any", ["Well", "Hm"], WORDS)


@pytest.mark.parametrize(
    ("name", "text", "shares"),
    [
        (
            "verifier_unified_reward.yaml",
            "Alignment Score (1-5): 4.0\nPhysics Score (1-5): 3.0\nCoherence Score (1-5): 2\nStyle Score (1-5): 5",
            {"alignment": 0.75, "physics": 0.5, "coherence": 0.25, "style": 1.0},
        ),
        (
            "verifier_video_score2.yaml",
            "<think>(1) visual quality: the frames are sharp.</think>\n(1) visual quality - clarity, smoothness: 4\n"
            "(2) text-to-video alignment: 3\n(3) physical/common-sense consistency: 1",
            {"quality": 0.75, "alignment": 0.5, "physics": 0.0},
        ),
    ],
)
def test_the_files_for_models_that_write_find_their_scores(name: str, text: str, shares: dict[str, float]) -> None:
    (config,) = load_panel(str(ROOT / "jobs" / "configs" / name)).verifiers
    assert isinstance(config.score, Generated)
    assert config.score.scores.keys() == shares.keys()
    found = {score: read_samples(config.score, score, [text], Words((), ())).odds for score in shares}
    expected = {score: math.log((share + 0.5) / (1.5 - share)) for score, share in shares.items()}
    assert found == pytest.approx(expected)
