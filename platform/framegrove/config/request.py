"""What a video may be asked for with: the same checks and sentences at the command line and at the endpoint."""

from __future__ import annotations

import math
import re

from framegrove.errors import UserError

MOST_CHARACTERS = 2000
FRAMES_PER_UNIT = 8  # unit 0 is a single frame


def check_prompt(prompt: str) -> str:
    """The prompt without white space around it. Raises UserError if nothing is left, or too much."""
    text = prompt.strip()
    if not text:
        raise UserError("the prompt is empty: say what the video should show")
    if len(text) > MOST_CHARACTERS:
        raise UserError(f"the prompt has {len(text):,} characters: shorten it to {MOST_CHARACTERS:,} at most")
    return text


def parse_size(text: str) -> tuple[int, int]:
    """(height, width) in pixels of a size written WIDTHxHEIGHT. Raises UserError."""
    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text.strip())
    if match is None:
        raise UserError(f"the size {text[:40]!r} is not of the form WIDTHxHEIGHT in pixels, for example 64x64")
    return int(match[2]), int(match[1])


def units_for(seconds: float, fps: int, most: int) -> int:
    """The fewest units that last ``seconds``: 1 + 8 (units - 1) frames at ``fps``; ValueError if more than ``most``."""
    longest = frames_of(most) / fps
    if not 0 < seconds <= longest:
        raise UserError(f"a video of {seconds:g} seconds cannot be made here: ask for at most {longest:g}")
    return 1 + math.ceil(max(0.0, seconds * fps - 1) / FRAMES_PER_UNIT)


def frames_of(units: int) -> int:
    """Pixel frames of a video of ``units`` units."""
    return 1 + FRAMES_PER_UNIT * (units - 1)
