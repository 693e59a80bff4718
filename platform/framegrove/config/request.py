"""Checks of what is asked for, shared by the command line and the endpoint."""

from __future__ import annotations

import math
import re
import unicodedata

from framegrove.errors import UserError

MOST_CHARACTERS = 2000
FRAMES_PER_UNIT = 8  # unit 0 is a single frame

_WHITE_SPACE = "\t\n\v\f\r\x85"  # control characters, and harmless
# Categories of characters that show nothing by themselves: format, spaces, line ends, and marks that need a letter.
_INVISIBLE = ("Cf", "Zs", "Zl", "Zp", "Mn", "Me")
_BLANKS = "\u115f\u1160\u2800\u3164\uffa0"  # letters and a symbol by category, but drawn as nothing


def check_prompt(prompt: str) -> str:
    """The prompt without white space around it.

    Raises UserError for one that is too long, that shows nothing, or that holds characters that no text can: lone
    surrogates (halves of a character) and control characters other than white space.
    """
    text = prompt.strip()
    if not text:
        raise UserError("the prompt is empty: say what the video should show")
    if len(text) > MOST_CHARACTERS:
        raise UserError(f"the prompt has {len(text):,} characters: shorten it to {MOST_CHARACTERS:,} at most")
    for place, character in enumerate(text, start=1):
        category = unicodedata.category(character)
        if category == "Cs":
            raise UserError(
                f"character {place} of the prompt is half a character (the lone surrogate U+{ord(character):04X}): "
                "remove it or type it again"
            )
        if category == "Cc" and character not in _WHITE_SPACE:
            raise UserError(
                f"character {place} of the prompt is the control character U+{ord(character):04X}: remove it; tabs "
                "and line breaks are allowed"
            )
    if not any(_shows(character) for character in text):
        raise UserError("the prompt holds nothing but invisible characters: say what the video should show")
    return text


def _shows(character: str) -> bool:
    return (
        character not in _WHITE_SPACE and character not in _BLANKS and unicodedata.category(character) not in _INVISIBLE
    )


def parse_size(text: str) -> tuple[int, int]:
    """(height, width) in pixels of a size written WIDTHxHEIGHT. Raises UserError."""
    match = re.fullmatch(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", text.strip())
    if match is None:
        raise UserError(f"the size {text[:40]!r} is not of the form WIDTHxHEIGHT in pixels, for example 64x64")
    return int(match[2]), int(match[1])


def units_for(seconds: float, fps: int, most: int) -> int:
    """The fewest units that last ``seconds`` at ``fps``; a unit is 8 frames, the first is 1.

    Raises UserError if that is more than ``most`` units.
    """
    longest = frames_of(most) / fps
    if not 0 < seconds <= longest:
        raise UserError(f"a video of {seconds:g} seconds cannot be made: ask for more than 0 and at most {longest:g}")
    return 1 + math.ceil(max(0.0, seconds * fps - 1) / FRAMES_PER_UNIT)


def unit_lengths(frames: int) -> tuple[int, ...]:
    """Frames of each unit of a pyramidal model's clip, of which the last may be incomplete.

    >>> unit_lengths(12)
    (1, 8, 3)
    """
    return (min(1, frames), *(min(FRAMES_PER_UNIT, frames - start) for start in range(1, frames, FRAMES_PER_UNIT)))


def frames_of(units: int) -> int:
    """Pixel frames of a video of ``units`` units."""
    return 1 + FRAMES_PER_UNIT * (units - 1)
