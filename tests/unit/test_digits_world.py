"""The embedded world: deterministic, captioned truthfully, with held-out scans and combinations kept apart."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from framegrove.digits import world
from framegrove.digits.world import COLOURS, DIGITS, MOTIONS, DigitObject

objects = st.builds(
    DigitObject, st.sampled_from(DIGITS), st.sampled_from(list(COLOURS)), st.sampled_from(list(MOTIONS))
)


@pytest.mark.parametrize("count", [1, 2])
def test_a_clip_is_a_function_of_seed_index_and_split(count: int) -> None:
    one, again = (world.clip(3, 14, digits=count) for _ in range(2))
    assert one.caption == again.caption
    np.testing.assert_array_equal(one.frames, again.frames)
    assert one.frames.shape == (25, 64, 64, 3)
    assert one.frames.dtype == np.uint8
    assert not np.array_equal(one.frames, world.clip(3, 15, digits=count).frames)
    assert not np.array_equal(one.frames, world.clip(3, 14, digits=count, split="heldout").frames)


@given(st.lists(objects, min_size=1, max_size=2))
def test_captions_read_back(shown: list[DigitObject]) -> None:
    assert world.parse(world.caption(tuple(shown))) == tuple(shown)


@pytest.mark.parametrize(
    "text", ["", "a cat on a mat", "a red 3 moves", "a red 12 moves up and down", "a pink 3 moves up and down"]
)
def test_other_texts_are_no_captions(text: str) -> None:
    assert world.parse(text) is None


def test_training_never_shows_what_is_held_out() -> None:
    combinations = [DigitObject(d, c, m) for d in DIGITS for c in COLOURS for m in MOTIONS]
    held_out = [c for c in combinations if world.is_held_out(c)]
    assert len(held_out) == len(combinations) // 10
    assert len({c.digit for c in held_out}) == 9
    assert {c.colour for c in held_out} == set(COLOURS)
    assert {c.motion for c in held_out} == set(MOTIONS)
    drawn = {o for index in range(400) for o in world.clip(0, index, units=1).objects}
    assert not drawn & set(held_out)
    asked = {o for shown in world.prompts(400, 0) for o in shown}
    assert asked & set(held_out)


@pytest.mark.parametrize("digit", DIGITS)
def test_splits_share_no_scan(digit: int) -> None:
    train, held_out = (world.scans_of(digit, split) for split in ("train", "heldout"))  # type: ignore[arg-type]
    assert len(held_out) == pytest.approx(0.2 * (len(train) + len(held_out)), abs=1)
    assert not {scan.tobytes() for scan in train} & {scan.tobytes() for scan in held_out}


@settings(max_examples=20)
@given(st.integers(0, 10_000))
def test_two_digits_differ_and_hardly_overlap(index: int) -> None:
    """Two captions' objects are told apart by digit and by colour, and the picture shows both all the time."""
    clip = world.clip(1, index, digits=2)
    one, other = clip.objects
    assert one.digit != other.digit
    assert one.colour != other.colour
    for colour in (one.colour, other.colour):
        near = np.abs(clip.frames.astype(int) - COLOURS[colour]).max(-1) < 30
        assert near.sum((1, 2)).min() >= 10


def test_more_than_two_digits_are_refused() -> None:
    with pytest.raises(ValueError, match="1 or 2 digits, not 3"):
        world.clip(0, 0, digits=3)
