"""Batches for the four phases of verifier training; each is a pure function of (seed, step)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from framegrove.digits.verifier_codes import CELL, SIDE, cell_of, digit_class, scene_codes
from framegrove.digits.verifier_model import PackedQuestions, Packer
from framegrove.digits.verifier_questions import ask_about
from framegrove.digits.verifier_regenerated import UNITS, first_frame
from framegrove.digits.verifier_scenes import Drawn, Quality, Scene, draw_scene
from framegrove.digits.world import COLOURS, MOTIONS, SIZE

PATCH = 8
WINDOW = 4  # side of a window, in patches
_COLOUR_AT = {name: at for at, name in enumerate(COLOURS)}
_MOTION_AT = {name: at for at, name in enumerate(MOTIONS)}
_SHOWN_ODDS = np.cumsum([0.24, 0.12, 0.14, 0.5])  # of clips with 1, 2, 3 and 4 shown frames


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

    ``asked_N`` is false where no question asks whether the picture is clear, ``sharp_N`` where it is not clear.
    """

    frames_N3HW: torch.Tensor
    codes_NMF: torch.Tensor
    asked_N: torch.Tensor
    sharp_N: torch.Tensor


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
    longest: int = 4,
    regenerated: Sequence[Scene] = (),
) -> ClipBatch:
    """``count`` clips of one random length of at most ``longest`` shown frames, with ``questions`` questions each.

    They are pictures if ``painted``, and codes alone otherwise. Where there are ``regenerated`` scenes, half of the
    batches of their length, and of one frame, are drawn from these.
    """
    rng = np.random.default_rng([seed, step])
    shown = min(longest, 1 + int(np.searchsorted(_SHOWN_ODDS, rng.random() * _SHOWN_ODDS[-1], side="right")))
    if regenerated and shown in (1, UNITS) and rng.random() < 0.5:
        chosen = [regenerated[at] for at in rng.choice(len(regenerated), count, replace=False)]
        scenes = chosen if shown == UNITS else [first_frame(scene) for scene in chosen]
    else:
        scenes = [draw_scene(rng, shown=shown, painted=painted) for _ in range(count)]
    asked = [ask_about(scene, rng, questions) for scene in scenes]
    packed = packer.pack(shown, [[q.text for q in row] for row in asked], [[q.answer for q in row] for row in asked])
    frames = _frames(scenes, shown * count, None if painted else rng)
    return ClipBatch(frames, packed, _tracks(scenes, packed, packer))


def _frames(scenes: list[Scene], count: int, guess: np.random.Generator | None = None) -> FrameBatch:
    qualities = [scene.quality for scene in scenes for _ in range(scene.frames.shape[0])]
    return FrameBatch(
        torch.cat([scene.frames for scene in scenes])[:count],
        torch.cat([scene_codes(scene, guess) for scene in scenes])[:count],
        torch.tensor([quality is not Quality.FAIR for quality in qualities[:count]]),
        torch.tensor([quality is not Quality.UNCLEAR for quality in qualities[:count]]),
    )


def _tracks(scenes: list[Scene], packed: PackedQuestions, packer: Packer) -> Tracks:
    at = []
    steps = []
    motions = []
    same = []
    for number, scene in enumerate(scenes):
        shown = scene.frames.shape[0]
        for drawn in scene.drawn:
            for frame in range(1, shown):
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
