"""Carry out a study by Ray Tune: find out which settings are worth their cost.

    python -m jobs.sweep --study search --trials 40 --out runs/study
    python -m jobs.sweep --study pyramid --set data=runs/digits-clips --trials 24 --out runs/pyramids

A study says in a YAML file what is varied and what counts (jobs/configs/study_*.yaml; the path of another will do).
Optuna picks what is tried. The trials of a study of searches share one pool of generators and verifiers; those of a
study of pyramids train new models, all for the same FLOPs, and are stopped early where their samples fall behind. Every
trial makes videos for the same held-out prompts, which the oracle reads.

Leaves in --out: results.parquet, a row for every trial; report.html, a page with the Pareto front, all trials, what
matters and what was paid for, and its pictures as PNG; winners/*.yaml, the settings of the front, for jobs.generate
--config or jobs.train --config; of trainings also learning.png and samples.png. What was killed is resumed by --resume.
"""

from __future__ import annotations

import contextlib
import difflib
import shlex
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from framegrove.config.base import Config, absolute, overridden, read_yaml
from framegrove.config.generator import is_file
from framegrove.config.study import OBJECTIVES, HalvingConfig, StudyConfig
from framegrove.config.verifier import load_panel
from framegrove.errors import UserError
from framegrove.files import locked
from framegrove.words import counted
from jobs.console import (
    Display,
    DtypeOption,
    LogLevelOption,
    ModelOption,
    OverwriteOption,
    PickleOption,
    VariantOption,
    VerifierOption,
    application,
    given_options,
    make_folder,
    model_source,
    one_line_errors,
    refuse,
    refuse_others_results,
    when_stopped,
)
from jobs.keys import keys_help
from jobs.studies import notes as study_notes
from jobs.studies import report as study_report

if TYPE_CHECKING:
    from jobs.studies.kinds import Kind
    from jobs.studies.notes import Notes

FOLDER = Path(__file__).parent / "configs"
_OBJECTIVES = "; ".join(f"{each.name}: {each.what}" for each in OBJECTIVES.values())
_KEYS = keys_help(
    (f"Keys of a study's file. Of its objectives, {_OBJECTIVES}.", StudyConfig, ""),
    ("Of what is stopped early:", HalvingConfig, "stop."),
)

app = application()


def shipped() -> list[str]:
    """The names of the studies that come with the package."""
    return sorted(path.stem.removeprefix("study_") for path in FOLDER.glob("study_*.yaml"))


@app.command(epilog=_KEYS)
def main(
    context: typer.Context,
    study: Annotated[str, typer.Option(help=f"One of {', '.join(shipped())}, or a YAML file.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for results, report and winners. Not needed for --plan.")
    ] = None,
    trials: Annotated[
        int | None, typer.Option(min=1, help="How many, those that fail included. Default: as the study says.")
    ] = None,
    prompts: Annotated[
        int | None, typer.Option(min=1, help="How many held-out prompts each trial makes a video for; likewise.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="A setting that all trials share: of a search, as in policy=beam, or of a training run, as in "
            "data=runs/clips (repeatable).",
        ),
    ] = None,
    model: ModelOption = None,
    variant: VariantOption = None,
    dtype: DtypeOption = "float32",
    allow_pickle: PickleOption = False,
    verifier: VerifierOption = None,
    generators: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Of searches: generator actors, and so trials at once. Default: as many as fit.",
        ),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Of trainings: workers of each.")] = 1,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the study in --out; more --trials add to it.")
    ] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="With --resume: carry out the trials that failed once more.")
    ] = False,
    overwrite: OverwriteOption = False,
    plan: Annotated[
        bool, typer.Option("--plan", help="Print what would be tried, and what it may cost, and start nothing.")
    ] = False,
    log_level: LogLevelOption = None,
) -> None:
    """Carry out a study, and show what it found."""
    with one_line_errors(log_level), Display() as display:
        name, config = read_study(study, trials, prompts, set_ or ())
        if resume and overwrite:
            raise UserError("--resume continues a study, and --overwrite starts anew: leave one of them out")
        if retry_failed and not resume:
            raise UserError("--retry-failed is for a study that is resumed: add --resume, or leave it out")
        if trials is not None and config.grid:
            raise UserError(f"{name} tries every combination of its values: leave --trials out")
        places = {"model": absolute(model), "variant": variant, "dtype": dtype, "allow_pickle": allow_pickle}
        if config.kind == "pyramid":
            own = given_options(context) & {*places, "verifier", "generators"}
            refuse(own, f"is for a study of searches, and {name} trains its models: leave it out")
        else:
            refuse(given_options(context) & {"workers"}, f"is for a study of trainings, and {name} is not one")
        display.begin("reading the study")
        from jobs.studies.kinds import Searches, Trainings

        kind: Kind
        if config.kind == "search":
            if verifier is None and config.verifier is not None:
                verifier = str(_named(study, "verifier", config.verifier))
            panel = load_panel(verifier)
            panel.check_files()
            source = model_source(model, variant, dtype, allow_pickle)
            kind = Searches(config, source, panel, generators, places | {"verifier": absolute(verifier)})
        else:
            assert config.train is not None, "a study of trainings has one"
            kind = Trainings(config, _named(study, "train", config.train), workers)
        if plan:
            _show_plan(name, kind, display)
            return
        if out is None:
            raise UserError("--out is missing: name the folder of the study, or give --plan to start nothing")
        folder = _folder(out.absolute(), kind, resume=resume, overwrite=overwrite, retry_failed=retry_failed)
        with folder as notes:
            _carry_out(name, kind, notes, display)


