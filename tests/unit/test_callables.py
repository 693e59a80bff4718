"""Verifiers that are a function of the user's own."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from framegrove.config.verifier import VerifierConfig
from framegrove.errors import UserError
from framegrove.types import Assessment, Scored, ScoreWork
from framegrove.verification.callables import CallableVerifier
from framegrove.verification.examples import contrast

UNITS = (np.full((1, 8, 8, 3), 51, np.uint8), np.full((8, 8, 8, 3), 102, np.uint8))
WORK = ScoreWork((0, 1), Assessment.FINAL, "mine")
CODE = """
import numpy as np

NUMBER = 3

def brightness(frames, prompt):
    assert frames.shape == (9, 8, 8, 3) and frames.dtype == np.uint8 and prompt == "a cat"
    return frames.mean() / 255

async def later(frames, prompt):
    return {"length": len(frames) / 10, "words": 0.5}

class Scorer:
    async def __call__(self, frames, prompt):
        return 1
instance = Scorer()

def too_much(frames, prompt): return 1.5
def nan(frames, prompt): return {"a": 0.5, "b": float("nan")}
def nothing(frames, prompt): return {}
def text(frames, prompt): return "good"
def broken(frames, prompt): return 1 / 0
"""


@pytest.fixture(autouse=True)
def module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder: Path = tmp_path_factory.mktemp("functions")
    (folder / "my_scores.py").write_text(CODE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield


def verifier(function: str) -> CallableVerifier:
    return CallableVerifier(VerifierConfig(name="mine", kind="callable", function=function))


def scored(function: str) -> Scored:
    return asyncio.run(verifier(function).score(WORK, "a cat", *UNITS))


def test_a_number_is_one_score() -> None:
    found = scored("my_scores:brightness")
    ((name, score),) = found.scores
    assert (name, found.work, found.mass) == ("score", WORK, None)
    assert score == pytest.approx((0.2 + 8 * 0.4) / 9)
    assert asyncio.run(verifier("my_scores:brightness").ready()) == "my_scores:brightness"


def test_async_functions_and_mappings() -> None:
    assert scored("my_scores:later").scores == (("length", 0.9), ("words", 0.5))
    assert scored("my_scores:instance").scores == (("score", 1.0),)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("my_scores:too_much", r"verifier mine \(my_scores:too_much\) returned 1.5 as 'score'"),
        ("my_scores:nan", "verifier mine .* returned nan as 'b'"),
        ("my_scores:nothing", "verifier mine .* returned no score"),
        ("my_scores:text", "verifier mine .* returned 'good'"),
        ("my_scores:missing", "verifier mine: the module my_scores has no function missing"),
        ("my_scores:NUMBER", "verifier mine: my_scores:NUMBER is a int, not a function"),
        ("no_such_module_here:f", "verifier mine: the module no_such_module_here cannot be imported"),
    ],
)
def test_what_is_no_score_is_one_sentence_that_names_the_verifier(function: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        scored(function)


def test_a_missing_function_is_found_before_the_first_branch() -> None:
    with pytest.raises(UserError, match="no function missing"):
        asyncio.run(verifier("my_scores:missing").ready())


def test_a_defect_of_the_function_shows_as_itself() -> None:
    with pytest.raises(ZeroDivisionError):
        scored("my_scores:broken")


def test_the_example_measures_contrast() -> None:
    frames = np.zeros((2, 4, 4, 3), np.uint8)
    frames[0, 0] = 255
    assert contrast(frames, "") == 0.5


def test_a_function_costs_what_its_price_says(module: None) -> None:
    def of(**price: float) -> tuple[dict[Assessment, tuple[int, ...]], int]:
        mine = CallableVerifier(VerifierConfig(name="mine", kind="callable", function="my_scores:later", **price))
        told = asyncio.run(mine.price("a cat", (1, 8), 8, 8))
        work = ScoreWork((0, 0), Assessment.FINAL)
        spent = asyncio.run(mine.score(work, "a cat", *(np.zeros((n, 4, 4, 3), np.uint8) for n in (1, 8))))
        return told, spent.cost.flops

    assert of() == (dict.fromkeys(Assessment, (0, 0)), 0)
    assert of(price=1e6) == (dict.fromkeys(Assessment, (1_000_000, 9_000_000)), 9_000_000)
    with pytest.raises(ValueError, match="verifier verifier is of kind vllm: only callable takes a price"):
        VerifierConfig(price=1.0)
