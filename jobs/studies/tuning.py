"""Tune carries a study out: Optuna picks what is tried, as many trials go on at once as there is room for.

Tune's own record of an experiment is thrown away: what counts is in the study's notes (notes.py), from which
Optuna learns what was tried before.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from framegrove.config.study import Params, StudyConfig
from framegrove.errors import UserError
from framegrove.words import counted
from jobs.studies.notes import Begun, Notes, in_words

if TYPE_CHECKING:
    from framegrove.evaluation.study_results import Trial
    from jobs.console import Display

Applies = Callable[[str, Params], bool]
Report = Callable[[Mapping[str, Any]], None]
Objective = Callable[[int, Params, tuple[Any, ...], Report], None]

_TUNE = ".tune"  # in the study's folder, while it is carried out
_AGAIN = 100  # picks in a row that were tried before, after which nothing new is expected
_FINISHED: Literal["finished"] = "finished"
_ALIKE = 3  # trials in a row that fail with the same message, after which the next ones would as well


class Interrupted(Exception):
    """What a trial's process raises where it cannot go on for a reason that its parameters have no part in.

    The trial stays unfinished, and the study stops.
    """


class Brake:
    """Ends a study whose further trials would only fail: what they share is lost, or each fails as the last ones."""

    def __init__(self) -> None:
        self.why = ""  # a sentence, once it is to end
        self._last, self._count = "", 0

    def interrupted(self, why: str) -> None:
        """What trials share is lost."""
        self.why = f"{why}: look for why in Ray's logs (memory?), then continue the study by --resume"

    def failed(self, why: str) -> None:
        """A trial has failed."""
        self._count = self._count + 1 if why == self._last else 1
        self._last = why
        if self._count >= _ALIKE and not self.why:
            self.why = (
                f"{self._count} trials in a row failed with: {why.rstrip('.')}; the study stops here. Mend that and "
                "continue by --resume --retry-failed, or by --resume without those that failed"
            )

    def finished(self) -> None:
        """A trial has ended well."""
        self._last, self._count = "", 0


@dataclass(frozen=True)
class Work:
    """What is carried out: trials of ``objective``, a module's function that a trial's process calls as
    ``objective(number, params, given, report)``; it ends once there is a row for every prompt.

    ``applies`` says which parameters matter beside which others, ``read`` what was measured of a trial that has ended.
    ``at_once`` is how many trials there is room for.
    """

    config: StudyConfig
    objective: Objective
    given: tuple[Any, ...]
    applies: Applies
    read: Callable[[Begun], Trial]
    at_once: int


def carry_out(work: Work, notes: Notes, display: Display) -> str:
    """Carry out the trials that are missing. When this returns, all have ended, unless it returns why not: a sentence,
    where what trials share was lost, or one after the other failed with the same message.
    """
    from ray import tune

    config, count = work.config, total(work.config, work.applies)
    left = count - len(notes.ended)
    display.begin(f"{counted(left, 'trial')}, {work.at_once} at a time", patience=60.0)
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # Ctrl-C is the command's to answer
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # its tables are printed even where nothing is to be
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"  # objectives are there at a trial's end alone
    shutil.rmtree(notes.out / _TUNE, ignore_errors=True)
    # A trial only waits for actors and workers that have CPUs of their own.
    trainable = tune.with_resources(
        tune.with_parameters(_attempt, objective=work.objective, given=work.given), {"CPU": 0.01}
    )
    brake = Brake()
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=_picks(work, notes, brake),
            scheduler=_scheduler(config),
            num_samples=left,
            max_concurrent_trials=work.at_once,
        ),
        run_config=tune.RunConfig(
            name=_TUNE, storage_path=str(notes.out), verbose=0, callbacks=[noting(work, notes, brake, display)]
        ),
    )
    tuner.fit()
    shutil.rmtree(notes.out / _TUNE, ignore_errors=True)
    return brake.why


def total(config: StudyConfig, applies: Applies) -> int:
    """How many trials a study has at most."""
    return len(_combinations(config, applies)) if config.grid else config.trials


def _combinations(config: StudyConfig, applies: Applies) -> dict[str, dict[str, Any]]:
    """The trials of a grid; combinations that differ in what does not matter beside the rest are one."""
    from framegrove.evaluation.study_optuna import Space

    return {_key(kept): kept for kept in map(Space(config, applies).kept, config.combinations())}


def _attempt(config: dict[str, Any], objective: Objective, given: tuple[Any, ...]) -> None:
    """What a trial's process does."""
    from ray import tune

    objective(config["number"], config["params"], given, lambda told: tune.report(dict(told)))
    tune.report({_FINISHED: True})


