"""Batches for the four stages of verifier training; each is a pure function of (seed, step)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from framegrove.data.digits import COLOURS, DIGITS, MOTIONS, SIZE
from framegrove.training.verifier_model import PackedQuestions, Packer
from framegrove.training.verifier_questions import ask_about
from framegrove.training.verifier_scenes import Drawn, Quality, Scene, draw_scene

NO_DIGIT = len(DIGITS)  # the class of strokes that are no digit
PATCH = 8
WINDOW = 4  # patches on a side of a window
CELL = 16  # px on a side of a cell (2x2 patches)
_COLOUR_AT = {name: at for at, name in enumerate(COLOURS)}
_MOTION_AT = {name: at for at, name in enumerate(MOTIONS)}
_SHOWN_ODDS = np.cumsum([0.24, 0.12, 0.14, 0.5])  # how often a clip of 1, 2, 3, 4 shown frames


@dataclass(frozen=True)
class WindowBatch:
    """32x32 windows around digits, in [0, 1], and each patch's place in its whole picture."""

    pixels_N3HW: torch.Tensor
    places_NP: torch.Tensor
    digits_N: torch.Tensor
    colours_N: torch.Tensor


@dataclass(frozen=True)
class FrameBatch:
    """Whole frames in [0, 1]; what each cell holds. ``clear_N``: 1, 0, or -1 where it is not asked.

    ``places_NM2`` is where in the picture a digit's centre is, in cells from the middle. Were it where in its cell, the
    features would not say which cell that is, and nobody could follow a digit.
    """

    frames_N3HW: torch.Tensor
    there_NM: torch.Tensor
    digits_NM: torch.Tensor
    colours_NM: torch.Tensor
    places_NM2: torch.Tensor
    clear_N: torch.Tensor


@dataclass(frozen=True)
class Tracks:
    """Every sight of a digit that was seen in the frame before, S in all: where it is, and what became of it since.

    ``at_S`` counts cells through all frames of all clips. ``steps_S2`` is the way from the frame before, in cells;
    ``motions_S`` numbers MOTIONS, then none of them; ``same_S`` says if digit and colour are what they always were.
    """

    at_S: torch.Tensor
    steps_S2: torch.Tensor
    motions_S: torch.Tensor
    same_S: torch.Tensor


@dataclass(frozen=True)
class ClipBatch:
    """Clips with questions; the frames of all clips in order."""

    frames_N3HW: torch.Tensor
    packed: PackedQuestions
    tracks: Tracks


def window_batch(seed: int, step: int, count: int) -> WindowBatch:
    """``count`` windows."""
    rng = np.random.default_rng([seed, step])
    pixels: list[Any] = []
    places, digits, colours = [], [], []
    grid = torch.arange(SIZE // PATCH)
    while len(pixels) < count:
        scene = draw_scene(rng, shown=2)
        for frame, drawn, at in _sightings(scene):
            x, y = (int(np.clip(round(c / PATCH) - WINDOW // 2, 0, SIZE // PATCH - WINDOW)) for c in drawn.centres[at])
            pixels.append(frame[:, y * PATCH : (y + WINDOW) * PATCH, x * PATCH : (x + WINDOW) * PATCH])
            places.append((grid[y : y + WINDOW, None] * (SIZE // PATCH) + grid[None, x : x + WINDOW]).flatten())
            digits.append(_digit_class(drawn, at))
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
    cells = (SIZE // CELL) ** 2
    there = torch.zeros(count, cells, dtype=torch.bool)
    digits, colours = torch.zeros(count, cells, dtype=torch.long), torch.zeros(count, cells, dtype=torch.long)
    places, clear = torch.zeros(count, cells, 2), torch.full((count,), -1.0)
    frames: list[torch.Tensor] = []
    while len(frames) < count:
        scene = draw_scene(rng, shown=2)
        for at in range(min(2, count - len(frames))):
            row = len(frames)
            frames.append(scene.frames[at])
            if scene.quality is not Quality.FAIR:
                clear[row] = float(scene.quality is Quality.CLEAR)
            for drawn in scene.drawn:
                if drawn.colours[at] is None:
                    continue
                x, y = drawn.centres[at]
                cell = _cell(x, y)
                there[row, cell] = True
                digits[row, cell] = _digit_class(drawn, at)
                colours[row, cell] = _COLOUR_AT[drawn.colours[at] or ""]
                places[row, cell] = (torch.tensor([x, y]) - SIZE / 2) / CELL
    return FrameBatch(torch.stack(frames), there, digits, colours, places, clear)


def clip_batch(seed: int, step: int, count: int, questions: int, packer: Packer) -> ClipBatch:
    """``count`` clips of one length with ``questions`` questions each."""
    rng = np.random.default_rng([seed, step])
    shown = 1 + int(np.searchsorted(_SHOWN_ODDS, rng.random() * _SHOWN_ODDS[-1], side="right"))
    scenes = [draw_scene(rng, shown=shown) for _ in range(count)]
    asked = [ask_about(scene, rng, questions) for scene in scenes]
    packed = packer.pack(shown, [[q.text for q in row] for row in asked], [[q.answer for q in row] for row in asked])
    return ClipBatch(torch.cat([scene.frames for scene in scenes]), packed, _tracks(scenes))


def _tracks(scenes: list[Scene]) -> Tracks:
    at, steps, motions, same = [], [], [], []
    for number, scene in enumerate(scenes):
        shown = scene.frames.shape[0]
        for drawn in scene.drawn:
            for frame in range(1, shown):
                if None in drawn.colours[: frame + 1]:
                    break
                (x0, y0), (x, y) = drawn.centres[frame - 1 : frame + 1]
                at.append((number * shown + frame) * (SIZE // CELL) ** 2 + _cell(x, y))
                steps.append(((x - x0) / CELL, (y - y0) / CELL))
                motions.append(len(MOTIONS) if drawn.motion is None else _MOTION_AT[drawn.motion])
                seen = set(zip(drawn.digits[: frame + 1], drawn.colours[: frame + 1], strict=True))
                same.append(float(len(seen) == 1))
    return Tracks(
        torch.tensor(at, dtype=torch.long),
        torch.tensor(steps).view(-1, 2),
        torch.tensor(motions, dtype=torch.long),
        torch.tensor(same),
    )


def _cell(x: int, y: int) -> int:
    x, y = (min(max(c, 0), SIZE - 1) for c in (x, y))
    return y // CELL * (SIZE // CELL) + x // CELL


def _sightings(scene: Scene) -> list[tuple[torch.Tensor, Drawn, int]]:
    return [
        (scene.frames[at], drawn, at)
        for drawn in scene.drawn
        for at in range(scene.frames.shape[0])
        if drawn.colours[at] is not None
    ]


def _digit_class(drawn: Drawn, at: int) -> int:
    digit = drawn.digits[at]
    return NO_DIGIT if digit is None else digit
