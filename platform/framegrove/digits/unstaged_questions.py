"""What the verifier of the digits world is asked where prompts are not staged: everything, whatever the depth.

Video-T1 (section 3.3) asks about a video's beginning, middle and end by a prompt of their own. The set here is what
that is held against: each branch is asked what a finished video is asked, of all its frames so far. It is a measuring
device, and no search has it by default.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

from framegrove.digits.questions import QUESTIONS
from framegrove.types import Assessment
from framegrove.verification.questions import Question


class UnstagedQuestions:
    """The questions about a finished video, at every assessment."""

    @functools.cached_property
    def fingerprint(self) -> str:
        """Changes with this file and with the staged set."""
        digest = hashlib.blake2b(Path(__file__).read_bytes(), digest_size=12)
        digest.update(QUESTIONS.fingerprint.encode())
        return digest.hexdigest()

    def questions(self, assessment: Assessment, prompt: str) -> tuple[Question, ...]:
        """Those that the staged set has for the whole video."""
        return QUESTIONS.questions(Assessment.FINAL, prompt)


UNSTAGED = UnstagedQuestions()