def read_study(name: str, trials: int | None, prompts: int | None, settings: Sequence[str]) -> tuple[str, StudyConfig]:
    """A shipped study by its name, or one by the path of its YAML file, and what it is called. Raises UserError."""
    path = _file(name)
    data = read_yaml(path)
    data |= {key: value for key, value in (("trials", trials), ("prompts", prompts)) if value is not None}
    given = data.get("settings")
    if given is not None and not isinstance(given, dict):
        raise UserError(f"{path}: settings must be keys and values, as in {{policy: beam}}, not {str(given)[:60]!r}")
    shared = dict(given or {})
    for setting in settings:
        key, equals, _ = setting.partition("=")
        if not equals:
            raise UserError(f"--set {setting!r} is not of the form key=value, as in data=runs/clips")
        one = overridden(_Setting, {}, [f"value{setting[len(key) :]}"], f"--set {setting}")
        shared[key.strip()] = one.value
    return path.stem.removeprefix("study_"), overridden(StudyConfig, {**data, "settings": shared}, (), str(path))


class _Setting(Config):
    """One value."""

    value: Any = None


def _file(name: str) -> Path:
    path = FOLDER / f"study_{name}.yaml"
    if path.is_file():
        return path
    if Path(name).is_file() or Path(name).suffix:  # a file that is not there is told with those beside it
        return Path(name)
    meant = "".join(f", did you mean {near!r}?" for near in difflib.get_close_matches(name, shipped(), 1))
    raise UserError(
        f"there is no study {name[:60]!r}{meant or ':'} give one of {', '.join(shipped())}, or the path of a YAML file"
    )


def _named(study: str, key: str, name: str) -> Path:
    """What a study names under a key: beside it, or shipped, so that a copy of a shipped study works; else a path.

    Raises UserError for a file that is at none of these.
    """
    file = _file(study)
    found = next((path for path in (file.parent / name, FOLDER / name, Path(name)) if path.exists()), None)
    if found is None and is_file(name):
        raise UserError(f"{key}: there is no {name} beside {file}, nor among the shipped files in jobs/configs")
    return found or Path(name)


@contextlib.contextmanager
def _folder(out: Path, kind: Kind, *, resume: bool, overwrite: bool, retry_failed: bool = False) -> Iterator[Notes]:
    """The study's folder, and the notes in it, to oneself. Raises UserError where another study is in it."""
    if resume and not study_notes.ledger_of(out).is_file():
        raise UserError(f"there is no study in {out} to resume: leave --resume out, or give another --out")
    refuse_others_results(out, "a study")
    make_folder(out)
    with locked(out / ".lock", f"another process carries out the study in {out}: wait for it, or give another --out"):
        opened, there = study_notes.ledger_of(out).is_file(), study_notes.is_there(out)
        if not opened and (found := study_report.left_in(out)):
            raise UserError(f"{out} has {found[0]}, which is from no study: give another --out")
        if overwrite or not (there or resume):
            study_report.remove(out)
        elif not resume:
            raise UserError(
                f"a study is in {out} already: continue it by --resume, give another --out, or --overwrite to "
                "replace it"
            )
        notes = study_notes.Notes(out, kind.facts())
        study_notes.take_up(notes, kind.config.prompt_count, failed=retry_failed)
        yield notes


def _carry_out(name: str, kind: Kind, notes: Notes, display: Display) -> None:
    """Carry out what is missing, and show what all of it says. Raises UserError where not all could be carried out."""
    if notes.trials:
        display.say(f"resuming: {study_notes.progress(notes.trials)}")
    out = notes.out
    with when_stopped(f"resume it by the same command and --resume --out {shlex.quote(str(out))}"):
        why = _run(kind, notes, display)
        trials = [kind.read(out, each) for each in notes.ended]
        study_report.write(name, kind, trials, out, display)
    if why:
        raise UserError(why)
    if trials and all(trial.state == "failed" for trial in trials):
        raise UserError(f"all {counted(len(trials), 'trial')} failed, the last one with: {trials[-1].why}")


def _run(kind: Kind, notes: Notes, display: Display) -> str:
    """Carry out the trials that are missing. Returns why some still are, in a sentence, or nothing."""
    from jobs.studies.tuning import Work, carry_out, total

    count = total(kind.config, kind.applies)
    if len(notes.ended) >= count:
        display.say(f"nothing to carry out: {len(notes.ended)} of {counted(count, 'trial')} have ended")
        return ""
    display.begin("connecting to Ray")
    from framegrove.cluster.session import connect

    with connect() as cluster, kind.room(notes.out, cluster, display) as room:
        work = Work(kind.config, kind.objective, room.given, kind.applies, partial(kind.read, notes.out), room.at_once)
        return carry_out(work, notes, display)


def _show_plan(name: str, kind: Kind, display: Display) -> None:
    """Print what would be tried."""
    from rich.table import Table

    config = kind.config
    table = Table(title=f"The study {name}, of kind {config.kind}")
    for column in ("parameter", "values"):
        table.add_column(column, overflow="fold")
    for parameter in config.names:
        table.add_row(parameter, str(config.space[parameter]))
    display.console.print(table)
    for goal in config.goals:
        display.say(f"{goal.name}, {'more' if goal.up else 'less'} is better: {goal.what}")
    from jobs.studies.tuning import total

    display.say(kind.costs(total(config, kind.applies)))


if __name__ == "__main__":
    app()