def _picks(work: Work, notes: Notes, brake: Brake) -> Any:
    """The searcher: Optuna's picks, each noted with its number before its trial begins.

    A trial that was begun and has not ended comes first. What was tried already is not tried again.
    """
    from optuna.samplers import TPESampler
    from optuna.storages import InMemoryStorage
    from ray.tune.search import Searcher
    from ray.tune.search.optuna import OptunaSearch

    from framegrove.evaluation.study_optuna import NAME, Space, open_study

    config, storage = work.config, InMemoryStorage()
    space = Space(config, work.applies)
    tried = {_key(each.params) for each in notes.trials}
    unfinished = list(notes.unfinished)
    waiting = [each.params for each in unfinished]
    if config.grid:
        waiting += [kept for key, kept in _combinations(config, work.applies).items() if key not in tried]
    open_study(config, storage, [work.read(each) for each in notes.ended], waiting)
    # Another seed after each interruption: the same draws would be those that were tried.
    sampler = TPESampler(seed=config.seed + len(notes.trials), multivariate=False)

    class Picks(Searcher):
        def __init__(self) -> None:
            names = [goal.name for goal in config.goals]
            modes: list[str] = [goal.mode for goal in config.goals]
            super().__init__(metric=names, mode=modes)  # type: ignore[arg-type]  # lists are for several objectives
            self.optuna = OptunaSearch(
                space, metric=names, mode=modes, sampler=sampler, storage=storage, study_name=NAME
            )
            self.waiting = len(waiting)
            self.begun: dict[str, tuple[str, Begun]] = {}  # by Tune's name of a trial, with Optuna's

        def suggest(self, trial_id: str) -> Any:
            for attempt in range(0 if brake.why else _AGAIN):
                if config.grid and not self.waiting:
                    break
                name = f"{trial_id}-{attempt}"
                params = space.params(self.optuna.suggest(name) or {})
                self.waiting = max(0, self.waiting - 1)
                if unfinished:
                    number = unfinished.pop(0).number
                elif _key(params) not in tried:
                    number = notes.begin(params)
                else:
                    self.optuna.on_trial_complete(name, None)  # of no use, and told so
                    continue
                tried.add(_key(params))
                self.begun[trial_id] = name, Begun(number, params, _FINISHED)
                return {"number": number, "params": params}
            return Searcher.FINISHED

        def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
            """Several objectives count at the end alone."""

        def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
            if trial_id not in self.begun:
                return
            name, begun = self.begun.pop(trial_id)
            told = None
            if not error and (result or {}).get(_FINISHED):
                trial = work.read(begun)
                told = {goal.name: trial.mean(goal.name).mean for goal in config.goals}
            self.optuna.on_trial_complete(name, told, error)

        def save(self, checkpoint_path: str) -> None:
            """Nothing: the study's notes have it all."""

        def restore(self, checkpoint_path: str) -> None:
            """Nothing: the study's notes have it all."""

    return Picks()


def _key(params: Params) -> str:
    return json.dumps(dict(params), sort_keys=True)


