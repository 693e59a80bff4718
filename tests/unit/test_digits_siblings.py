"""Groups of siblings: grown as a population, kept on disk, turned into scenes, judged and calibrated on."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from framegrove.config.flow import StepsConfig
from framegrove.config.request import unit_lengths
from framegrove.config.verifier import own_settings
from framegrove.digits import siblings, world
from framegrove.digits.examination import Examination, examine
from framegrove.digits.questions import Aspect
from framegrove.digits.sibling_files import (
    APART,
    keep_facts,
    read_groups,
    sample_shards,
    shard_file,
    shards_in,
    write_groups,
)
from framegrove.digits.siblings import Group, grow, prompts_of
from framegrove.digits.teacher import TaughtObject, UnitReading, centres_of, segment
from framegrove.digits.verifier_judge import Judge, assessment_of, calibrated
from framegrove.digits.verifier_questions import ask_about
from framegrove.digits.verifier_scenes import SceneFault
from framegrove.digits.verifier_siblings import SiblingScenes, _moved, read_as_drawn
from framegrove.digits.verifier_sights import MOST
from framegrove.digits.world import DigitObject
from framegrove.errors import UserError
from framegrove.models.pretrained import load_pipeline
from framegrove.types import Assessment
from framegrove.verification.views import View, frames_of_view

ASKED = (DigitObject(3, "red", "left and right"),)


def taught(frames: np.ndarray, asked: tuple[DigitObject, ...], digit: int | None, told: bool = True) -> UnitReading:
    """What a perfect teacher reads of a unit of ASKED in which the digit may have become another one."""
    inks = segment(frames)
    objects = tuple(
        TaughtObject(
            one.colour,
            digit,
            told,
            one.motion,
            True,
            tuple((float(x), float(y)) for x, y in centres_of(inks[one.colour])),
        )
        for one in asked
        if one.colour in inks
    )
    right = None if not told else digit == asked[0].digit and len(objects) == len(asked)
    return UnitReading(objects, right)


def group_of(depth: int, digits: list[int | None], told: bool = True) -> Group:
    """Children of a flawless parent that all look right; as what they are read is given."""
    rng = np.random.default_rng(5)
    frames = world.render(ASKED, rng, split="train", units=depth + 1)
    first = 0 if depth == 0 else 8 * (depth - 1) + 1
    lineage = [taught(frames[max(0, 8 * (u - 1)) : 1 + 8 * u], ASKED, 3) for u in range(depth)]
    children, readings = [], []
    for digit in digits:
        children.append(frames[first:])
        readings.append(taught(frames[max(0, first - 1) :], ASKED, digit, told))
    count = world.frame_count(depth + 1)
    video = {place for shown in frames_of_view(View.VIDEO, unit_lengths(count), MOST) for place in shown}
    kept = sorted(({0} | video | set(range(first - 16, first))) & set(range(first)))
    return Group(ASKED, 0, (0,) * depth, tuple(lineage), tuple(kept), frames[kept], np.stack(children), tuple(readings))


def test_wrong_videos_give_their_places_to_right_children_of_others() -> None:
    right, wrong, unsure = (UnitReading((), verdict) for verdict in (True, False, None))

    def litter(place: int, *readings: UnitReading) -> list[siblings._Video]:
        return [siblings._Video(place, (at,), readings=(reading,)) for at, reading in enumerate(readings)]

    litters = [litter(0, wrong, right, right), litter(1, wrong, wrong, unsure), litter(2, right, unsure, wrong)]
    rng = np.random.default_rng(0)
    chosen = siblings._chosen(litters, rng, wrong=0.0)
    assert chosen == [(0, 1, 0), (0, 2, 0), (2, 0, 0)]  # the second place goes to the first one's spare child
    chosen = siblings._chosen([litter(0, right, wrong), litter(1, wrong, wrong)], rng, wrong=0.0)
    assert chosen == [(0, 0, 0), (0, 0, 1)]  # a copy, which has other children
    assert siblings._chosen([litter(0, wrong, wrong)], rng, wrong=0.0) == [(0, 0, 0)]  # nothing is right any more
    assert siblings._chosen([litter(0, right, wrong)], rng, wrong=1.0) == [(0, 1, 0)]  # a wrong parent


def test_groups_grow_from_right_children_and_are_kept_shard_by_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(frames: np.ndarray, asked: tuple[DigitObject, ...]) -> UnitReading:
        assert len(frames) in (1, 9)
        return UnitReading((), bool(frames.astype(int).sum() % 2))

    shipped = load_pipeline()
    few = StepsConfig(first=(1, 1, 1), others=(1, 1, 1))
    pipeline = replace(shipped, recipe=shipped.recipe.model_copy(update={"steps": few}))
    monkeypatch.setattr("framegrove.digits.siblings.PROMPTS", 2)
    monkeypatch.setattr("framegrove.digits.sibling_files.PROMPTS", 2)
    prompts = prompts_of("train", 0, 0)
    assert [len(objects) for objects in prompts] == [2, 2]
    assert not any(world.is_held_out(one) for objects in prompts for one in objects)
    done: list[tuple[int, int]] = []
    for _ in range(2):  # the second time from the disk
        sample_shards(
            tmp_path, pipeline, read, split="train", groups=5, units=3, seed=0, on_groups=lambda *at: done.append(at)
        )
    assert done == [(at + 1, 6) for at in range(6)]
    groups = list(read_groups(shard_file(tmp_path, 0)))
    assert [group.depth for group in groups] == [0, 0, 1, 1, 2, 2]
    roots = {group.objects: group for group in groups[:2]}
    for group in groups:
        assert group.children.shape == (4, 1 if group.depth == 0 else 8, 64, 64, 3)
        assert len(group.lineage) == group.depth
        assert group.shown(1, (0, group.frame_count - 1)).shape == (2, 64, 64, 3)
        assert not np.array_equal(group.children[0], group.children[1])
        if group.depth == 1 and group.objects in roots:
            root = roots[group.objects].children[group.path[0] % 4]
            assert np.array_equal(group.shown(0, (0,)), root)
    again = list(grow(pipeline, prompts, read, seed=0, units=1))
    assert np.array_equal(again[0].children, groups[0].children)
    assert shards_in(tmp_path, apart=False) == [shard_file(tmp_path, 0)]
    with pytest.raises(UserError, match="apart from training"):
        shards_in(tmp_path, apart=True)
    shard_file(tmp_path, 0).write_bytes(b"PK no zip")
    with pytest.raises(UserError, match="sample its groups again"):
        list(read_groups(shard_file(tmp_path, 0)))


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    group = group_of(3, [3, None])
    write_groups(shard_file(tmp_path, APART - 1), [group])
    (again,) = read_groups(shards_in(tmp_path, apart=True)[0])
    for name in ("objects", "seed", "path", "kept", "lineage", "readings"):
        assert getattr(again, name) == getattr(group, name), name
    assert np.array_equal(again.children, group.children)
    assert np.array_equal(again.before, group.before)


def test_groups_of_another_model_are_refused(tmp_path: Path) -> None:
    keep_facts(tmp_path, {"model": "shipped", "seed": 11})
    keep_facts(tmp_path, {"model": "shipped", "seed": 11})
    with pytest.raises(UserError, match="its model is 'shipped' and here it is 'runs/mine'"):
        keep_facts(tmp_path, {"model": "runs/mine", "seed": 11})


def test_siblings_become_scenes_with_the_teachers_answers() -> None:
    group = group_of(3, [3, None, 8])
    (unit,) = frames_of_view(View.UNIT, unit_lengths(group.frame_count), MOST)
    sound, malformed, other = (read_as_drawn(group, child, unit, View.UNIT) for child in range(3))
    assert sound is not None
    assert malformed is not None
    assert other is not None
    assert [one[0].fault for one in (sound, malformed, other)] == [SceneFault.NONE, SceneFault.MELT, SceneFault.MORPH]
    assert sound[0].digits == (3,) * 6
    assert malformed[0].digits == (3, 3, None, None, None, None)
    assert other[0].digits == (3, 3, 8, 8, 8, 8)
    assert {one[0].motion for one in (sound, malformed, other)} == {"left and right"}
    scenes = SiblingScenes([group])
    assert scenes.count((View.UNIT, MOST)) == (1, 2)
    rng = np.random.default_rng(0)
    answers = set()
    for _ in range(60):
        scene = scenes.draw((View.UNIT, MOST), rng)
        assert scene is not None
        assert not scene.placed
        original = torch.from_numpy(group.shown(0, (0,))[0]).permute(2, 0, 1) / 255
        assert 0.7 < float(scene.frames[0].sum() / original.sum()) < 1.4  # moved and weathered a little
        bound = set(scene.drawn[0].digits) == {3}
        for question in ask_about(scene, rng, 12):
            if question.text == "Is there a red 3 in every frame?":
                assert question.answer == bound
                answers.add(bound)
            if question.aspect is Aspect.MOTION:
                assert question.text.startswith("Does the red 3 now move")
                assert question.answer == (question.text == "Does the red 3 now move left and right?")
    assert answers == {True, False}
    assert scenes.draw((View.VIDEO, 1), rng) is None
    assert SiblingScenes([group_of(3, [3, 8], told=False)]).count((View.UNIT, MOST)) == (0, 0)


def test_a_digit_that_is_gone_leaves_a_count_that_is_wrong() -> None:
    group = group_of(2, [3])
    gone = UnitReading((), False)
    group = Group(**(group.__dict__ | {"readings": (gone,)}))
    (unit,) = frames_of_view(View.UNIT, unit_lengths(group.frame_count), MOST)
    drawn = read_as_drawn(group, 0, unit, View.UNIT)
    assert drawn is not None
    assert drawn[0].colours == ("red", "red", None, None, None, None)
    assert drawn[0].fault is SceneFault.VANISH
    scene = SiblingScenes([group]).draw((View.UNIT, MOST), np.random.default_rng(0))
    assert scene is not None
    counted = {q.text: q.answer for q in ask_about(scene, np.random.default_rng(0), 60) if q.aspect is Aspect.COUNT}
    assert counted == {"Is there exactly one object?": False}


def test_the_shipped_verifier_is_examined_among_siblings() -> None:
    groups = [group_of(depth, [3, 3]) for depth in (0, 1, 3)]
    judge, own = Judge(), own_settings(None)
    assert own is not None
    scores = judge.scores(groups)
    for group, of_children in zip(groups, scores, strict=True):
        one, other = of_children
        assert one == pytest.approx(other, abs=1e-6)  # the same frames
        assert one["alignment"] > 0.5
        assert ("motion" in one) == (group.depth > 0)
        fitted_before = own.calibration[assessment_of(group)]
        assert judge.probability(assessment_of(group), one) == pytest.approx(math.exp(fitted_before.log_p(one)))
    found = examine(judge, groups)
    assert [each.depth for each in found.depths] == [0, 1, 3]
    assert {each.right for each in found.depths} == {1.0}
    assert math.isnan(found.roots)
    assert found.figures()["auc_roots"] is None
    assert "| 3 | 2 | 100% | – |" in found.markdown()
    fitted = calibrated(judge, groups)
    assert fitted.keys() == {Assessment.IMAGE, Assessment.MOTION, Assessment.FINAL}
    assert math.exp(fitted[Assessment.MOTION].log_p(scores[1][0])) == pytest.approx(5 / 6, abs=1e-3)  # Platt, of 4
    judge.calibration = fitted
    assert examine(judge, groups).depths[1].calibrated == pytest.approx(1 / 6, abs=1e-3)


def test_an_examination_orders_siblings_and_roots(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a judge that is right about the first two children of each group and wrong about the third."""
    judge = Judge()
    groups = [group_of(0, [3, 8, 3]), group_of(1, [3, 8, 3]), group_of(1, [8, 8, 8])]
    monkeypatch.setattr(
        judge, "scores", lambda groups, on_groups: [[{"alignment": s} for s in (0.9, 0.2, 0.1)] for _ in groups]
    )
    found: Examination = examine(judge, groups)
    assert found.roots == pytest.approx(0.5)
    root, later = found.depths
    assert root.within == pytest.approx(0.5)
    assert later.within == pytest.approx(0.5)
    assert (later.children, later.right) == (6, pytest.approx(2 / 6))
    assert later.mistakes == 0.0


def test_a_scene_is_moved_as_a_whole() -> None:
    frames = torch.zeros(2, 3, 8, 8)
    frames[:, :, 3, 4] = 1.0
    moved = _moved(frames, 2, -1)
    assert moved.shape == frames.shape
    assert moved.nonzero()[:, 2:].unique(dim=0).tolist() == [[2, 6]]
    assert torch.equal(_moved(frames, 0, 0), frames)
