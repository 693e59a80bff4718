"""Regenerated scenes: the truth about them stays, their looks change a little."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from framegrove.digits.verifier_regenerated import first_frame, regenerated_scenes
from framegrove.digits.verifier_scenes import Fault, Quality, draw_scene
from framegrove.errors import UserError
from framegrove.verification.views import shown_frames


@pytest.mark.parametrize("shown", [1, 2, 4])
def test_a_whole_clip_shows_what_its_shown_frames_show(shown: int) -> None:
    for seed in range(20):
        part, whole = (
            draw_scene(np.random.default_rng(seed), shown=shown, quality=Quality.CLEAR, whole=whole)
            for whole in (False, True)
        )
        assert part.drawn == whole.drawn
        times = shown_frames(whole.frames.shape[0], most=max(2, shown))
        for drawn in whole.drawn:
            assert tuple(drawn.path[time] for time in times) == drawn.centres
    flawless = next(
        scene
        for scene in (draw_scene(np.random.default_rng(seed), shown=shown, whole=True) for seed in range(500))
        if scene.quality is Quality.CLEAR and {d.fault for d in scene.drawn} == {Fault.NONE}
    )
    moved = [one for one in flawless.drawn if len(set(one.path)) > 1]
    assert len(moved) == (0 if shown == 1 else len(flawless.drawn))


def test_regenerated_scenes_keep_their_truth_and_are_kept(tmp_path: Path) -> None:
    drawn: list[int] = []
    scenes = regenerated_scenes(6, seed=3, kept_in=tmp_path / "regenerated.npz", on_scenes=drawn.append)
    again = regenerated_scenes(6, seed=3, kept_in=tmp_path / "regenerated.npz", on_scenes=drawn.append)
    assert drawn == [6]
    for index, (one, two) in enumerate(zip(scenes, again, strict=True)):
        assert one.drawn == two.drawn
        assert torch.equal(one.frames, two.frames)
        rng = np.random.default_rng([3, index, 2])
        painted = draw_scene(rng, shown=4, quality=Quality.FAIR, whole=True)
        assert painted.drawn == one.drawn
        away = (painted.frames[list(shown_frames(25))] - one.frames).square().mean()
        assert 0 < float(away) < 0.02  # 17 dB: another hand, the same picture
    with pytest.raises(UserError, match="6 clips of seed 3, not 7"):
        regenerated_scenes(7, seed=3, kept_in=tmp_path / "regenerated.npz")
    (tmp_path / "regenerated.npz").write_bytes(b"PK no zip")
    with pytest.raises(UserError, match="remove it"):
        regenerated_scenes(6, seed=3, kept_in=tmp_path / "regenerated.npz")


def test_in_a_first_frame_nothing_has_gone_wrong_later() -> None:
    for seed in range(200):
        scene = draw_scene(np.random.default_rng(seed), shown=4)
        first = first_frame(scene)
        assert first.frames.shape[0] == 1
        for one, whole in zip(first.drawn, scene.drawn, strict=True):
            assert one.fault in (Fault.NONE, Fault.MALFORMED)
            assert (one.fault is Fault.MALFORMED) == (whole.fault is Fault.MALFORMED)
            assert one.steady_digit == whole.digits[0]
            assert one.steady_colour == whole.name.colour
