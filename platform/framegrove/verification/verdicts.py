"""What a verifier with questions asks about a branch, and what its answers make: the same for every engine."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from framegrove.config.scores import Generated, Json, Pairwise, Score, YesNo, names_of
from framegrove.config.verifier import VerifierConfig, question_source
from framegrove.errors import UserError
from framegrove.types import Assessment, Cost, Scored, ScoreWork
from framegrove.verification import scoring
from framegrove.verification.questions import Question, QuestionSet, load_question_set
from framegrove.verification.scoring import Answer
from framegrove.verification.views import Shown, grouped

logger = logging.getLogger(__name__)

Heard = TypeVar("Heard")
AGAIN = 0.7  # the temperature at which a model that writes is asked again
PROBING_PROMPT = "a ball rolls over the floor"

Asked = dict[Shown, dict[str, list[int]]]
"""Which texts are asked about which frames, and the places of the questions that each answers."""


def checked_questions(config: VerifierConfig) -> QuestionSet:
    """The verifier's question set.

    Raises UserError where it has nothing to ask at something the verifier judges, where it names other scores than the
    verifier's answers hold, and for a weight of a score that is not there.
    """
    source = question_source(config)
    found = load_question_set(source)
    asked = {each: found.questions(each, PROBING_PROMPT) for each in config.assessments}
    if silent := [each.value for each, questions in asked.items() if not questions]:
        raise UserError(
            f"verifier {config.name} judges {', '.join(silent)}, but the questions {source} ask nothing there: "
            "leave it out of what the verifier judges"
        )
    scores = list(dict.fromkeys(question.score for questions in asked.values() for question in questions))
    held = names_of(config.score)
    if held is not None and (strange := [score for score in scores if score not in held]):
        raise UserError(
            f"verifier {config.name}: the questions {source} ask for {', '.join(strange)}, but score names "
            f"{', '.join(held)}"
        )
    if (wrong := config.weightless(scores)) is not None:
        raise UserError(wrong)
    return found


def comparison_of(config: VerifierConfig) -> Pairwise:
    """How a verifier compares two videos. Raises UserError for one that does not."""
    if not isinstance(config.score, Pairwise):
        raise UserError(f"verifier {config.name} does not compare: give it score: {{kind: pairwise}}")
    return config.score


def check_asked(config: VerifierConfig, assessment: Assessment, questions: Sequence[Question]) -> None:
    """Raise UserError where a verifier judges, and has nothing to ask."""
    if not questions:
        raise UserError(
            f"verifier {config.name} judges {assessment.value}, and its questions ({question_source(config)}) ask "
            "nothing there: leave it out of what it judges"
        )


def asked_of(questions: Sequence[Question], lengths: Sequence[int], most: int) -> Asked:
    """What is asked about the views of a clip, of units of ``lengths`` frames.

    Questions with one text and one view are asked once.
    """
    return {
        shown: _by_text([(questions[at].text, at) for at in places])
        for shown, places in grouped([each.view for each in questions], lengths, most).items()
    }


async def read_in_tries(
    who: str, score: Score, ask: Callable[[int], Awaitable[Heard]], read: Callable[[Heard], list[Answer]]
) -> list[Answer]:
    """What can be read of an answer. A model that writes is asked again, as ``score.tries`` says, where that fails.

    ``ask`` is given 0, for the likeliest answer, and then the seeds of others. Raises the last of ``read``'s errors.
    """
    tries = score.tries if isinstance(score, Generated | Json) else 1
    for attempt in itertools.count(1):
        heard = await ask(attempt - 1)
        try:
            return read(heard)
        except UserError as error:
            if attempt >= tries:
                raise
            logger.warning("%s is asked again (%d of %d tries): %s", who, attempt + 1, tries, error)
    raise AssertionError("counting does not end")


def verdict(
    work: ScoreWork, score: Score, questions: Sequence[Question], answers: Sequence[Sequence[Answer]], cost: Cost
) -> Scored:
    """A verifier's scores from the answers to each of its questions, one for each selection of frames."""
    said = [scoring.averaged(each) for each in answers]
    odds = [scoring.on_grid(answer.odds) for answer in said]
    combine = score.combine if isinstance(score, YesNo) else "product"
    scores = scoring.scores_of(work.assessment, questions, odds, combine)
    told = tuple((_told(each, questions), scoring.probability(odd)) for each, odd in zip(questions, odds, strict=True))
    return Scored(work, scores, cost, min(answer.mass for answer in said), told)


def _told(question: Question, questions: Sequence[Question]) -> str:
    """What a report calls an answer: the question, and the score too where one answer holds several."""
    alone = sum(other.text == question.text and other.view == question.view for other in questions) == 1
    return question.text if alone else f"{question.score}: {question.text}"


def _by_text(placed: Sequence[tuple[str, int]]) -> dict[str, list[int]]:
    texts: dict[str, list[int]] = {}
    for text, at in placed:
        texts.setdefault(text, []).append(at)
    return texts
