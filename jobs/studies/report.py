"""What a study leaves for people: results.parquet, report.html and its pictures, and its winners as configurations."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from framegrove.config.study import StudyConfig
from framegrove.files import replacing
from framegrove.words import counted
from jobs.studies.notes import LEDGER, TRIALS, in_words

if TYPE_CHECKING:
    from framegrove.evaluation.study_front import FrontPlace
    from framegrove.evaluation.study_page import Picture
    from framegrove.evaluation.study_results import Trial
    from jobs.console import Display
    from jobs.studies.kinds import Kind

RESULTS, PAGE, WINNERS = "results.parquet", "report.html", "winners"
_PICTURES = ("front.png", "parallel.png", "importance.png", "costs.png", "learning.png", "samples.png")
_LISTED = 8  # winners in the closing table


_FOLDERS = (TRIALS, WINNERS, ".tune")
_FILES = (LEDGER, RESULTS, PAGE, *_PICTURES)


def left_in(out: Path) -> list[str]:
    """What is in a folder under the names of what a study leaves."""
    return [name for name in (*_FOLDERS, *_FILES) if (out / name).exists()]


def remove(out: Path) -> None:
    """Remove what an earlier study has left in a folder."""
    for name in _FOLDERS:
        shutil.rmtree(out / name, ignore_errors=True)
    for name in _FILES:
        (out / name).unlink(missing_ok=True)


def write(name: str, kind: Kind, trials: Sequence[Trial], out: Path, display: Display) -> None:
    """Write all of it, from the trials that have ended, and print the front."""
    from framegrove.evaluation import study_page
    from framegrove.evaluation.study_front import front, standings
    from framegrove.evaluation.study_results import read_parquet, write_parquet

    display.begin("drawing the report")
    write_parquet(kind.config, trials, out / RESULTS)
    config, trials = read_parquet(out / RESULTS)  # the page shows what is in the file, and nothing else
    found = standings(trials, config.goals)
    best = front(found, config.goals)
    winners = write_winners(name, kind, best, out / WINNERS)
    drawn = _drawn(name, config, trials, found, out)
    shown = [*(each.trial for each in best), *(trial for trial in trials if trial.number not in winners)]
    drawn += kind.pictures(shown, out)
    report = study_page.Report(name, config, trials, found, drawn, winners, kind.use)
    study_page.write(report, out / PAGE)
    _print(report, best, display)
    display.say("\n".join(str(out / name) for name in (PAGE, RESULTS, WINNERS)))


def write_winners(name: str, kind: Kind, best: Sequence[FrontPlace], folder: Path) -> dict[int, str]:
    """A configuration for every trial on the front, in place of what was there; their names by the trials' numbers."""
    names: dict[int, str] = {}
    with replacing(folder) as partial:
        partial.mkdir()
        for each in best:
            file = f"trial-{each.trial.number:04d}.yaml"
            names[each.trial.number] = f"{WINNERS}/{file}"
            means = ", ".join(f"{goal} {_short(value.mean)}" for goal, value in each.means.items())
            head = f"# Trial {each.trial.number} of the study {name}: {means}.\n#   {kind.use}\n"
            body = yaml.safe_dump(kind.winner(each.trial), sort_keys=False, allow_unicode=True)
            (partial / file).write_text(head + body, encoding="utf-8")
    return names


def _drawn(
    name: str, config: StudyConfig, trials: Sequence[Trial], found: Sequence[FrontPlace], out: Path
) -> list[Picture]:
    from framegrove.evaluation import study_pictures
    from framegrove.evaluation.study_page import Picture

    if not found:
        return []
    front, parallel, importance, costs = (out / each for each in _PICTURES[:4])
    title = f"Study {name}"
    study_pictures.draw_front(found, config.goals, front, title=title)
    study_pictures.draw_parallel(found, config, parallel, title=title)
    study_pictures.draw_costs(found, costs, title=f"{title}: what FLOPs go into")
    return [
        Picture(front, "What is worth its cost", _over(config)),
        Picture(
            parallel,
            "All trials",
            "A line for every finished trial through the values of its parameters and its means; of objectives, better "
            "is higher.",
        ),
        _what_matters(title, config, trials, importance),
        Picture(costs, "What FLOPs go into", "Means over prompts. What is wasted is speculation that was not needed."),
    ]


