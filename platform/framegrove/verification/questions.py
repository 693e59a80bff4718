"""What a vision-language verifier is asked about a branch: sets of yes/no questions, each question about one thing.

A set is a YAML file of templates (sets/general.yaml explains the format), a published list (listed.py), or an object
named "module:attribute" that makes questions in code. Video-T1 (section 3.3) asks different things at different depths:
whether a preview is clear and promising, whether the first picture shows the scene, whether things move as they should,
and finally whether the video is what was asked for. A question therefore names the assessments it belongs to, and the
view of the clip that it is about (verification/views.py).
"""

from __future__ import annotations

import hashlib
import json
import string
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

from pydantic import Field, field_validator

from framegrove.config.base import Config, ConfigError, imported, read_yaml, validated
from framegrove.config.verifier import shipped_sets
from framegrove.types import Assessment
from framegrove.verification.rewriting import staged
from framegrove.verification.views import View


@dataclass(frozen=True)
class Question:
    """A question about ``aspect``, which counts towards the verifier's score called ``score``.

    ``weight`` is the exponent of this answer's probability in the score's product (verification/scoring.py). "Yes"
    speaks for the video, or against it where ``against`` is true. ``view`` says which frames it is asked about.
    """

    text: str
    score: str
    aspect: str
    weight: float = 1.0
    against: bool = False
    view: View = View.VIDEO


class QuestionSet(Protocol):
    """What a verifier asks. To write one in code, give an object with these two members as "module:attribute"."""

    @property
    def fingerprint(self) -> str:
        """Changes whenever the questions do: a search that was interrupted goes on only with the same questions."""
        ...

    def questions(self, assessment: Assessment, prompt: str) -> tuple[Question, ...]:
        """Everything to ask at ``assessment`` about a video made for ``prompt``, in the same order every time."""
        ...


def load_question_set(source: str) -> QuestionSet:
    """The set called ``source``: a shipped one's name, a YAML file, a published list (.txt), or "module:attribute".

    Raises ConfigError, which names the file and the entry, or the module and the attribute.
    """
    if ":" in source:
        return _imported(source)
    if source.endswith((".yaml", ".yml")):
        return TemplateSet(Path(source))
    if source.endswith(".txt"):
        from framegrove.verification.listed import ListedSet  # which is made of this module's questions

        return ListedSet(Path(source))
    if source not in shipped_sets():
        raise ConfigError(f"there are no questions called {source!r}: the shipped sets are {', '.join(shipped_sets())}")
    return TemplateSet(Path(str(resources.files("framegrove.verification"))) / "sets" / f"{source}.yaml")


class TemplateSet:
    """A question set from a YAML file."""

    def __init__(self, file: Path) -> None:
        """Read and check ``file``. Raises ConfigError, which names the file and the entry."""
        data = read_yaml(file)
        entries = data.pop("questions", None)
        if data or not isinstance(entries, list) or not entries:
            raise ConfigError(f"{file} must hold the key questions, with a list of at least one question, and no other")
        self._templates = [_template(entry, f"{file}, question {at}") for at, entry in enumerate(entries, 1)]

    @property
    def fingerprint(self) -> str:
        """Depends on what the file says, not on its comments or its place."""
        facts = json.dumps([template.model_dump(mode="json") for template in self._templates], sort_keys=True)
        return hashlib.blake2b(facts.encode(), digest_size=12).hexdigest()

    def questions(self, assessment: Assessment, prompt: str) -> tuple[Question, ...]:
        """The file's questions for ``assessment``, in its order."""
        stages = staged(prompt)
        parts = {"prompt": stages.original, "first": stages.first, "middle": stages.middle, "last": stages.last}
        return tuple(
            Question(
                each.text.format(**parts),
                score,
                each.aspect,
                each.weight,
                each.polarity == "against",
                each.view_at(assessment),
            )
            for each in self._templates
            if assessment in each.assessments
            for score in ([each.score] if isinstance(each.score, str) else each.score)
        )


# An unfinished branch is judged by its newest unit, the finished video by frames from all over it.
_VIEWS = {
    Assessment.POTENTIAL: View.UNIT,
    Assessment.IMAGE: View.VIDEO,
    Assessment.MOTION: View.UNIT,
    Assessment.FINAL: View.VIDEO,
}
_PLACES = ("prompt", "first", "middle", "last")


class _Template(Config):
    """One entry of a set's YAML file."""

    text: str = Field(min_length=1)
    score: Annotated[str, Field(min_length=1)] | Annotated[tuple[str, ...], Field(min_length=1)]
    aspect: str = Field(min_length=1)
    weight: float = Field(1.0, gt=0, allow_inf_nan=False)
    assessments: tuple[Assessment, ...] = Field(tuple(Assessment), min_length=1)
    polarity: Literal["for", "against"] = "for"
    view: dict[Assessment, View] = Field({})  # in the file, one view may also stand for all assessments

    @field_validator("view", mode="before")
    @classmethod
    def _names_known_views(cls, view: Any) -> Any:
        by_assessment = view if isinstance(view, dict) else dict.fromkeys(Assessment, view)
        if not all(each in list(View) for each in by_assessment.values()):
            raise ValueError(f"a view must be one of {', '.join(View)}, or such views by assessment")
        return by_assessment

    def view_at(self, assessment: Assessment) -> View:
        """What it is asked about there."""
        return self.view.get(assessment, _VIEWS[assessment])

    @field_validator("text")
    @classmethod
    def _names_known_places(cls, text: str) -> str:
        try:
            pieces = list(string.Formatter().parse(text))
        except ValueError as error:
            raise ValueError(f"the braces do not match ({error}): write {{{{ and }}}} for braces") from None
        for _, name, spec, conversion in pieces:
            if name is not None and (name not in _PLACES or spec or conversion):
                allowed = ", ".join(f"{{{place}}}" for place in _PLACES)
                raise ValueError(f"there is nothing to put in for {{{name}}}: allowed are {allowed}")
        return text


def _template(entry: Any, where: str) -> _Template:
    if not isinstance(entry, dict):
        raise ConfigError(f"{where}: must hold keys and values such as text and score, not {entry!r}")
    return validated(_Template, entry, where)


def _imported(source: str) -> QuestionSet:
    found = imported(source, f"questions {source}")
    if not callable(getattr(found, "questions", None)) or not isinstance(getattr(found, "fingerprint", None), str):
        raise ConfigError(
            f"questions {source}: must have a method questions(assessment, prompt) and a fingerprint, a string that "
            "changes with the questions"
        )
    question_set: QuestionSet = found
    return question_set
