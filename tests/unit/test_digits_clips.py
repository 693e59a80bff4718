"""Clips of the digits world as the VAE's trainer takes them."""

from __future__ import annotations

import numpy as np
import pytest

from framegrove.digits import world
from framegrove.digits.clips import DigitsFrames


def test_training_clips_are_those_of_the_seed_with_the_share_of_pairs() -> None:
    source = DigitsFrames(seed=7, pairs=0.4)
    shown = []
    for index in range(50):
        frames = source.training(index)
        alternatives = {count: world.clip(7, index, digits=count).frames for count in (1, 2)}
        shown += [count for count, clip in alternatives.items() if np.array_equal(clip, frames)]
    assert len(shown) == 50
    assert shown.count(2) == pytest.approx(0.4 * 50, abs=1)
    assert not np.array_equal(source.training(0), DigitsFrames(seed=8).training(0))


def test_every_kind_is_measured_on_clips_of_its_own() -> None:
    source = DigitsFrames(seed=0)
    for digits, kind in enumerate(source.kinds, start=1):
        assert np.array_equal(source.heldout(kind, 3), world.clip(1, 3, split="heldout", digits=digits).frames)
        assert np.array_equal(source.statistics(kind, 3), world.clip(2, 3, digits=digits).frames)