def _scheduler(config: StudyConfig) -> Any:
    """What stops trials early: asynchronous successive halving on the score of samples, or nothing."""
    from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

    from jobs.studies.stages import MARKS

    if config.stop is None:
        return FIFOScheduler()
    return ASHAScheduler(
        time_attr="mark",
        metric="score",
        mode="max",
        max_t=MARKS,
        grace_period=max(1, math.ceil(config.stop.after * MARKS)),
        reduction_factor=1 / config.stop.keep,
        stop_last_trials=False,
    )


def noting(work: Work, notes: Notes, brake: Brake, display: Display) -> Any:
    """A callback of Tune that notes how trials end, and says how far they are."""
    from ray import tune

    count = total(work.config, work.applies)

    class Noting(tune.Callback):
        def __init__(self) -> None:
            self.shares: dict[int, float] = {}  # of trials that go on: how much of each is done

        def __reduce__(self) -> Any:
            return tune.Callback, ()  # Tune keeps a copy of its callbacks on disk, which nobody reads

        def on_trial_result(
            self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any
        ) -> None:
            number = trial.config["number"]
            if "share" in result:  # the report that a trial has finished has none
                self.shares[number] = result["share"]
            if "videos" in result:
                self._show(f"trial {number}: {counted(result['videos'], 'video')}")
            elif "step" in result:
                score = f", samples score {result['score']:.3f}" if "score" in result else ""
                self._show(f"trial {number}: step {result['step']}{score}")

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
            result = trial.last_result or {}
            brake.finished()
            if result.get(_FINISHED):
                self._end(trial, "finished", "")
            else:
                reached = f" with a score of {result['score']:.3f}" if "score" in result else ""
                self._end(trial, "stopped", f"fell behind after step {result.get('step', 0)}{reached}")

        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
            cause = cause_of(trial)
            if isinstance(cause, Interrupted):
                self.shares.pop(trial.config["number"], None)
                brake.interrupted(str(cause))
            else:
                why = last_line(trial, cause)
                brake.failed(why)
                self._end(trial, "failed", why)

        def _end(self, trial: Any, state: Any, why: str) -> None:
            number = trial.config["number"]
            notes.end(number, state, why)
            self.shares.pop(number, None)
            found = _found(work.read(Begun(number, trial.config["params"], state)), work.config) if not why else ""
            said = (f"trial {number} {state}", why, found, in_words(trial.config["params"]))
            display.say(": ".join(filter(None, said)))
            self._show("")

        def _show(self, note: str) -> None:
            done = len(notes.ended)
            share = (done + sum(self.shares.values())) / count
            display.show(share, "; ".join(filter(None, (f"{done} of {counted(count, 'trial')}", note))))

    return Noting()


def _found(trial: Trial, config: StudyConfig) -> str:
    """The means of a trial."""
    return ", ".join(f"{goal.name} {trial.mean(goal.name).mean:.3g}" for goal in config.goals)


def cause_of(trial: Any) -> BaseException | None:
    """What a failed trial raised. Tune has it in a file beside this process by now, and in no other place yet."""
    from ray import cloudpickle

    pickled = trial.pickled_error_file
    if not pickled or not Path(pickled).is_file():
        return None
    error: BaseException = cloudpickle.loads(Path(pickled).read_bytes())
    return getattr(error, "cause", None) or error


def last_line(trial: Any, cause: BaseException | None) -> str:
    """What a failed trial said last: of its ``cause``, or in the file where Tune writes what it printed."""
    written = trial.error_file
    if cause is not None:
        said = str(cause) if isinstance(cause, UserError) else f"{type(cause).__name__}: {cause}"
    else:
        said = Path(written).read_text(encoding="utf-8") if written and Path(written).is_file() else ""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[-1][:500] if lines else "it left no message"


def room_for(bundles: Sequence[Mapping[str, float]], cluster_machines: Sequence[Mapping[str, float]]) -> int:
    """How many times all ``bundles`` fit on the cluster together."""
    from framegrove.cluster.placement import fits

    count = 0
    while count < 1024 and fits([*bundles] * (count + 1), cluster_machines):
        count += 1
    return count