def _what_matters(title: str, config: StudyConfig, trials: Sequence[Trial], path: Path) -> Picture:
    """The picture of what parameters have to do with how good a trial is, and why it has not all objectives."""
    from framegrove.evaluation import study_pictures
    from framegrove.evaluation.study_optuna import importances
    from framegrove.evaluation.study_page import Picture

    found, untold = importances(config, trials)
    why = " ".join(f"{goal} {reason}." for goal, reason in untold.items())
    if len(set(untold.values())) == 1 and len(untold) > 1:  # the same of all
        why = f"Each of {', '.join(untold)} {next(iter(untold.values()))}."
    if not found:
        path.unlink(missing_ok=True)
        return Picture(None, "What matters", f"This is not shown. {why}")
    study_pictures.draw_importance(found, path, title=f"{title}: what matters")
    note = (
        "How much each parameter has to do with a trial's being among the best, by Optuna (PED-ANOVA), from "
        f"{counted(sum(trial.state == 'finished' for trial in trials), 'finished trial')}; the shares of an objective "
        "add up to 1. That is association, and no cause. Pale: no more than chance gives; of twenty objectives that "
        "nothing here has to do with, one has a bar that is not pale all the same."
    )
    return Picture(path, "What matters", f"{note} Not all objectives are shown. {why}" if why else note)


def _print(report: Any, best: Sequence[FrontPlace], display: Display) -> None:
    from rich.table import Table

    from framegrove.evaluation.study_front import doubt, ties
    from framegrove.evaluation.study_page import summary

    goals, several = report.config.goals, report.prompts > 1
    intervals = ", with 95% bootstrap intervals" if several else ""
    table = Table(title=f"The Pareto front of the study {report.name}{intervals}")
    for column in ("trial", *(goal.name for goal in goals), *(["sure"] if several else []), "settings"):
        table.add_column(column, justify="left" if column == "settings" else "right", overflow="fold")
    for each in best[:_LISTED]:
        means = [each.means[goal.name] for goal in goals]
        shown = [*map(_interval, means), f"{each.chance:.0%}"] if several else [_short(mean.mean) for mean in means]
        table.add_row(str(each.trial.number), *shown, in_words(each.trial.params))
    if best:
        display.console.print(table)
        if few := doubt(report.prompts):
            display.say(few)
    if len(best) > _LISTED:
        display.say(f"and {counted(len(best) - _LISTED, 'more trial')}, see {PAGE}")
    tied = ties(report.found, goals)
    for number in dict.fromkeys(first.trial.number for _, first in tied):
        equal = ", ".join(str(each.trial.number) for each, first in tied if first.trial.number == number)
        display.say(f"equal to trial {number} in all objectives: {equal}")
    display.say(summary(report.trials))
    for trial in report.trials:
        if trial.state == "failed":
            display.say(f"trial {trial.number} failed: {trial.why}")


def _interval(value: Any) -> str:
    return f"{_short(value.mean)} [{_short(value.low)}, {_short(value.high)}]"


def _short(value: float) -> str:
    return f"{value:.3g}"


def _over(config: StudyConfig) -> str:
    """What a study's picture of means is of."""
    from framegrove.evaluation.study_front import ENOUGH

    prompts = config.prompt_count
    if prompts == 1:
        return "Every finished trial, with what one prompt gave."
    few = ", so few that intervals mean little" if prompts < ENOUGH else ""
    return f"Every finished trial, with 95% intervals over {prompts} prompts{few}."
