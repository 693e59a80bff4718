"""Staged prompts: what the beginning, middle and end of a video are judged against."""

from __future__ import annotations

import pytest

from framegrove.errors import UserError
from framegrove.verification.rewriting import staged


@pytest.mark.parametrize(
    ("prompt", "beginning", "ending"),
    [
        ("a candle burns, then goes out", "a candle burns", "goes out"),
        ("a cat walks in and then sits down and finally sleeps", "a cat walks in", "sleeps"),
        ("A ship sails until it is gone.", "A ship sails", "it is gone"),
        ("waves break on a shore", "waves break on a shore", "waves break on a shore"),
        ("then it rains", "then it rains", "then it rains"),
    ],
)
def test_prompts_are_cut_where_they_say_what_comes_later(prompt: str, beginning: str, ending: str) -> None:
    split = staged(prompt)
    assert (split.first, split.middle, split.last, split.original) == (beginning, beginning, ending, prompt)


@pytest.mark.parametrize("prompt", ["", "  \n", "."])
def test_an_empty_prompt_is_an_error(prompt: str) -> None:
    with pytest.raises(UserError, match="empty"):
        staged(prompt)
