"""The oracle's readings of branches: of the newest unit, of the whole, and as a judge for a ceiling."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest

from framegrove.digits import world
from framegrove.digits.oracle import DigitsOracle, oracle_fingerprint
from framegrove.digits.readings import RIGHT, WRONG, BranchReading, Frames, OracleJudge, oracle_config, read_branch
from framegrove.errors import UserError
from framegrove.types import Assessment, ScoreWork

CLIP = world.clip(31, 0, split="heldout", digits=1, units=4)
OTHER = world.clip(31, 1, split="heldout", digits=2, units=4)


def units(clip: world.Clip) -> list[Frames]:
    return [clip.frames[:1], *(clip.frames[start : start + 8] for start in (1, 9, 17))]


def test_a_branch_is_read_in_its_newest_unit_and_as_a_whole() -> None:
    oracle = DigitsOracle()
    good = read_branch(oracle, units(CLIP), CLIP.objects)
    assert good.newest.fully_right
    assert good.whole.fully_right
    mended = read_branch(oracle, [*units(OTHER)[:3], units(CLIP)[3]], CLIP.objects)
    assert mended.newest.fully_right
    assert not mended.whole.fully_right
    still = read_branch(oracle, units(CLIP)[:1], CLIP.objects)
    assert still.whole == still.newest
    assert still.whole.fully_right
    for reading in (good, mended, still):
        assert BranchReading.from_json(json.loads(json.dumps(reading.as_json()))) == reading


@pytest.mark.parametrize(
    ("assessment", "shown", "score"),
    [
        (Assessment.MOTION, [*units(OTHER)[:3], units(CLIP)[3]], RIGHT),  # the newest unit alone
        (Assessment.FINAL, [*units(OTHER)[:3], units(CLIP)[3]], WRONG),  # the whole video
        (Assessment.FINAL, units(CLIP), RIGHT),
        (Assessment.IMAGE, units(CLIP)[:1], RIGHT),
        (Assessment.IMAGE, units(OTHER)[:1], WRONG),
        (Assessment.POTENTIAL, [np.zeros((1, 64, 64, 3), np.uint8)], WRONG),
    ],
)
def test_the_perfect_judge(assessment: Assessment, shown: list[Frames], score: float) -> None:
    work = ScoreWork((0,) * len(shown), assessment, "oracle")
    scored = asyncio.run(OracleJudge(oracle_config()).score(work, CLIP.caption, *shown))
    assert scored.scores == (("right", score),)
    assert scored.cost.flops == 0


def test_the_perfect_judge_knows_digits_alone() -> None:
    work = ScoreWork((0,), Assessment.IMAGE, "oracle")
    with pytest.raises(UserError, match="cannot judge 'a cat'"):
        asyncio.run(OracleJudge(oracle_config()).score(work, "a cat", units(CLIP)[0]))


def test_other_weights_are_another_oracle(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"other")
    assert oracle_fingerprint() == oracle_fingerprint()
    assert oracle_fingerprint(tmp_path / "model.safetensors") != oracle_fingerprint()
