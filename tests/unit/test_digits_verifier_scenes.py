"""Scenes for the verifier's training: repeatable, with questions whose answers are consistent with what is drawn."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from framegrove.config.request import frames_of, unit_lengths
from framegrove.digits import world
from framegrove.digits.questions import Aspect
from framegrove.digits.verifier_questions import ask_about
from framegrove.digits.verifier_scenes import SceneFault, draw_scene
from framegrove.digits.verifier_sights import draw_sight
from framegrove.verification.views import View, frames_of_view


@pytest.mark.parametrize(("view", "shown"), [(View.VIDEO, 1), (View.VIDEO, 2), (View.VIDEO, 6), (View.UNIT, 6)])
def test_scenes_are_repeatable_and_their_answers_consistent(view: View, shown: int) -> None:
    answers = []
    for seed in range(60):
        scene, again = (draw_scene(np.random.default_rng(seed), shown=shown, view=view) for _ in range(2))
        assert torch.equal(scene.frames, again.frames)
        assert scene.drawn == again.drawn
        assert scene.frames.shape == (shown, 3, 64, 64)
        assert scene.view is view
        assert draw_scene(np.random.default_rng(seed), shown=shown, view=view, painted=False).drawn == scene.drawn
        assert bool(((scene.frames >= 0) & (scene.frames <= 1)).all())
        asked = ask_about(scene, np.random.default_rng(seed), 12)
        assert len({(q.text, q.answer) for q in asked}) == len({q.text for q in asked})  # never both yes and no
        whole = {(d.steady_digit, d.steady_colour) for d in scene.drawn}
        for question in asked:
            if question.aspect is Aspect.BINDING:
                colour, digit = question.text.split()[3:5]
                assert question.answer == ((int(digit), colour) in whole)
            if question.aspect is Aspect.MOTION:
                assert (" now move " in question.text) == (view is View.UNIT)
            if question.aspect is Aspect.STABILITY:
                changed = {SceneFault.MORPH, SceneFault.MELT, SceneFault.RECOLOUR, SceneFault.VANISH}
                assert question.answer == (not {d.fault for d in scene.drawn} & changed)
        answers += [q.answer for q in asked]
    assert 0.35 < float(np.mean(answers)) < 0.6


def test_a_flawless_scene_looks_like_a_true_clip() -> None:
    """The brightest pixel of a drawn digit has its caption's colour."""
    for seed in range(200):
        scene = draw_scene(np.random.default_rng(seed), shown=4)
        if len(scene.drawn) == 1 and scene.drawn[0].fault is SceneFault.NONE and scene.quality == "clear":
            frame = scene.frames[0].flatten(1)
            peak = frame[:, frame.sum(0).argmax()] * 255
            wanted = torch.tensor(world.COLOURS[scene.drawn[0].name.colour], dtype=torch.float32)
            assert (peak - wanted).abs().max() < 90


def test_sights_are_selections_of_their_view_in_clips_of_any_length() -> None:
    rng = np.random.default_rng(0)
    lengths = set()
    for _ in range(200):
        for view, shown in ((View.UNIT, 6), (View.VIDEO, 6), (View.VIDEO, 4)):
            sight = draw_sight(rng, shown, view)
            assert sight.shown == shown
            assert sight.times in frames_of_view(view, unit_lengths(frames_of(sight.units)), 6)
            assert 1 <= sight.first < shown
            lengths.add((view, sight.units))
            if view is View.UNIT:
                assert sight.times[sight.turn] == frames_of(sight.units - 1) - 1
    assert {units for view, units in lengths if view is View.UNIT} == set(range(2, 17))
    assert {units for view, units in lengths if view is View.VIDEO} >= {4, 6, 16}


def test_the_motion_of_a_newest_unit_is_what_is_drawn_there() -> None:
    """In the frames from the parent's last one on, steps are along the motion's line, or the motion is none."""
    seen = set()
    for seed in range(400):
        scene = draw_scene(np.random.default_rng(seed), shown=6, view=View.UNIT, painted=False)
        for one in scene.drawn:
            steps = np.diff(np.asarray(one.centres[-4:]), axis=0)
            if one.fault is SceneFault.SWERVE and one.motion is not None:
                across, down = world.MOTIONS[one.motion]
                off = np.abs(steps @ np.asarray([-down, across]))
                assert off.max() <= 1.5
                assert np.abs(steps).max() > 0
                assert one.motion != one.name.motion
            if one.fault is SceneFault.STILL:
                assert np.abs(steps).max() == 0
                assert one.motion is None
            seen.add((one.fault, one.motion is None))
    assert {
        (SceneFault.SWERVE, True),
        (SceneFault.SWERVE, False),
        (SceneFault.STILL, True),
        (SceneFault.NONE, False),
    } <= seen
