"""A study in Optuna's terms: what a trial's parameters are drawn from, what was tried so far, what matters."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from framegrove.config.study import Parameter, Params, StudyConfig, label_of
from framegrove.evaluation.study_results import Numbers, Trial

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution

Applies = Callable[[str, Params], bool]
"""Whether a parameter matters in a trial, given the values of those before it."""

NAME = "framegrove"
LEAST = 10  # finished trials from which importance says anything
DRAWS = 200  # random choices of trials that importance is held against, at least
_EACH = 25  # and for each parameter: with fewer, the rarest that any of many parameters comes to is nothing rare
_LEVEL = 0.05
_BEST = 0.1  # share of the trials that are the best ones: Optuna's own
_FEWEST = 5  # of them, below which its author advises not to go


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


@dataclass(frozen=True)
class Importance:
    """What parameters have to do with an objective: their ``shares`` by name, which add up to 1, and which of them are
    ``beyond`` what chance gives."""

    shares: Mapping[str, float]
    beyond: frozenset[str]


def importances(config: StudyConfig, trials: Sequence[Trial]) -> tuple[dict[str, Importance], dict[str, str]]:
    """For each objective, how much each parameter has to do with a trial's being among the best; or why that is not
    told, in words that follow the objective's name.

    By Optuna's PED-ANOVA, which also takes parameters that matter in some trials only: how much the values in the best
    tenth of the trials, and in five at least, differ from those in all. That is association, and no cause: parameters
    that were picked together share it. Parameters that had one value only are left out.

    A share alone says nothing, as shares always add up to 1. So parameters are held against random choices of as many
    trials in place of the best: beyond chance is what one in twenty of these at most comes to in any parameter, each
    by its own measure. Where Optuna picks trials in view of earlier ones, this is an approximation.
    """
    from optuna.storages import InMemoryStorage

    finished = [trial for trial in trials if trial.state == "finished"]
    names = [name for name in config.names if len({label_of(t.params[name]) for t in finished if name in t.params}) > 1]
    if len(finished) < LEAST:
        return {}, dict.fromkeys(config.objectives, f"has too few trials, fewer than {LEAST} finished")
    if not names:
        return {}, dict.fromkeys(config.objectives, "has no parameter with two values")
    ranking = _Ranking(open_study(config, InMemoryStorage(), finished, ()), names, len(finished))
    found, untold = {}, {}
    for goal in config.goals:
        each = ranking.of(np.array([trial.mean(goal.name).mean * (-1 if goal.up else 1) for trial in finished]))
        if each is None:
            untold[goal.name] = "is the same in all trials"
        elif not each.beyond:
            untold[goal.name] = "has no more to do with any parameter than by chance"
        else:
            found[goal.name] = each
    return found, untold


class _Ranking:
    """What parameters have to do with which trials of a study, all of them finished, are the best."""

    def __init__(self, study: Study, names: Sequence[str], count: int) -> None:
        self._study, self._names, self._count = study, list(names), count
        self._share = max(_BEST, _FEWEST / count)
        self._by_chance: dict[int, Numbers] = {}

    def of(self, losses_N: Numbers) -> Importance | None:
        """Of these losses, in the order of the trials; None where all are the same."""
        if losses_N.min() == losses_N.max():
            return None
        worst = np.sort(losses_N)[math.ceil(self._share * self._count) - 1]  # as Optuna has it: ties are all taken
        best_N = losses_N <= worst
        measured_P = self._measured(best_N)
        chance_DP = self._chance(int(best_N.sum()))
        p_P = _beyond_chance(measured_P, chance_DP)
        total = measured_P.sum()
        shares = measured_P / total if total > 0 else measured_P
        return Importance(
            dict(zip(self._names, map(float, shares), strict=True)),
            frozenset(name for name, p in zip(self._names, p_P, strict=True) if p <= _LEVEL),
        )

    def _chance(self, best: int) -> Numbers:
        """The same of so many trials drawn at random, draw by draw; one table does for all objectives."""
        if best not in self._by_chance:
            rng = np.random.default_rng(0)
            draws = max(DRAWS, _EACH * len(self._names))
            drawn = [self._measured(rng.permutation(self._count) < best) for _ in range(draws)]
            self._by_chance[best] = np.stack(drawn)
        return self._by_chance[best]

    def _measured(self, best_N: npt.NDArray[np.bool_]) -> Numbers:
        from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it reminds everybody that less of a target is better to it
            found = get_param_importances(
                self._study,
                evaluator=PedAnovaImportanceEvaluator(target_quantile=self._share),
                params=self._names,
                target=lambda trial: 0.0 if best_N[trial.number] else 1.0,
                normalize=False,
            )
        return np.array([found[name] for name in self._names])


def _beyond_chance(measured_P: Numbers, chance_DP: Numbers) -> Numbers:
    """For each parameter, how often chance comes to something as rare in any parameter (Westfall and Young, 1993)."""
    least_DP = chance_DP * (1 - 1e-9)  # sums in another order differ by rounding
    rare_P = (chance_DP >= measured_P * (1 - 1e-9)).sum(0)
    rare_D = (chance_DP[:, None] >= least_DP[None]).sum(0).min(1)
    return np.asarray(((rare_D[:, None] <= rare_P).sum(0) + 1) / (len(chance_DP) + 1))


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
