"""Hazards are recovered from readings whose hazards are known; right videos alone go on; true clips have none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from framegrove.digits import world
from framegrove.digits.oracle import DigitsOracle
from framegrove.digits.unit_readings import UnitFault, unit_faults
from framegrove.digits.world import DigitObject
from framegrove.evaluation.hazard import UnitReading, draw_hazards, hazards, share, wilson
from framegrove.evaluation.population import read_units, refilled
from framegrove.models.pretrained import load_pipeline
from jobs import hazard

TRUE = (0.2, 0.35, 0.1, 0.05)


def simulated(prompts: int, videos: int, seed: int) -> list[UnitReading]:
    """A population whose units go wrong independently, with the chances TRUE."""
    rng, readings = np.random.default_rng(seed), []
    owner = [prompt for prompt in range(prompts) for _ in range(videos)]
    paths = [(place % videos,) for place in range(len(owner))]
    for chance in TRUE:
        wrong = rng.random(len(owner)) < chance
        for prompt, path, fails in zip(owner, paths, wrong, strict=True):
            readings.append(UnitReading(prompt, path, ("motion",) if fails else ()))
        chosen = refilled(owner, [not each for each in wrong])
        paths = [(*paths[place], child) for place, child in chosen]
        owner = [owner[place] for place, _ in chosen]
    return readings


def test_known_hazards_are_recovered() -> None:
    found = hazards(simulated(prompts=600, videos=2, seed=0))
    assert [each.unit for each in found] == [0, 1, 2, 3]
    assert all(each.units == 1200 for each in found)
    np.testing.assert_allclose([each.wrong.mean for each in found], TRUE, atol=0.04)
    np.testing.assert_allclose([each.faults.get("motion", 0) for each in found], TRUE, atol=0.04)
    left = np.cumprod(1 - np.array(TRUE))  # of videos of which none is replaced
    np.testing.assert_allclose([each.unsearched.mean for each in found], left, atol=0.04)


def test_intervals_cover_as_often_as_they_say() -> None:
    covered = [
        [each.wrong.low <= true <= each.wrong.high for each, true in zip(hazards(readings), TRUE, strict=True)]
        for readings in (simulated(prompts=40, videos=2, seed=seed) for seed in range(100))
    ]
    assert np.mean(covered, axis=0).min() > 0.9


def test_no_fault_at_all_has_the_interval_of_as_many_prompts() -> None:
    assert share([False] * 20, [place // 2 for place in range(20)]) == wilson(0.0, 10)
    assert wilson(0.0, 10).high == pytest.approx(1.959964**2 / (10 + 1.959964**2))


def test_videos_that_agree_count_once() -> None:
    """Ten prompts whose four videos are all alike are worth ten independent readings, not forty."""
    alike = [prompt < 4 for prompt in range(10) for _ in range(4)]
    assert share(alike, [place // 4 for place in range(40)]) == wilson(0.4, 10)
    assert share(alike, list(range(40))) == wilson(0.4, 40)


def test_wrong_videos_give_their_place_to_right_ones_of_their_prompt_first() -> None:
    assert refilled([0, 0, 1, 1, 2, 2], [True, True, False, True, False, False]) == [
        *((0, 0), (1, 0), (3, 1), (3, 0)),
        *((0, 1), (1, 1)),  # prompt 2 has none left
    ]


def test_children_are_numbered_apart() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        prompts, right = rng.integers(4, size=12).tolist(), (rng.random(12) < 0.4).tolist()
        if any(right):
            chosen = refilled(prompts, right)
            assert len(set(chosen)) == 12
            assert all(right[place] for place, _ in chosen)


def test_only_children_of_right_parents_are_read() -> None:
    def judge(frames: np.ndarray, prompt: int) -> tuple[str, ...]:
        assert frames.shape[1:] == (64, 64, 3)
        return ("odd",) if prompt == 1 and len(frames) > 1 else ()

    prompts = ["a red 3 moves left and right", "a blue 5 moves up and down"]
    readings = read_units(load_pipeline(), prompts, [1, 2], judge, units=3, videos=1)
    assert [(each.prompt, each.path, each.faults) for each in readings] == [
        (0, (0,), ()),
        (1, (0,), ()),
        (0, (0, 0), ()),
        (1, (0, 0), ("odd",)),
        (0, (0, 0, 0), ()),
        (0, (0, 0, 1), ()),  # in place of the other prompt's video
    ]


def test_it_ends_where_nothing_is_right() -> None:
    readings = read_units(
        load_pipeline(), ["a red 3 moves left and right"], [1], lambda *_: ("odd",), units=9, videos=2
    )
    assert [each.path for each in readings] == [(0,), (1,)]


def test_true_clips_have_no_faults() -> None:
    oracle = DigitsOracle()
    for digits in (1, 2):
        for index in range(2):
            clip = world.clip(77, index, split="heldout", digits=digits, units=16)
            found = [unit_faults(oracle, clip.frames[: 1 + 8 * unit], clip.objects) for unit in range(16)]
            assert found == [()] * 16


def test_faults_are_told_apart() -> None:
    oracle = DigitsOracle()
    asked = (DigitObject(3, "red", "left and right"), DigitObject(7, "green", "up and down"))

    def faults(*shown: DigitObject) -> tuple[UnitFault, ...]:
        frames = world.render(shown, np.random.default_rng(3), split="heldout", units=3)
        return unit_faults(oracle, frames, asked)

    assert faults(*asked) == ()
    assert faults(DigitObject(8, "red", "left and right"), asked[1]) == (UnitFault.DIGIT,)
    assert faults(DigitObject(3, "blue", "left and right"), asked[1]) == (UnitFault.COLOUR,)
    assert faults(DigitObject(3, "red", "up and down"), asked[1]) == (UnitFault.MOTION,)
    assert faults(asked[0]) == (UnitFault.MISSING,)
    assert faults(asked[1]) == (UnitFault.MISSING,)
    pair = world.render(asked, np.random.default_rng(3), split="heldout", units=3)
    assert unit_faults(oracle, pair, asked[:1]) == (UnitFault.EXTRA,)


def test_a_fault_of_the_newest_unit_alone_is_seen() -> None:
    clip = world.clip(77, 0, split="heldout", digits=1, units=9)
    frames = clip.frames.copy()
    frames[-8:] = frames[-9]  # it stops
    oracle = DigitsOracle()
    assert oracle.judge(frames, clip.objects).fully_right
    assert unit_faults(oracle, frames, clip.objects) == (UnitFault.MOTION,)


def test_picture_is_drawn(tmp_path: Path) -> None:
    found = hazards(simulated(prompts=20, videos=2, seed=0))
    draw_hazards({"two digits": found, "one digit": found}, found[:3], tmp_path / "hazard.png", title="Hazards")
    assert (tmp_path / "hazard.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*more: str) -> str:
        result = CliRunner().invoke(hazard.app, ["--out", str(tmp_path), "--units", "2", "--videos", "1", *more])
        assert result.exit_code in (0, 1), result.output
        return result.output if result.exit_code == 0 else result.stderr

    run("--pairs", "2", "--singles", "1")
    report = json.loads((tmp_path / "hazard.json").read_text())
    first, later = report["generated"]["two digits"]
    assert (first["units"], first["unit"], later["unit"]) == (2, 0, 1)
    assert [each["wrong"]["mean"] for each in report["floor"]["decoded"]] == [0.0, 0.0]
    assert report["cost"]["units"] == 6
    assert (tmp_path / "hazard.png").is_file()
    monkeypatch.setattr(hazard, "_measure", None)  # nothing is left to measure
    assert "6 units sampled" in run("--pairs", "2", "--singles", "1")
    assert "another measurement" in run("--units", "3")
    assert "at least one prompt" in run("--pairs", "0", "--singles", "0")
    assert "1 to 32" in run("--units", "33")
