"""Checks of prompts: what no text can hold is refused with a sentence, everything else is text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from framegrove.config.request import MOST_CHARACTERS, check_prompt, parse_size
from framegrove.errors import UserError

PROMPTS = json.loads((Path(__file__).parents[1] / "cases" / "prompts.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("prompt", "message"),
    list(zip(PROMPTS, ["half a character", r"control character U\+0000", "nothing but invisible"], strict=False)),
)
def test_cases_that_are_refused(prompt: str, message: str) -> None:
    refused(prompt, message)


@pytest.mark.parametrize("prompt", PROMPTS[3:])
def test_cases_that_are_text(prompt: str) -> None:
    assert check_prompt(prompt) == prompt


def refused(prompt: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        check_prompt(prompt)
    assert str(caught.value).isprintable()  # also at a terminal, also as JSON


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "empty"),
        (" \n\u3000", "empty"),
        ("a" * (MOST_CHARACTERS + 1), "has 2,001 characters"),
        ("\udcff", r"character 1 of the prompt is half a character \(the lone surrogate U\+DCFF\)"),
        ("a cat\x1b[31m", r"character 6 of the prompt is the control character U\+001B"),
        ("a\x7fb", r"U\+007F"),
        ("a\x9fb", r"U\+009F"),
        ("\ufeff\u200d \u2060", "nothing but invisible characters"),
        ("\u00ad", "nothing but invisible"),
        ("\u0301", "nothing but invisible"),
        ("\ufe0f", "nothing but invisible"),
        ("\u3164\u2800", "nothing but invisible"),
        ("\u202e\U000e0041", "nothing but invisible"),
    ],
)
def test_what_is_refused(prompt: str, message: str) -> None:
    refused(prompt, message)


@pytest.mark.parametrize(
    "prompt",
    [
        "a\tred\r\n3",
        "1",
        "?",
        "\U0001f468\u200d\U0001f469\u200d\U0001f467",  # a family, joined by zero-width characters
        "e\u0301",
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",  # Persian with a zero-width non-joiner
        "猫",
        "a" * MOST_CHARACTERS,
    ],
)
def test_what_is_text(prompt: str) -> None:
    assert check_prompt(f" {prompt}\n") == prompt


@pytest.mark.parametrize("size", ["٦٤x٦٤", "６４x64", "064x64", "64x", "64X64", "999999x64", "64x64x64"])
def test_sizes_are_written_in_plain_digits(size: str) -> None:
    with pytest.raises(UserError, match="not of the form WIDTHxHEIGHT"):
        parse_size(size)
