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
from framegrove.evaluation.study_front import FrontPlace, front
from framegrove.evaluation.study_results import Trial
from framegrove.files import replacing
from framegrove.words import counted


@dataclass(frozen=True)
class Picture:
    """A PNG of the page: where it lies, what it shows in a line, and what to know to read it."""

    path: Path
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
    config, goals = report.config, report.config.goals
    prompts = config.prompts if isinstance(config.prompts, int) else len(config.prompts)
    varied = ", ".join(config.names)
    yield f"<h1>Study {_text(report.name)}</h1>"
    ended = _text(summary(report.trials))
    yield f'<p class="note">{ended}; {counted(prompts, "prompt")} each. Varied: {_text(varied)}.'
    yield "Means over prompts with 95% bootstrap intervals.</p>"
    yield "<h2>The Pareto front</h2>"
    yield f"<p>{' '.join(_text(f'{goal.name}: {goal.what}.') for goal in goals)} No other trial is at least as good in"
    yield "all of these and better in one; <em>sure</em> is how often that is so when prompts are drawn anew.</p>"
    best = front(report.found, goals)
    head = ["trial", *(goal.name for goal in goals), "sure", "settings", "file"]
    rows = [
        _row(
            [str(each.trial.number), *(_interval(each.means[goal.name]) for goal in goals), f"{each.chance:.0%}"],
            [_settings(each.trial), report.winners.get(each.trial.number, "")],
            "front",
        )
        for each in best
    ]
    yield _table(head, rows, len(goals) + 2) if rows else "<p>No trial has finished.</p>"
    if rows:
        yield f"<p>A file is used as it is: <code>{_text(report.use)}</code></p>"
    for picture in report.pictures:
        yield f"<h2>{_text(picture.heading)}</h2>\n<p>{_text(picture.note)}</p>"
        data = base64.b64encode(picture.path.read_bytes()).decode()
        yield f'<img src="data:image/png;base64,{data}" alt="{_text(picture.heading)}: {_text(picture.note)}">'
    yield from _others(report)


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
    goals = report.config.goals
    beaten = [each for each in report.found if not each.on_front]
    if beaten:
        yield "<h2>Finished trials that another one beats</h2>"
        rows = [
            _row(
                [str(each.trial.number), *(_interval(each.means[goal.name]) for goal in goals), f"{each.chance:.0%}"],
                [_settings(each.trial)],
            )
            for each in beaten
        ]
        yield _table(["trial", *(goal.name for goal in goals), "sure", "settings"], rows, len(goals) + 2)


def _interval(value: Interval) -> str:
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
