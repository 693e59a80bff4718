"""What a study keeps in its folder while it goes on: which trials were begun, how they ended, and every video's row.

trials.jsonl has a line for every beginning and every end, written by the command alone; each trial's folder has its
rows, written by the trial. A line is on the disk before what it tells of goes on. So whatever is killed, a trial that
was begun keeps its number and its parameters, is resumed, and is counted once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from framegrove import files
from framegrove.config.study import label_of
from framegrove.errors import UserError

if TYPE_CHECKING:
    from framegrove.evaluation.ledger import Ledger
    from framegrove.evaluation.study_results import State, Trial, Video

TRIALS, LEDGER, VIDEOS = "trials", "trials.jsonl", "videos.jsonl"


@dataclass(frozen=True)
class Begun:
    """A trial that was begun: its parameters, and how it ended if it has."""

    number: int
    params: Mapping[str, Any]
    state: State | None = None
    why: str = ""


class Notes:
    """The trials in a study's folder. ``facts``, JSON values, are what decides their outcome besides their parameters.

    Raises UserError where the folder has another study's notes, or those of another version.
    """

    def __init__(self, out: Path, facts: Mapping[str, Any]) -> None:
        from framegrove.evaluation.study_results import VERSION, check_version

        self.out, self._path = out, out / LEDGER
        wanted = files.identity({**facts, "version": VERSION})
        first, *lines = _lines(self._path) or [None]
        if first is None:
            out.mkdir(parents=True, exist_ok=True)
            files.append_line(self._path, wanted)
        else:
            check_version(first.get("version"), str(self._path))
            other = files.difference(first, wanted)
            if other is not None:
                raise UserError(f"another study is in {out}, {_in_short(other)}: give another --out")
        self._begun: dict[int, Begun] = {}
        try:
            for line in lines:
                if "ended" in line:
                    self._note_end(line["ended"], line["state"], line["why"])
                elif line.get("again") or line["begun"] not in self._begun:
                    self._begun[line["begun"]] = Begun(line["begun"], line["params"])
        except (KeyError, TypeError, AttributeError):
            raise files.damaged(self._path) from None

    @property
    def trials(self) -> list[Begun]:
        """Every trial that was begun, in order."""
        return [self._begun[number] for number in sorted(self._begun)]

    @property
    def ended(self) -> list[Begun]:
        """Those that have ended."""
        return [each for each in self.trials if each.state is not None]

    @property
    def unfinished(self) -> list[Begun]:
        """Those that have not."""
        return [each for each in self.trials if each.state is None]

    def begin(self, params: Mapping[str, Any]) -> int:
        """Note that a trial begins; returns its number."""
        number = max(self._begun, default=0) + 1
        files.append_line(self._path, {"begun": number, "params": dict(params)})
        self._begun[number] = Begun(number, params)
        return number

    def again(self, number: int) -> None:
        """Note that a trial which has ended is carried out once more."""
        params = self._begun[number].params
        files.append_line(self._path, {"begun": number, "params": dict(params), "again": True})
        self._begun[number] = Begun(number, params)

    def end(self, number: int, state: State, why: str = "") -> None:
        """Note how a trial has ended."""
        files.append_line(self._path, {"ended": number, "state": state, "why": why})
        self._note_end(number, state, why)

    def folder(self, number: int) -> Path:
        """Where a trial keeps what it makes."""
        return folder_of(self.out, number)

    def _note_end(self, number: int, state: State, why: str) -> None:
        begun = self._begun[number]
        if begun.state is None:  # what is told twice counts once
            self._begun[number] = Begun(number, begun.params, state, why)


def folder_of(out: Path, number: int) -> Path:
    """Where a trial of the study in ``out`` keeps what it makes."""
    return out / TRIALS / f"{number:04d}"


def rows_of(folder: Path) -> Ledger[Video]:
    """The rows of a trial's videos."""
    from framegrove.evaluation.ledger import Ledger
    from framegrove.evaluation.study_results import VERSION, Video

    return Ledger(folder / VIDEOS, {"version": VERSION}, Video.from_json)


def measured(begun: Begun, folder: Path, training: Mapping[str, Any]) -> Trial:
    """A trial that has ended, with its videos; the rows of one prompt count once."""
    from framegrove.evaluation.study_results import Trial

    assert begun.state is not None
    videos = {video.prompt: video for video in reversed(rows_of(folder).rows)} if (folder / VIDEOS).is_file() else {}
    rows = tuple(videos[prompt] for prompt in sorted(videos))
    return Trial(begun.number, begun.params, begun.state, begun.why, rows, **training)


def in_words(params: Mapping[str, Any]) -> str:
    """A trial's parameters for people."""
    return ", ".join(
        f"{name} {f'{value:.3g}' if isinstance(value, float) else label_of(value)}" for name, value in params.items()
    )


def ledger_of(out: Path) -> Path:
    """The file that makes a folder a study's, even if it was interrupted before any trial was begun."""
    return out / LEDGER


def is_there(out: Path) -> bool:
    """Whether any trial was begun in a folder, which is this process's alone: a torn last line is cut off."""
    return len(_lines(out / LEDGER)) > 1


def take_up(notes: Notes, prompts: int, *, failed: bool) -> None:
    """Have trials carried out again that are said to have finished and whose rows are gone, and those that ``failed``
    where that is wanted. What is there of a trial is not made again.
    """
    for each in notes.ended:
        if each.state == "finished":
            lost = len(measured(each, notes.folder(each.number), {}).videos) < prompts
        else:
            lost = failed and each.state == "failed"
        if lost:
            notes.again(each.number)


def _lines(path: Path) -> list[Any]:
    lines = files.whole_lines(path)
    if lines and not isinstance(lines[0], dict):
        raise files.damaged(path)
    return lines


def progress(trials: Sequence[Begun]) -> str:
    """How far a study is, in words."""
    from framegrove.words import counted

    ended = sum(each.state is not None for each in trials)
    return f"{ended} of {counted(len(trials), 'trial')} that were begun have ended"


def _in_short(difference: str) -> str:
    return difference if len(difference) < 200 else f"{difference[:200]} .."
