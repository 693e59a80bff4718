"""report.html: a study as one page for a browser, without a network: its front, its pictures, every trial."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from framegrove.config.study import StudyConfig, label_of
from framegrove.evaluation.curves import Interval
from framegrove.evaluation.pages import assembled, part
from framegrove.evaluation.study_front import FrontPlace, doubt, front, ties
from framegrove.evaluation.study_results import Trial
from framegrove.files import replacing
from framegrove.words import counted


@dataclass(frozen=True)
class Picture:
    """A PNG of the page: where it lies, what it shows in a line, and what to know to read it.

    Without a path it is the reason why there is none.
    """

    path: Path | None
    heading: str
    note: str


@dataclass(frozen=True)
class Report:
    """What the page is made of. ``winners`` are the files of trials on the front, by their numbers."""

    name: str
    config: StudyConfig
    trials: Sequence[Trial]
    found: Sequence[FrontPlace]
    pictures: Sequence[Picture]
    winners: Mapping[int, str]
    use: str  # what is done with a winner, as a command

    @property
    def prompts(self) -> int:
        """How many prompts a trial has a video for."""
        return self.config.prompt_count


def write(report: Report, path: Path) -> None:
    """Write the page at ``path``, pictures inside; no name ever stands for half a file."""
    with replacing(path) as partial:
        partial.write_text(page(report), encoding="utf-8")


def page(report: Report) -> str:
    """The page."""
    title, body = html.escape(f"Study {report.name}"), "\n".join(_body(report))
    return assembled("study.html", TITLE=title, STYLE=part("study.css").rstrip(), BODY=body)


def summary(trials: Sequence[Trial]) -> str:
    """How many trials there are, and how they ended.

    >>> summary([])
    '0 trials'
    """
    states = [(state, sum(trial.state == state for trial in trials)) for state in ("finished", "stopped", "failed")]
    ended = ", ".join(f"{count} {state}" for state, count in states if count)
    return f"{counted(len(trials), 'trial')}: {ended}" if ended else counted(len(trials), "trial")


def _body(report: Report) -> Iterable[str]:
    goals = report.config.goals
    yield f"<h1>Study {_text(report.name)}</h1>"
    ended, varied = summary(report.trials), ", ".join(report.config.names)
    yield f'<p class="note">{_text(ended)}; {counted(report.prompts, "prompt")} each. Varied: {_text(varied)}.'
    yield f"{_of_means(report)}</p>"
    yield "<h2>The Pareto front</h2>"
    yield f"<p>{' '.join(_text(f'{goal.name}: {goal.what}.') for goal in goals)} No other trial is at least as good in"
    sure = "; <em>sure</em> is how often that is so when prompts are drawn anew" if report.prompts > 1 else ""
    yield f"all of these and better in one{sure}.</p>"
    best = front(report.found, goals)
    rows = [_standing(report, each, [report.winners.get(each.trial.number, "")], "front") for each in best]
    yield _standings(report, rows, ["file"]) if rows else "<p>No trial has finished.</p>"
    if rows:
        yield f"<p>A file is used as it is: <code>{_text(report.use)}</code></p>"
    for picture in report.pictures:
        yield f"<h2>{_text(picture.heading)}</h2>\n<p>{_text(picture.note)}</p>"
        if picture.path is not None:
            data = base64.b64encode(picture.path.read_bytes()).decode()
            yield f'<img src="data:image/png;base64,{data}" alt="{_text(picture.heading)}: {_text(picture.note)}">'
    yield from _others(report)


def _of_means(report: Report) -> str:
    """What means are over, and what not to take for certain."""
    said = "Means over prompts with 95% bootstrap intervals." if report.prompts > 1 else ""
    flat = any(mean.low == mean.high for each in report.found for mean in each.means.values())
    if few := doubt(report.prompts):
        said = f"{said} {few}.".lstrip()
    elif flat:
        said += " An interval of no width tells that all prompts gave the same, not that others would."
    return said


def _others(report: Report) -> Iterable[str]:
    """Every trial that is not on the front; those that came to nothing with their reason."""
    failed = [trial for trial in report.trials if trial.state == "failed"]
    yield f"<h2>Failed trials</h2>\n<p>{len(failed)} of {counted(len(report.trials), 'trial')} failed.</p>"
    if failed:
        rows = [_row([str(t.number)], [t.why, _settings(t)], "failed") for t in failed]
        yield _table(["trial", "why", "settings"], rows, 1)
    if stopped := [trial for trial in report.trials if trial.state == "stopped"]:
        yield "<h2>Trials stopped early</h2>"
        yield _table(["trial", "why", "settings"], [_row([str(t.number)], [t.why, _settings(t)]) for t in stopped], 1)
    if tied := ties(report.found, report.config.goals):
        yield "<h2>Finished trials that equal one on the front</h2>"
        rows = [_standing(report, each, [f"trial {first.trial.number}"]) for each, first in tied]
        yield _standings(report, rows, ["equal to"])
    if beaten := [each for each in report.found if not each.on_front]:
        yield "<h2>Finished trials that another one beats</h2>"
        yield _standings(report, [_standing(report, each, []) for each in beaten], [])


def _standings(report: Report, rows: Iterable[str], more: Sequence[str]) -> str:
    """A table of finished trials, with ``more`` columns of text."""
    head = ["trial", *report.config.objectives, *(["sure"] if report.prompts > 1 else [])]
    return _table([*head, "settings", *more], rows, len(head))


def _standing(report: Report, each: FrontPlace, more: Sequence[str], kind: str = "") -> str:
    """Where a trial stands; what a single prompt gave is written without an interval, which it has none of."""
    several = report.prompts > 1
    means = [_interval(each.means[name], several=several) for name in report.config.objectives]
    sure = [f"{each.chance:.0%}"] if several else []
    return _row([str(each.trial.number), *means, *sure], [_settings(each.trial), *more], kind)


def _interval(value: Interval, *, several: bool) -> str:
    if not several:
        return f"{value.mean:.3g}" if abs(value.mean) >= 1e4 else f"{value.mean:.3f}"
    if abs(value.mean) >= 1e4:
        return f"{value.mean:.3g} [{value.low:.3g}, {value.high:.3g}]"
    return str(value)


def _settings(trial: Trial) -> str:
    return ", ".join(f"{name} {label_of(_rounded(value))}" for name, value in trial.params.items())


def _rounded(value: object) -> object:
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _row(numbers: Iterable[str], texts: Iterable[str], kind: str = "") -> str:
    cells = [f'<td class="number">{_text(each)}</td>' for each in numbers]
    cells += [f"<td>{_text(each)}</td>" for each in texts]
    return f"<tr{f' class={kind!r}' if kind else ''}>{''.join(cells)}</tr>".replace("'", '"')


def _table(head: Sequence[str], rows: Iterable[str], numbers: int) -> str:
    """A table whose first columns are ``numbers``."""
    cells = [
        f'<th scope="col"{" class=" + chr(34) + "number" + chr(34) if at < numbers else ""}>{_text(each)}</th>'
        for at, each in enumerate(head)
    ]
    body = "\n".join(rows)
    return (
        f'<div class="wide"><table>\n<thead><tr>{"".join(cells)}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'
    )


def _text(text: str) -> str:
    return html.escape(text)
