"""Staged prompts: what the beginning, the middle and the end of a video are judged against (Video-T1, section 3.3).

Video-T1 lets a language model rewrite a prompt as [static scene, motion, ending state]. Captions of the digits world
are rewritten by their grammar, exactly. Any other prompt is split by the words that join its parts; where it names no
ending, the whole prompt stands for it. A caller with a better rewriting (from a language model) passes its own
StagedPrompt.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from framegrove.digits import world as digits
from framegrove.errors import UserError


@dataclass(frozen=True)
class StagedPrompt:
    """One prompt for each phase of a video: the scene it opens with, what happens, how it ends; and the original."""

    first: str
    middle: str
    last: str
    original: str


def staged(prompt: str) -> StagedPrompt:
    """Rewrite ``prompt`` for the three phases of a video. Raises UserError when it is empty."""
    text = " ".join(prompt.split()).rstrip(".!")
    if not text:
        raise UserError("the prompt is empty: describe what the video should show")
    objects = digits.parse(text)
    if objects is not None:
        scene = static_scene(objects)
        return StagedPrompt(first=scene, middle=digits.caption(objects), last=scene, original=prompt)
    beginning, ending = _split(text)
    return StagedPrompt(first=beginning, middle=beginning, last=ending, original=prompt)


def static_scene(objects: tuple[digits.DigitObject, ...]) -> str:
    """What a single picture of these digits shows: "a red 3 and a blue 2"."""
    return " and ".join(f"a {o.colour} {o.digit}" for o in objects)


_ENDINGS = re.compile(
    r"[,;.]?\s+(?:and\s+)?(?:then|finally|at the end|in the end|eventually|until|before|ending with|ends with)\s+",
    re.IGNORECASE,
)


def _split(text: str) -> tuple[str, str]:
    """(beginning, ending): cut at the first and at the last word that announces what comes later."""
    cuts = list(_ENDINGS.finditer(text))
    if not cuts or not text[: cuts[0].start()].strip() or not text[cuts[-1].end() :].strip(" ,;"):
        return text, text
    return text[: cuts[0].start()], text[cuts[-1].end() :].strip(" ,;")
