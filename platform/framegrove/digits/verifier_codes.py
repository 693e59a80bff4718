"""What a cell of a picture shows, in symbols: the language between the verifier's eyes and its text model.

Every cell (16x16 px, one image token) has a code: whether a digit stands there, which, in which colour, exactly where
in the picture, and whether the picture is clear. A fixed projection, its rows at right angles, makes an embedding of it
that is as large as a word's. So the text model learns to answer questions from codes alone, with nothing painted and
nothing seen, and the eyes learn to say the same codes; both know from their first step what the other one means.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from framegrove.digits.verifier_scenes import Drawn, Quality, Scene
from framegrove.digits.world import COLOURS, DIGITS, SIZE

NO_DIGIT = len(DIGITS)  # the class of strokes that are no digit
CELL = 16  # px on a side of a cell (2x2 patches)
SIDE = SIZE // CELL  # cells on a side of a picture
_SHIFT = 4  # px: true digits often stand on multiples of 8, so cells' borders are put between those
_RAMP = 4.0  # px on which a digit passes from one cell to the next
_WAVELENGTHS = (32, 16)  # px; a digit moves 6 px and more between two shown frames
_COLOUR_AT = {name: at for at, name in enumerate(COLOURS)}
_CLEAR = {Quality.CLEAR: 1.0, Quality.FAIR: 0.0, Quality.UNCLEAR: -1.0}

THERE = 0
DIGIT = slice(1, 2 + NO_DIGIT)
COLOUR = slice(DIGIT.stop, DIGIT.stop + len(COLOURS))
PLACE = slice(COLOUR.stop, COLOUR.stop + 2)  # from the middle, in half pictures
WAVES = slice(PLACE.stop, PLACE.stop + 4 * len(_WAVELENGTHS))
CLEAR = WAVES.stop
FEATURES = CLEAR + 1


class Codes:
    """The fixed projection between codes (F features) and the text model's embeddings (D wide)."""

    def __init__(self, width: int) -> None:
        if width < FEATURES:
            raise ValueError(f"a text width of {width} is too narrow for {FEATURES} features of a cell: allow more")
        noise = torch.randn(width, FEATURES, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        loud = torch.ones(FEATURES, dtype=torch.float64)  # how large each is, next to words of size 1 a component
        loud[THERE], loud[DIGIT], loud[COLOUR] = 5.0, 8.0, 6.0
        loud[PLACE], loud[WAVES], loud[CLEAR] = 6.0, 3.0, 3.0
        self._loud_F = (loud * math.sqrt(width / 192)).float()
        self._rows_FD = torch.linalg.qr(noise).Q.T.float() * self._loud_F[:, None]

    def embed(self, codes: torch.Tensor) -> torch.Tensor:
        """(.., F) to (.., D)."""
        return codes @ self._rows_FD

    @torch.no_grad()
    def name(self, words: torch.Tensor, ids: dict[str, int]) -> None:
        """Let the embeddings (V, D) of the words for digits and colours begin as what stands for those in a code."""
        for group, names in ((DIGIT, [str(digit) for digit in DIGITS]), (COLOUR, list(COLOURS))):
            for row, name in zip(self._rows_FD[group], names, strict=False):
                words[ids[name]] = row * (math.sqrt(len(row)) / row.norm())

    def read(self, cells: torch.Tensor) -> torch.Tensor:
        """(.., D) to (.., F): the codes of embeddings, what the projection cannot say left out."""
        return cells.float() @ (self._rows_FD / self._loud_F[:, None] ** 2).T


def scene_codes(scene: Scene, guess: np.random.Generator | None = None) -> torch.Tensor:
    """The codes of a scene's frames, (N, cells, F); with ``guess``, as vague as eyes would see them."""
    shown = scene.frames.shape[0]
    codes = np.zeros((shown, SIDE * SIDE, FEATURES), np.float32)
    codes[..., THERE] = -1.0
    for drawn in scene.drawn:
        seen = _seen(drawn, scene.quality, guess)
        for at, colour in enumerate(drawn.colours):
            if colour is not None:
                share_M = _shares(*seen[at, PLACE])[:, None]
                # Two digits never share a cell: each has a half of the picture for itself.
                codes[at] = codes[at] * (1 - share_M) + seen[at] * share_M
    codes[..., CLEAR] = _CLEAR[scene.quality]
    if guess is not None:
        if scene.quality is Quality.FAIR:
            codes[..., CLEAR] = guess.uniform(-1, 1)
        codes += guess.uniform(0, 0.12) * guess.standard_normal(codes.shape, dtype=np.float32)
    return torch.from_numpy(codes)


def cell_of(x: float, y: float) -> int:
    """The cell that a digit with its centre at (x, y) px belongs to."""
    across, down = (min(max(int(c + _SHIFT) // CELL, 0), SIDE - 1) for c in (x, y))
    return down * SIDE + across


def digit_class(drawn: Drawn, at: int) -> int:
    """The class of a drawn digit in one frame."""
    digit = drawn.digits[at]
    return NO_DIGIT if digit is None else digit


def _seen(drawn: Drawn, quality: Quality, guess: np.random.Generator | None) -> np.ndarray:
    """(N, F): one digit in each frame; where it is gone, nothing that is used."""
    shown = len(drawn.digits)
    seen = np.zeros((shown, FEATURES), np.float32)
    frames, places = np.arange(shown), np.asarray(drawn.centres, np.float32)
    seen[:, THERE] = 1.0
    seen[frames, [DIGIT.start + digit_class(drawn, at) for at in range(shown)]] = 1.0
    seen[frames, [COLOUR.start + _COLOUR_AT[c or drawn.name.colour] for c in drawn.colours]] = 1.0
    if guess is not None:
        blurred = quality is Quality.UNCLEAR
        # What one hand's digit might be taken for stays the same in all frames; how much so does not.
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
    """(cells,): how far a digit at ``PLACE`` (x, y) belongs to each cell; 1 in all."""
    edges = CELL * np.arange(1, SIDE) - _SHIFT
    across, down = (
        np.diff(np.clip(((c + 1) * SIZE / 2 - edges) / _RAMP + 0.5, 0, 1), prepend=1, append=0) * -1 for c in (x, y)
    )
    shares: np.ndarray = np.outer(down, across).reshape(-1).astype(np.float32)
    return shares
