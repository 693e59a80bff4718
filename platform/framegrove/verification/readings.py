"""From the tokens that a model has written, with what else it could have written, to one answer: all kinds of score.

An answer is a value in [0, 1] as log-odds, so that what comes after (averages over views, the grid, products, weights)
is the same for P(yes), for an expected digit's place on its scale and for a number in JSON. Everything here is pure:
the tokens may come from an engine in this process or from a server.

The expectation over the digits of a scale is that of G-Eval (arXiv 2303.16634, section 2); VideoScore2 (arXiv
2509.22799) reads soft scores at the same tokens, as the likeliest digit times its share of the probability, which
prefers a sure 2 to an unsure 3.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from framegrove.config.scores import Digits, Generated, Json, Pairwise, Reward, Score, YesNo, numbered
from framegrove.errors import UserError
from framegrove.verification.scoring import LEAST_MASS, Answer, answer_of, log_sum, short_mass

_SHOWN = 80  # characters of an answer that are repeated in a message


@dataclass(frozen=True)
class Token:
    """A token as it was written, and the log-probabilities of those that could have stood there, by their text.

    ``unlisted`` is the log-probability that a token which is not among them has at most: of a server that lists the
    likeliest ones, that of the last.
    """

    text: str
    logprobs: Mapping[str, float]
    unlisted: float = -math.inf


class Words(NamedTuple):
    """What says yes and what says no, or first and second."""

    yes: Sequence[str]
    no: Sequence[str]


def read(score: Score, name: str, tokens: Sequence[Token], words: Words) -> Answer:
    """The score called ``name`` in what a model has written. Raises UserError, which says what is wrong with it.

    The mass of an answer is the probability of all that would have been one: of yes and no, of the digits of the scale.
    """
    if not tokens:
        raise UserError("there is no answer")
    match score:
        case YesNo() | Pairwise():
            return _word(tokens[0], words)
        case Digits():
            expected, mass = _expected(tokens[0], score.low, score.high)
            return Answer(_odds((expected - score.low) / (score.high - score.low)), mass)
        case Generated():
            return _number(score, name, tokens)
        case Json():
            return Answer(_odds(_in_json(score, name, "".join(token.text for token in tokens))), 1.0)
        case _:
            raise ValueError(f"a score of kind {score.kind} is not read from tokens")


def reward(score: Reward, name: str, outputs: Sequence[float]) -> Answer:
    """The score called ``name`` of a reward head: (output - mean) / std as log-odds. Raises UserError."""
    if len(outputs) != len(score.outputs):
        raise UserError(f"its head has {len(outputs)} outputs, and score.outputs names {len(score.outputs)}")
    output, scale = outputs[list(score.outputs).index(name)], score.outputs[name]
    if math.isnan(output):
        raise UserError(f"the output {name} of its head is not a number")
    return Answer((output - scale.mean) / scale.std, 1.0)


def read_samples(score: Score, name: str, texts: Sequence[str], words: Words) -> Answer:
    """The same from several sampled answers of a model whose log-probabilities nobody tells: by their frequency.

    The value is (sum + 1/2) / (n + 1) over the n answers that can be read (Krichevsky and Trofimov's estimate), as if
    half an answer had been the worst and half the best: eight times yes is no certainty. The mass is their share.
    """
    values = [value for text in texts if (value := _plain(score, name, text, words)) is not None]
    if not values:
        raise UserError(f"none of {len(texts)} answers {_wanted(score, name)}, the first is {_cut(texts[0])}")
    return Answer(_odds((sum(values) + 0.5) / (len(values) + 1)), len(values) / len(texts))


def _word(token: Token, words: Words) -> Answer:
    said = [[text for text in token.logprobs if text.strip() in each] for each in words]
    if not any(said):
        raise UserError("there is no mass on yes or no")
    logs = [log_sum([token.logprobs[text] for text in each]) if each else token.unlisted for each in said]
    return answer_of(*logs)


def _expected(token: Token, low: int, high: int) -> tuple[float, float]:
    """The expected digit from ``low`` to ``high`` at a token, and the probability of all of them."""
    chances = [0.0] * (high - low + 1)
    for text, log in token.logprobs.items():
        digit = text.strip()
        if _is_digit(digit) and low <= int(digit) <= high:
            chances[int(digit) - low] += math.exp(log)
    mass = sum(chances)
    if not mass >= LEAST_MASS:  # no comparison holds for nan
        much = f"only {short_mass(mass)} of the probability is" if mass > 0 else "there is no mass"
        raise UserError(f"{much} on the digits {low} to {high}")
    return sum(digit * chance for digit, chance in enumerate(chances, low)) / mass, mass


def _number(score: Generated, name: str, tokens: Sequence[Token]) -> Answer:
    """The expected value of the number after a label: of each of its digits, given those written before it."""
    found = _labelled(score, name, "".join(token.text for token in tokens))
    if found is None:
        raise UserError(
            f"no number from {score.low} to {score.high} follows {score.scores[name]!r} in the {len(tokens)} tokens "
            f"that it writes (score.max_tokens is {score.max_tokens}), which end in "
            f"{_cut(''.join(token.text for token in tokens)[-_SHOWN:])}"
        )
    owners = [token for token in tokens for _ in token.text]
    value, mass = _expected(owners[found.start("whole")], score.low, score.high)
    decimals = found["decimals"] or ""
    for place, at in enumerate(range(found.start("decimals"), found.start("decimals") + len(decimals)), 1):
        value += _expected(owners[at], 0, 9)[0] / 10**place
    return Answer(_odds(_share(value, score.low, score.high)), mass)


def _labelled(score: Generated, name: str, text: str) -> re.Match[str] | None:
    """The last number of the scale that follows the label of a score."""
    fits = (
        match for match in numbered(score.scores[name]).finditer(text) if score.low <= int(match["whole"]) <= score.high
    )
    return max(fits, key=lambda match: match.start(), default=None)


def _in_json(score: Json, name: str, text: str) -> float:
    """The share of the scale that a number in JSON is."""
    try:
        said = json.loads(text)
    except ValueError:
        raise UserError(f"it writes no JSON with the score {name}, but {_cut(text)}") from None
    number = said.get(name) if isinstance(said, dict) else None
    if isinstance(number, bool) or not isinstance(number, int | float) or not score.low <= number <= score.high:
        raise UserError(f"its JSON has no number from {score.low} to {score.high} as {name}: {_cut(text)}")
    return _share(number, score.low, score.high)


def _plain(score: Score, name: str, text: str, words: Words) -> float | None:
    """The value of one answer by its text alone; None if it is none."""
    match score:
        case YesNo() | Pairwise():
            first = re.match(r"\W*(\w+)", text)
            said = [bool(first) and first[1] in each for each in words] if first else [False, False]
            return float(said[0]) if any(said) else None
        case Digits():
            digits = re.findall(r"(?<![\d.])\d(?![\d])", text)
            digit = next((int(each) for each in digits if score.low <= int(each) <= score.high), None)
            return None if digit is None else _share(digit, score.low, score.high)
        case Generated():
            found = _labelled(score, name, text)
            if found is None:
                return None
            return _share(float(f"{found['whole']}.{found['decimals'] or 0}"), score.low, score.high)
        case Json():
            try:
                return _in_json(score, name, text)
            except UserError:
                return None
        case _:
            raise ValueError(f"a score of kind {score.kind} is not read from texts")


def _wanted(score: Score, name: str) -> str:
    match score:
        case YesNo():
            return "says yes or no"
        case Pairwise():
            return "says which of the two"
        case _:
            return f"has a number for {name}"


def _is_digit(text: str) -> bool:
    return len(text) == 1 and "0" <= text <= "9"


def _share(value: float, low: float, high: float) -> float:
    return min(1.0, max(0.0, (value - low) / (high - low)))


def _odds(share: float) -> float:
    """Log-odds of a share, infinite at its ends."""
    if share <= 0 or share >= 1:
        return math.copysign(math.inf, share - 0.5)
    return math.log(share / (1 - share))


def _cut(text: str) -> str:
    brief = " ".join(text.split())
    return repr(brief if len(brief) <= _SHOWN else f"{brief[:_SHOWN]}...")
