"""What a verifier is asked about a branch: yes/no questions, each about one thing.

A question about a whole caption lets a model read it as a bag of attributes, so digits, colours, their binding and
their motion are asked object by object and the answers multiplied (verification/scoring.py). Video-T1 asks different
things at different depths (section 3.3): whether a preview is clear and promising, whether the first picture
shows the scene, whether things move as they should, and at last whether the video is what was asked for.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from framegrove.config.request import FRAMES_PER_UNIT
from framegrove.digits import world as digits
from framegrove.digits.world import DigitObject
from framegrove.types import Assessment
from framegrove.verification.rewriting import StagedPrompt


class Aspect(enum.StrEnum):
    """What a question is about; accuracy is reported by aspect."""

    DIGIT = "digit"
    COLOUR = "colour"
    BINDING = "binding"  # this colour on this digit
    MOTION = "motion"
    COUNT = "count"
    MATCH = "match"  # a whole prompt at once
    STABILITY = "stability"  # nothing turns into something else
    CLARITY = "clarity"


class Panel(enum.StrEnum):
    """The verifiers of the panel; each has one score and a vote of its own in the fused rank (Video-T1, eq. 7)."""

    ALIGNMENT = "alignment"  # does it show what was asked for
    MOTION = "motion"  # does it move as asked, and hold together
    CLARITY = "clarity"  # can it be made out at all


@dataclass(frozen=True)
class Question:
    """A yes/no question, whose "yes" speaks for the video. ``about`` numbers the object of the prompt it is about."""

    text: str
    panel: Panel
    aspect: Aspect
    weight: float = 1.0  # exponent of this answer's probability in the panel member's product
    about: int | None = None


def questions(assessment: Assessment, prompt: StagedPrompt) -> tuple[Question, ...]:
    """Everything to ask at ``assessment`` about a video made for ``prompt``; never empty, same order every time."""
    objects = digits.parse(prompt.original)
    return _generic(assessment, prompt) if objects is None else _about_digits(assessment, objects)


def shown_frames(frame_count: int, most: int = 4) -> tuple[int, ...]:
    """Which frames of a clip the verifier sees, ascending: the first, then one of every unit.

    The frames of a branch's parent come first, so that the two share a prefix in the engine's cache. The place inside
    the unit moves on by one frame a unit: at a fixed one, a motion whose period is a number of units would stand still.
    More units than ``most`` allows: every 2nd, 4th, ... unit and always the last one.
    """
    if frame_count < 1 or most < 2:
        raise ValueError(f"a clip needs at least 1 frame and 2 shown ones at most, not {frame_count} and {most}")
    units = 1 + -(-(frame_count - 1) // FRAMES_PER_UNIT)
    stride = 1
    while len(chosen := sorted({*range(0, units, stride), units - 1})) > most:
        stride *= 2
    return tuple(min(_frame_of(unit), frame_count - 1) for unit in chosen)


def _frame_of(unit: int) -> int:
    return 0 if unit == 0 else FRAMES_PER_UNIT * (unit - 1) + 1 + (unit + 1) % FRAMES_PER_UNIT


# The sentences. The shipped verifier is trained on exactly these, so its questions come from here too.


def ask_digit(digit: int) -> str:
    return f"Is there a {digit} in every frame?"


def ask_colour(colour: str) -> str:
    return f"Is there something {colour} in every frame?"


def ask_binding(digit: int, colour: str) -> str:
    return f"Is there a {colour} {digit} in every frame?"


def ask_motion(digit: int, colour: str, motion: str) -> str:
    return f"Does the {colour} {digit} move {motion}?"


def ask_count(count: int) -> str:
    return "Is there exactly one object?" if count == 1 else "Are there exactly two objects?"


def ask_match(prompt: str) -> str:
    return f"Does this show {prompt.replace(' moves ', ' moving ')}?"


ASK_STABLE = "Does everything keep its shape and colour?"
ASK_CLEAR = "Is the picture clear?"


def _about_digits(assessment: Assessment, objects: tuple[DigitObject, ...]) -> tuple[Question, ...]:
    asked: list[Question] = []
    for about, obj in enumerate(objects):
        asked.append(
            Question(ask_binding(obj.digit, obj.colour), Panel.ALIGNMENT, Aspect.BINDING, weight=1.0, about=about)
        )
        if assessment is not Assessment.MOTION:
            asked.append(Question(ask_digit(obj.digit), Panel.ALIGNMENT, Aspect.DIGIT, weight=0.5, about=about))
            asked.append(Question(ask_colour(obj.colour), Panel.ALIGNMENT, Aspect.COLOUR, weight=0.5, about=about))
        if assessment in (Assessment.MOTION, Assessment.FINAL):
            text = ask_motion(obj.digit, obj.colour, obj.motion)
            asked.append(Question(text, Panel.MOTION, Aspect.MOTION, about=about))
    asked.append(Question(ask_count(len(objects)), Panel.ALIGNMENT, Aspect.COUNT, weight=0.5))
    if assessment in (Assessment.MOTION, Assessment.FINAL):
        asked.append(Question(ASK_STABLE, Panel.MOTION, Aspect.STABILITY))
    if assessment is Assessment.FINAL:
        asked.append(Question(ask_match(digits.caption(objects)), Panel.ALIGNMENT, Aspect.MATCH, weight=0.25))
    if assessment is not Assessment.MOTION:
        asked.append(Question(ASK_CLEAR, Panel.CLARITY, Aspect.CLARITY))
    return tuple(asked)


def _generic(assessment: Assessment, prompt: StagedPrompt) -> tuple[Question, ...]:
    if assessment is Assessment.POTENTIAL:
        return (
            Question(
                f"This is a rough preview. Could it become a picture of the following? {prompt.first}",
                Panel.ALIGNMENT,
                Aspect.MATCH,
            ),
            Question("Is the picture clear enough to see what it shows?", Panel.CLARITY, Aspect.CLARITY),
        )
    if assessment is Assessment.IMAGE:
        return (
            Question(f"Does the picture show the following? {prompt.first}", Panel.ALIGNMENT, Aspect.MATCH),
            Question(
                "Is everything that the picture shows complete and well formed?", Panel.CLARITY, Aspect.CLARITY, 0.5
            ),
            Question("Is the picture sharp and free of artefacts?", Panel.CLARITY, Aspect.CLARITY, weight=0.5),
        )
    moving = (
        Question(f"Do these frames of a video show this happening? {prompt.middle}", Panel.MOTION, Aspect.MOTION),
        Question("Is the movement smooth and physically plausible?", Panel.MOTION, Aspect.MOTION, weight=0.5),
        Question(
            "Do all objects keep their shape and colour from frame to frame?", Panel.MOTION, Aspect.STABILITY, 0.5
        ),
    )
    if assessment is Assessment.MOTION:
        return moving
    return (
        Question(f"Does the video show the following? {prompt.original}", Panel.ALIGNMENT, Aspect.MATCH),
        Question(f"Does the video end like this? {prompt.last}", Panel.ALIGNMENT, Aspect.MATCH, weight=0.5),
        *moving,
        Question("Is the video sharp and free of artefacts?", Panel.CLARITY, Aspect.CLARITY),
    )
