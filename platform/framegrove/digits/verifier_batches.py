"""Batches for the four phases of verifier training; each is a pure function of (seed, step)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from framegrove.digits.verifier_codes import CELL, SIDE, cell_of, digit_class, scene_codes
from framegrove.digits.verifier_model import PackedQuestions, Packer
from framegrove.digits.verifier_questions import ask_about
from framegrove.digits.verifier_scenes import Drawn, Quality, Scene, draw_scene
from framegrove.digits.verifier_siblings import Kind, SiblingScenes
from framegrove.digits.verifier_sights import MOST
from framegrove.digits.world import COLOURS, MOTIONS, SIZE
from framegrove.verification.views import View

PATCH = 8
WINDOW = 4  # side of a window, in patches
_COLOUR_AT = {name: at for at, name in enumerate(COLOURS)}
_MOTION_AT = {name: at for at, name in enumerate(MOTIONS)}
_ODDS: dict[Kind, float] = {  # of a batch being of such clips
    (View.VIDEO, 1): 0.18,
    (View.VIDEO, 2): 0.04,
    (View.VIDEO, 3): 0.03,
    (View.VIDEO, 4): 0.08,
    (View.VIDEO, 5): 0.08,
    (View.VIDEO, MOST): 0.1,
    (View.UNIT, MOST): 0.49,
}
# Of clips of a kind, the share that a generator made: those of whole videos are nearly all right.
_GENERATED: dict[Kind, float] = {(View.VIDEO, 1): 0.65, (View.UNIT, MOST): 0.7}
_GENERATED_ELSE = 0.4


@dataclass(frozen=True)
class WindowBatch:
    """Windows of 32x32 px around digits, in [0, 1], and the index of each of their patches in the whole picture."""

    pixels_N3HW: torch.Tensor
    places_NP: torch.Tensor
    digits_N: torch.Tensor
    colours_N: torch.Tensor


@dataclass(frozen=True)
class FrameBatch:
    """Whole frames in [0, 1] and the codes of their cells.

    ``asked_N`` is false where no question asks whether the picture is clear, ``sharp_N`` where it is not clear, and
    ``placed_N`` where places are known roughly.
    """

    frames_N3HW: torch.Tensor
    codes_NMF: torch.Tensor
    asked_N: torch.Tensor
    sharp_N: torch.Tensor
    placed_N: torch.Tensor


@dataclass(frozen=True)
class Tracks:
    """The truth about moving digits.

    There are S sightings: a digit in a frame that also shows it in all frames before. ``at_S`` is the index of its cell
    among those of all frames of all clips; ``steps_S2`` its displacement since the frame before, in cells;
    ``motions_S`` an index into MOTIONS, or their number where it follows none of them; ``same_S`` is 1 where digit and
    colour have been the same in all frames so far.

    There are Q names: places where a question has just named a digit that the clip shows. ``named_Q`` is the index
    among the tokens of all packed rows, ``named_motions_Q`` the motion of that digit, numbered likewise.
    """

    at_S: torch.Tensor
    steps_S2: torch.Tensor
    motions_S: torch.Tensor
    same_S: torch.Tensor
    named_Q: torch.Tensor
    named_motions_Q: torch.Tensor


@dataclass(frozen=True)
class ClipBatch:
    """Clips with questions. ``shown`` has the frames of all clips in order.

    Frames that are not painted are empty, and their codes are as uncertain as if they were read off pictures.
    """

    shown: FrameBatch
    packed: PackedQuestions
    tracks: Tracks


def window_batch(seed: int, step: int, count: int) -> WindowBatch:
    """``count`` windows around the digits of random frames."""
    rng = np.random.default_rng([seed, step])
    pixels: list[Any] = []
    places = []
    digits = []
    colours = []
    grid = torch.arange(SIZE // PATCH)
    while len(pixels) < count:
        scene = draw_scene(rng, shown=2)
        for frame, drawn, at in _sightings(scene):
            x, y = (int(np.clip(round(c / PATCH) - WINDOW // 2, 0, SIZE // PATCH - WINDOW)) for c in drawn.centres[at])
            pixels.append(frame[:, y * PATCH : (y + WINDOW) * PATCH, x * PATCH : (x + WINDOW) * PATCH])
            places.append((grid[y : y + WINDOW, None] * (SIZE // PATCH) + grid[None, x : x + WINDOW]).flatten())
            digits.append(digit_class(drawn, at))
            colours.append(_COLOUR_AT[drawn.colours[at] or drawn.name.colour])
    return WindowBatch(
        torch.stack(pixels[:count]),
        torch.stack(places[:count]),
        torch.tensor(digits[:count]),
        torch.tensor(colours[:count]),
    )


def frame_batch(seed: int, step: int, count: int) -> FrameBatch:
    """``count`` frames, two of each clip."""
    rng = np.random.default_rng([seed, step])
    scenes = [draw_scene(rng, shown=2) for _ in range(-(-count // 2))]
    return _frames(scenes, count)


def clip_batch(
    seed: int,
    step: int,
    count: int,
    questions: int,
    packer: Packer,
    *,
    painted: bool = True,
    longest: int = MOST,
    siblings: SiblingScenes | None = None,
) -> ClipBatch:
    """``count`` clips of one random kind, of at most ``longest`` shown frames, with ``questions`` questions each.

    They are pictures if ``painted``, and codes alone otherwise. Where there are ``siblings``, many are drawn from them.
    """
    rng = np.random.default_rng([seed, step])
    kinds = [kind for kind in _ODDS if kind[1] <= longest]
    odds = np.cumsum([_ODDS[kind] for kind in kinds])
    kind = kinds[int(np.searchsorted(odds, rng.random() * odds[-1], side="right"))]
    view, shown = kind
    scenes = []
    for _ in range(count):
        generated = siblings is not None and rng.random() < _GENERATED.get(kind, _GENERATED_ELSE)
        scene = siblings.draw(kind, rng) if siblings is not None and generated else None
        scenes.append(scene or draw_scene(rng, shown=shown, view=view, painted=painted))
    asked = [ask_about(scene, rng, questions) for scene in scenes]
    packed = packer.pack(shown, [[q.text for q in row] for row in asked], [[q.answer for q in row] for row in asked])
    frames = _frames(scenes, shown * count, None if painted else rng)
    return ClipBatch(frames, packed, _tracks(scenes, packed, packer))


def _frames(scenes: list[Scene], count: int, guess: np.random.Generator | None = None) -> FrameBatch:
    qualities = [scene.quality for scene in scenes for _ in range(scene.frames.shape[0])]
    placed = [scene.placed for scene in scenes for _ in range(scene.frames.shape[0])]
    return FrameBatch(
        torch.cat([scene.frames for scene in scenes])[:count],
        torch.cat([scene_codes(scene, guess) for scene in scenes])[:count],
        torch.tensor([quality is not Quality.FAIR for quality in qualities[:count]]),
        torch.tensor([quality is not Quality.UNCLEAR for quality in qualities[:count]]),
        torch.tensor(placed[:count]),
    )


def _tracks(scenes: list[Scene], packed: PackedQuestions, packer: Packer) -> Tracks:
    at = []
    steps = []
    motions = []
    same = []
    for number, scene in enumerate(scenes):
        shown = scene.frames.shape[0]
        for drawn in scene.drawn:
            # In the view "unit" motion is that of the newest unit: three frames show it.
            for frame in range(3 if scene.view is View.UNIT else 1, shown):
                if None in drawn.colours[: frame + 1]:
                    break
                (x0, y0), (x, y) = drawn.centres[frame - 1 : frame + 1]
                at.append((number * shown + frame) * SIDE**2 + cell_of(x, y))
                steps.append(((x - x0) / CELL, (y - y0) / CELL))
                motions.append(_motion_class(drawn))
                seen = set(zip(drawn.digits[: frame + 1], drawn.colours[: frame + 1], strict=True))
                same.append(float(len(seen) == 1))
    return Tracks(
        torch.tensor(at, dtype=torch.long),
        torch.tensor(steps).view(-1, 2),
        torch.tensor(motions, dtype=torch.long),
        torch.tensor(same),
        *_named(scenes, packed, packer),
    )


def _named(scenes: list[Scene], packed: PackedQuestions, packer: Packer) -> tuple[torch.Tensor, torch.Tensor]:
    """Where questions name a digit that is there (the token of the digit, after that of its colour), and its motion."""
    at = []
    motions = []
    for row, (scene, ids) in enumerate(zip(scenes, packed.ids_BL.tolist(), strict=True)):
        names = {
            (packer.word_ids[drawn.name.colour], packer.word_ids[str(drawn.name.digit)]): _motion_class(drawn)
            for drawn in scene.drawn
            if scene.frames.shape[0] > 1 and None not in drawn.colours
        }
        for here, name in enumerate(pairwise(ids)):
            if name in names:
                at.append(row * len(ids) + here + 1)
                motions.append(names[name])
    return torch.tensor(at, dtype=torch.long), torch.tensor(motions, dtype=torch.long)


def _motion_class(drawn: Drawn) -> int:
    return len(MOTIONS) if drawn.motion is None else _MOTION_AT[drawn.motion]


def _sightings(scene: Scene) -> list[tuple[torch.Tensor, Drawn, int]]:
    return [
        (scene.frames[at], drawn, at)
        for drawn in scene.drawn
        for at in range(scene.frames.shape[0])
        if drawn.colours[at] is not None
    ]
