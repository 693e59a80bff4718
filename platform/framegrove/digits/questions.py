"""What the verifier of the digits world is asked about a video made for a caption.

A question about a whole caption lets a model read it as a bag of attributes, so digits, colours, their binding and
their motion are asked object by object and the answers multiplied (verification/scoring.py). The shipped verifier is
trained on exactly these sentences (digits/verifier_questions.py). A prompt that is no caption of this world gets the
shipped set "brief".

Siblings differ in their newest unit alone. So a middle unit is asked little about: the first frame, the last one of the
parent and four of the unit are one look (the view "unit"), in which what things look like and how they move now can
both be seen.
"""

from __future__ import annotations

import enum
import functools
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import yaml

from framegrove.config.verifier import SETTINGS_FILE, Calibration
from framegrove.digits import world
from framegrove.digits.world import DigitObject
from framegrove.types import Assessment
from framegrove.verification.questions import Question, QuestionSet, load_question_set
from framegrove.verification.views import View


class Aspect(enum.StrEnum):
    """What a question is about; accuracy is reported by aspect."""

    DIGIT = "digit"
    COLOUR = "colour"
    BINDING = "binding"  # this colour on this digit
    MOTION = "motion"
    COUNT = "count"
    MATCH = "match"  # a whole caption at once
    STABILITY = "stability"  # nothing turns into something else
    CLARITY = "clarity"


class DigitsQuestions:
    """A question set for captions of this world: ``about`` gives the questions for the digits that one names."""

    def __init__(self, about: Callable[[Assessment, tuple[DigitObject, ...]], tuple[Question, ...]]) -> None:
        self._about = about

    @functools.cached_property
    def fingerprint(self) -> str:
        """Changes with the code of this file, with the set and with the questions for other prompts."""
        digest = hashlib.blake2b(Path(__file__).read_bytes(), digest_size=12)
        digest.update(self._about.__name__.encode())
        digest.update(self._for_others.fingerprint.encode())
        return digest.hexdigest()

    def questions(self, assessment: Assessment, prompt: str) -> tuple[Question, ...]:
        """Everything to ask at ``assessment`` about a video made for ``prompt``; never empty, same order every time."""
        objects = world.parse(prompt)
        if objects is None:
            return self._for_others.questions(assessment, prompt)
        return self._about(assessment, objects)

    @functools.cached_property
    def _for_others(self) -> QuestionSet:
        return load_question_set("brief")


# Scores: does it show what was asked for, does it move as asked and hold together, can it be made out at all.
ALIGNMENT, MOTION, CLARITY = "alignment", "motion", "clarity"


def about_digits(assessment: Assessment, objects: tuple[DigitObject, ...]) -> tuple[Question, ...]:
    """What to ask about a video of these digits: of a middle unit no more than what can differ in it."""
    asked: list[Question] = []
    unit = assessment in (Assessment.POTENTIAL, Assessment.MOTION)
    for obj in objects:
        asked.append(Question(ask_binding(obj.digit, obj.colour), ALIGNMENT, Aspect.BINDING))
        if assessment is Assessment.IMAGE:
            asked.append(Question(ask_digit(obj.digit), ALIGNMENT, Aspect.DIGIT, weight=0.5))
        if assessment is Assessment.MOTION:
            asked.append(Question(ask_motion_now(obj.digit, obj.colour, obj.motion), MOTION, Aspect.MOTION))
        if assessment is Assessment.FINAL:
            asked.append(Question(ask_motion(obj.digit, obj.colour, obj.motion), MOTION, Aspect.MOTION))
    asked.append(Question(ask_count(len(objects)), ALIGNMENT, Aspect.COUNT, weight=0.5))
    if assessment in (Assessment.MOTION, Assessment.FINAL):
        asked.append(Question(ASK_STABLE, MOTION, Aspect.STABILITY))
    if assessment is Assessment.FINAL:
        asked.append(Question(ask_match(world.caption(objects)), ALIGNMENT, Aspect.MATCH, weight=0.25))
    if assessment is not Assessment.MOTION:
        asked.append(Question(ASK_CLEAR, CLARITY, Aspect.CLARITY))
    return tuple(replace(question, view=View.UNIT if unit else View.VIDEO) for question in asked)


QUESTIONS = DigitsQuestions(about_digits)

_SETTINGS = """\
# How Framegrove serves this model, and what it asks it.
kind: vllm
questions: framegrove.digits.questions:QUESTIONS
engine: {dtype: float32, max_model_len: 1024, max_frames: 6, max_questions: 64, block_size: 32}
"""


def write_settings(folder: Path, calibration: Mapping[Assessment, Calibration] | None = None) -> None:
    """Write verifier.yaml into the folder of a verifier that was trained on these questions, and calibrated on them."""
    text = _SETTINGS
    if calibration:
        fitted = {assessment.value: each.model_dump() for assessment, each in calibration.items()}
        about = "# From scores to the probability that a branch is right, fitted to groups of siblings kept apart.\n"
        text += about + yaml.safe_dump({"calibration": fitted}, sort_keys=False)
    (folder / SETTINGS_FILE).write_text(text, encoding="utf-8")


# The sentences.


def ask_digit(digit: int) -> str:
    return f"Is there a {digit} in every frame?"


def ask_colour(colour: str) -> str:
    return f"Is there something {colour} in every frame?"


def ask_binding(digit: int, colour: str) -> str:
    return f"Is there a {colour} {digit} in every frame?"


def ask_motion(digit: int, colour: str, motion: str) -> str:
    return f"Does the {colour} {digit} move {motion}?"


def ask_motion_now(digit: int, colour: str, motion: str) -> str:
    return f"Does the {colour} {digit} now move {motion}?"


def ask_count(count: int) -> str:
    return "Is there exactly one object?" if count == 1 else "Are there exactly two objects?"


def ask_match(prompt: str) -> str:
    return f"Does this show {prompt.replace(' moves ', ' moving ')}?"


ASK_STABLE = "Does everything keep its shape and colour?"
ASK_CLEAR = "Is the picture clear?"


def static_scene(objects: tuple[DigitObject, ...]) -> str:
    """What a single picture of these digits shows: "a red 3 and a blue 2"."""
    return " and ".join(f"a {o.colour} {o.digit}" for o in objects)
