"""Staged prompts: what the beginning, the middle and the end of a video are judged against (Video-T1, section 3.3).

Video-T1 lets a language model rewrite a prompt as [static scene, motion, ending state]. Here a prompt is split at the
words that join its parts; where it names no ending, the whole prompt stands for it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from framegrove.errors import UserError


@dataclass(frozen=True)
class StagedPrompt:
    """One prompt for each part of a video: the scene it opens with, what happens, how it ends; and the original."""

    first: str
    middle: str
    last: str
    original: str


def staged(prompt: str) -> StagedPrompt:
    """Split ``prompt`` into the parts of a video. Raises UserError when it is empty."""
    text = " ".join(prompt.split()).rstrip(".!")
    if not text:
        raise UserError("the prompt is empty: describe what the video should show")
    beginning, ending = _split(text)
    return StagedPrompt(first=beginning, middle=beginning, last=ending, original=prompt)


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
