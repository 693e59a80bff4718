"""A study in Optuna's terms: what a trial's parameters are drawn from, what was tried so far, what matters."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from framegrove.config.study import Objective, Parameter, Params, StudyConfig, label_of
from framegrove.evaluation.study_results import Trial

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution

Applies = Callable[[str, Params], bool]
"""Whether a parameter matters in a trial, given the values of those before it."""

NAME = "framegrove"
LEAST = 4  # finished trials from which importance says anything


class Space:
    """Draws a trial's parameters, those that matter in it: what Optuna calls a define-by-run space."""

    def __init__(self, config: StudyConfig, applies: Applies) -> None:
        self._config, self._applies = config, applies

    def __call__(self, trial: Any) -> None:
        given: dict[str, Any] = {}
        for name in self._config.names:
            if self._applies(name, given):
                given[name] = self.decoded(name, _suggested(trial, name, self._config.space[name]))

    def decoded(self, name: str, drawn: Any) -> Any:
        """The value that Optuna's stands for: lists are text there."""
        return decoded(self._config.space[name], drawn)

    def params(self, drawn: Mapping[str, Any]) -> dict[str, Any]:
        """A trial's values from what Optuna has drawn."""
        return {name: self.decoded(name, value) for name, value in drawn.items()}

    def kept(self, params: Params) -> dict[str, Any]:
        """Those of some values that matter."""
        given: dict[str, Any] = {}
        for name in self._config.names:
            if name in params and self._applies(name, given):
                given[name] = params[name]
        return given


def open_study(config: StudyConfig, storage: Any, told: Iterable[Trial], waiting: Iterable[Params]) -> Study:
    """An Optuna study in ``storage`` that knows what was tried, and tries what is waiting first."""
    import optuna

    quiet()
    study = optuna.create_study(
        storage=storage,
        study_name=NAME,
        directions=["maximize" if goal.up else "minimize" for goal in config.goals],
    )
    for trial in told:
        study.add_trial(frozen(config, trial))
    for params in waiting:
        study.enqueue_trial(encoded(config, params))
    return study


def quiet() -> None:
    """Optuna tells of every trial otherwise, and of what it calls experimental."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    logging.getLogger("ray.tune.search.optuna").setLevel(logging.ERROR)


def frozen(config: StudyConfig, trial: Trial) -> Any:
    """A trial that has ended, as Optuna keeps it."""
    import optuna
    from optuna.trial import TrialState

    state = {"finished": TrialState.COMPLETE, "stopped": TrialState.PRUNED, "failed": TrialState.FAIL}[trial.state]
    values = [trial.mean(goal.name).mean for goal in config.goals] if trial.state == "finished" else None
    return optuna.trial.create_trial(
        state=state,
        values=values,
        params=encoded(config, trial.params),
        distributions={name: distribution_of(config.space[name]) for name in trial.params},
    )


def importances(config: StudyConfig, trials: Sequence[Trial]) -> dict[str, dict[str, float]]:
    """For each objective, how much of how good a trial is each parameter decides; the shares add up to 1.

    By Optuna's PED-ANOVA, which also takes parameters that matter in some trials only. None with fewer than `LEAST`
    finished trials, and of parameters that had one value only.
    """
    from optuna.importance import get_param_importances
    from optuna.storages import InMemoryStorage

    finished = [trial for trial in trials if trial.state == "finished"]
    names = [name for name in config.names if len({label_of(t.params[name]) for t in finished if name in t.params}) > 1]
    if len(finished) < LEAST or not names:
        return {}
    study = open_study(config, InMemoryStorage(), finished, ())
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it reminds everybody that less of a target is better to it
        for at, goal in enumerate(config.goals):
            shares = get_param_importances(study, params=names, target=_target(at, goal), normalize=True)
            found[goal.name] = {name: shares.get(name, 0.0) for name in names}
    return found


def _target(at: int, goal: Objective) -> Callable[[Any], float]:
    # Optuna's evaluator takes the least of a target to be the best.
    return lambda trial: -trial.values[at] if goal.up else trial.values[at]


def encoded(config: StudyConfig, params: Params) -> dict[str, Any]:
    """Values as Optuna has them."""
    return {name: _plain(value) if config.space[name].choice is not None else value for name, value in params.items()}


def decoded(parameter: Parameter, drawn: Any) -> Any:
    """A value from what Optuna has."""
    if parameter.choice is None:
        return drawn
    return next(value for value in parameter.choice if _same(_plain(value), drawn))


def distribution_of(parameter: Parameter) -> BaseDistribution:
    """What Optuna calls the values of a parameter."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if parameter.choice is not None:
        return CategoricalDistribution([_plain(value) for value in parameter.choice])
    assert parameter.low is not None
    assert parameter.high is not None
    if parameter.is_whole:
        step = int(parameter.step or 1)
        return IntDistribution(int(parameter.low), int(parameter.high), log=parameter.log, step=step)
    return FloatDistribution(parameter.low, parameter.high, log=parameter.log, step=parameter.step)


def _suggested(trial: Any, name: str, parameter: Parameter) -> Any:
    if parameter.choice is not None:
        return trial.suggest_categorical(name, [_plain(value) for value in parameter.choice])
    low, high = parameter.low, parameter.high
    if parameter.is_whole:
        return trial.suggest_int(name, low, high, step=int(parameter.step or 1), log=parameter.log)
    return trial.suggest_float(name, low, high, step=parameter.step, log=parameter.log)


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, bool | int | float | str) else label_of(value)


def _same(one: Any, other: Any) -> bool:
    return one == other and isinstance(one, bool) == isinstance(other, bool)
