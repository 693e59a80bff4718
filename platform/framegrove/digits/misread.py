"""The questions of the digits world with one of them read the wrong way round, to see what becomes of a search.

With these questions "yes, it moves as it was asked to" counts against a video, as it would by a slip of a verifier's
author. A search is no better than its verifier, nor is what learns from it. The verifier's own scores do not show it:
a judge apart does (jobs/README.md, Learning from searches).
"""

from __future__ import annotations

from dataclasses import replace

from framegrove.digits.questions import Aspect, DigitsQuestions, about_digits
from framegrove.digits.world import DigitObject
from framegrove.types import Assessment
from framegrove.verification.questions import Question


def misread_motion(assessment: Assessment, objects: tuple[DigitObject, ...]) -> tuple[Question, ...]:
    """What is asked of these digits, with the answers about how they move turned round."""
    asked = about_digits(assessment, objects)
    return tuple(replace(each, against=not each.against) if each.aspect is Aspect.MOTION else each for each in asked)


QUESTIONS = DigitsQuestions(misread_motion)
