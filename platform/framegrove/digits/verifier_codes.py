"""Codes: what each cell of a picture shows, as a vector that vision tower and text model agree on in advance.

Every cell (16x16 px, one image token) has a code: whether a digit is there, which one, in which colour, exactly where
in the picture, and whether the picture is clear. A fixed projection with orthogonal rows turns a code into an embedding
of the size of a word's. The text model can thus learn to answer questions from codes alone, without any picture, while
the vision tower and its connector learn to output the codes of pictures. Both are trained against the same fixed
representation, so that neither has to wait for the other.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from framegrove.digits.verifier_scenes import Drawn, Quality, Scene
from framegrove.digits.world import COLOURS, DIGITS, SIZE
from framegrove.errors import UserError

NO_DIGIT = len(DIGITS)  # class of strokes that are no digit
CELL = 16  # side of a cell (2x2 patches), px
SIDE = SIZE // CELL  # side of a picture, in cells
_SHIFT = 4  # px: centres often lie on multiples of 8, so the borders of cells are put between those
_RAMP = 4.0  # px over which a digit passes from one cell to the next
_WAVELENGTHS = (32, 16)  # px, of the sines that encode places; a digit moves at least 6 px between shown frames
_COLOUR_AT = {name: at for at, name in enumerate(COLOURS)}
_CLEAR = {Quality.CLEAR: 1.0, Quality.FAIR: 0.0, Quality.UNCLEAR: -1.0}

THERE = 0
DIGIT = slice(1, 2 + NO_DIGIT)
COLOUR = slice(DIGIT.stop, DIGIT.stop + len(COLOURS))
PLACE = slice(COLOUR.stop, COLOUR.stop + 2)  # x and y from the centre of the picture, in halves of its side
WAVES = slice(PLACE.stop, PLACE.stop + 4 * len(_WAVELENGTHS))
CLEAR = WAVES.stop
FEATURES = CLEAR + 1


class Codes:
    """The fixed projection between codes, F features, and embeddings of the text model, of width D."""

    def __init__(self, width: int) -> None:
        if width < FEATURES:
            raise UserError(
                f"text_width {width} is less than the {FEATURES} features of a cell: give {FEATURES} or more"
            )
        noise = torch.randn(width, FEATURES, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        norms = torch.ones(FEATURES, dtype=torch.float64)  # norm of each row; the components of words have size 1
        norms[THERE], norms[DIGIT], norms[COLOUR] = 5.0, 8.0, 6.0
        norms[PLACE], norms[WAVES], norms[CLEAR] = 6.0, 3.0, 3.0
        self._norms_F = (norms * math.sqrt(width / 192)).float()
        self._rows_FD = torch.linalg.qr(noise).Q.T.float() * self._norms_F[:, None]

    def embed(self, codes: torch.Tensor) -> torch.Tensor:
        """(.., F) to (.., D)."""
        return codes @ self._rows_FD

    @torch.no_grad()
    def initialise_words(self, words: torch.Tensor, ids: dict[str, int]) -> None:
        """Set the embeddings (V, D) of the words for digits and colours, in place, to what they are in a code."""
        for group, names in ((DIGIT, [str(digit) for digit in DIGITS]), (COLOUR, list(COLOURS))):
            for row, name in zip(self._rows_FD[group], names, strict=False):
                words[ids[name]] = row * (math.sqrt(len(row)) / row.norm())

    def read(self, cells: torch.Tensor) -> torch.Tensor:
        """(.., D) to (.., F): the codes of embeddings, without the part that is orthogonal to all codes."""
        return cells.float() @ (self._rows_FD / self._norms_F[:, None] ** 2).T


def scene_codes(scene: Scene, guess: np.random.Generator | None = None) -> torch.Tensor:
    """The codes of a scene's frames, (N, cells, F).

    With ``guess``, a source of randomness, they are as uncertain as what a vision tower reads in pictures.
    """
    shown = scene.frames.shape[0]
    codes = np.zeros((shown, SIDE * SIDE, FEATURES), np.float32)
    codes[..., THERE] = -1.0
    for drawn in scene.drawn:
        seen = _seen(drawn, scene.quality, guess)
        for at, colour in enumerate(drawn.colours):
            if colour is not None:
                share_M = _shares(*seen[at, PLACE])[:, None]
                # Two digits never share a cell: each has a part of the picture to itself.
                codes[at] = codes[at] * (1 - share_M) + seen[at] * share_M
    codes[..., CLEAR] = _CLEAR[scene.quality]
    if guess is not None:
        if scene.quality is Quality.FAIR:
            codes[..., CLEAR] = guess.uniform(-1, 1)
        codes += guess.uniform(0, 0.12) * guess.standard_normal(codes.shape, dtype=np.float32)
    return torch.from_numpy(codes)


def cell_of(x: float, y: float) -> int:
    """The cell to which a digit centred at (x, y) px belongs most."""
    across, down = (min(max(int(c + _SHIFT) // CELL, 0), SIDE - 1) for c in (x, y))
    return down * SIDE + across


def digit_class(drawn: Drawn, at: int) -> int:
    """The class of a drawn digit in shown frame ``at``: the digit, or NO_DIGIT."""
    digit = drawn.digits[at]
    return NO_DIGIT if digit is None else digit


def _seen(drawn: Drawn, quality: Quality, guess: np.random.Generator | None) -> np.ndarray:
    """(N, F): the code of one digit in each frame; meaningless, and not used, where it has vanished."""
    shown = len(drawn.digits)
    seen = np.zeros((shown, FEATURES), np.float32)
    frames, places = np.arange(shown), np.asarray(drawn.centres, np.float32)
    seen[:, THERE] = 1.0
    seen[frames, [DIGIT.start + digit_class(drawn, at) for at in range(shown)]] = 1.0
    seen[frames, [COLOUR.start + _COLOUR_AT[c or drawn.name.colour] for c in drawn.colours]] = 1.0
    if guess is not None:
        blurred = quality is Quality.UNCLEAR
        # What a digit may be mistaken for is the same in all frames of a clip; how likely that is differs by frame.
        for group, most in ((DIGIT, 0.55), (COLOUR, 0.25)):
            doubt = guess.uniform(0.2, 0.9, (shown, 1)) if blurred else most * guess.uniform(0, 1, (shown, 1)) ** 2
            taken_for = guess.dirichlet(np.full(group.stop - group.start, 0.3))
            seen[:, group] += doubt * (taken_for - seen[:, group])
        places = places + guess.standard_normal(places.shape, dtype=np.float32) * (2.0 if blurred else 0.7)
    seen[:, PLACE] = places / (SIZE / 2) - 1
    turns = np.concatenate([places * (2 * math.pi / length) for length in _WAVELENGTHS], axis=1)
    seen[:, WAVES] = np.concatenate([np.sin(turns), np.cos(turns)], axis=1)
    return seen


def _shares(x: float, y: float) -> np.ndarray:
    """(cells,): the share with which a digit at ``PLACE`` (x, y) belongs to each cell; they sum to 1."""
    shares: np.ndarray = np.outer(_shares_along(y), _shares_along(x)).reshape(-1).astype(np.float32)
    return shares


def _shares_along(place: float) -> np.ndarray:
    """(SIDE,): the shares of the cells of a row or a column; a ramp at each border avoids a jump as a digit moves."""
    borders = CELL * np.arange(1, SIDE) - _SHIFT
    beyond = np.clip(((place + 1) * SIZE / 2 - borders) / _RAMP + 0.5, 0, 1)
    along: np.ndarray = -np.diff(beyond, prepend=1, append=0)
    return along
