"""What jobs.demo says; that it does what it says is tested by running it (tests/ray/test_interrupt.py, make demo)."""

from __future__ import annotations

import pytest

from framegrove.digits.oracle import ObjectReading
from jobs import demo


@pytest.mark.parametrize(
    ("reading", "said"),
    [
        (ObjectReading(3, "red", "left and right", 0.9), "red 3, left and right"),
        (ObjectReading(0, "blue", None, 0.9), "blue 0, ?"),
        (ObjectReading(None, "green", None, 0.2), "green ?, ?"),
    ],
)
def test_what_the_oracle_cannot_tell_is_a_question_mark(reading: ObjectReading, said: str) -> None:
    assert demo._words(reading) == said
