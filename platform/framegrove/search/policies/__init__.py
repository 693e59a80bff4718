"""The policies, a file each, and the registry in which the rest of the house finds them.

To add one, write a file beside these with an ``ENTRY`` and name it in the line below. Command line, endpoint,
evaluation and sweep read the registry. A policy of your own outside this package goes by ``module:ENTRY``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from framegrove.config.base import imported, validated
from framegrove.config.search import SearchConfig
from framegrove.errors import UserError
from framegrove.search.budget import Allotment, BudgetError, amounts
from framegrove.search.fusion import Panel, Scoring
from framegrove.search.policies import dfs, evo, linear, pyramid, single, tof, tree
from framegrove.search.policies.registry import PolicyEntry, Task
from framegrove.search.prices import Prices
from framegrove.search.tree import Policy

_ENTRIES = (
    single.ENTRY,
    linear.ENTRY,
    tof.ENTRY,
    tree.ENTRY,
    tree.BEAM,
    tree.SMC,
    tree.HALVING,
    dfs.ENTRY,
    evo.ENTRY,
    pyramid.ENTRY,
)
_POLICIES = {entry.name: entry for entry in _ENTRIES}
_OTHER_NAMES = {"none": "single"}  # accepted, never shown


def register(entry: PolicyEntry) -> None:
    """Add a policy for the life of this process. Raises ValueError for a name that is taken."""
    if entry.name in _POLICIES or entry.name in _OTHER_NAMES:
        raise ValueError(f"there is a policy called {entry.name} already")
    _POLICIES[entry.name] = entry


def find(name: str) -> PolicyEntry:
    """The policy of this name, or the entry at ``module:ENTRY``. Raises UserError where there is none."""
    if ":" in name:
        return _imported(name)
    entry = _POLICIES.get(_OTHER_NAMES.get(name, name))
    if entry is None:
        raise UserError(f"there is no policy {name[:60]!r}: choose one of {', '.join(_POLICIES)}")
    return entry


def summaries() -> Mapping[str, str]:
    """Every policy's name, and what it is in half a sentence."""
    return {entry.name: entry.summary for entry in _POLICIES.values()}


def options_of(config: SearchConfig, entry: PolicyEntry) -> Any:
    """The policy's own options in a search's configuration. Raises ConfigError for what the policy does not know."""
    return validated(entry.options, config.options.get(entry.name, {}), f"options.{entry.name}")


def check_options(config: SearchConfig, entries: Collection[PolicyEntry] = ()) -> None:
    """Raise UserError for options of a policy that there is not, or that its policy does not know, be it used or not.

    ``entries`` are policies of a user's own.
    """
    own = {entry.name: entry for entry in entries}
    for name in config.options:
        options_of(config, own.get(name) or find(name))


def check_until(entry: PolicyEntry, until: float | None) -> None:
    """Raise UserError where a search is to stop at a good enough video, and its policy never does."""
    if until is not None and not entry.stops:
        those = ", ".join(each.name for each in _POLICIES.values() if each.stops)
        raise UserError(
            f"the policy {entry.name} does not stop at a video that is right with probability {until:g}: leave until "
            f"out, or choose one of {those}"
        )


def check_comparing(config: SearchConfig, verifiers: Collection[str]) -> None:
    """Raise UserError where these verifiers judge that compare, and a search needs scores that hold by themselves."""
    entry = find(config.policy)
    if not verifiers or not entry.judged:
        return
    who = f"verifier {next(iter(verifiers))} compares the branches of a cohort with each other"
    if config.until is not None:
        raise UserError(
            f"{who} and cannot say that a video is right with probability {config.until:g}: leave until out"
        )
    if config.seconds is not None:
        raise UserError(f"{who} and cannot say which of all branches to finish when time is up: set no limit of time")
    if not entry.compares(options_of(config, entry)):
        those = ", ".join(each.name for each in _POLICIES.values() if each.compares(each.options()))
        raise UserError(
            f"{who}, and the policy {entry.name}, with these options, accepts a branch by its own score: choose one of "
            f"{those}, or a verifier that scores"
        )


def make_policy(
    config: SearchConfig,
    units: int,
    stages: int,
    prices: Prices,
    *,
    given: int = 0,
    panel: Panel | None = None,
    seed: int = 0,
) -> tuple[Policy, Allotment]:
    """The configured policy, as wide as its budget allows, and what the budget was turned into.

    ``units`` and ``stages`` are those of the video and of the pyramid, ``given`` counts units that are there already
    (1 for image-to-video); ``panel`` says what the verifiers' scores mean, None: the product of all. Raises UserError
    for an unknown policy or option, BudgetError for a budget that cannot pay for what is asked.
    """
    if not 0 <= given < units:
        raise BudgetError(f"{given} units are given and the video has {units}: nothing is left to search for")
    entry = find(config.policy)
    scoring = Scoring(fusion=config.fusion, path=config.path_score)
    if panel is not None:
        scoring = replace(scoring, weigh=panel.weigh, log_p=panel.log_p)
    task = Task(units, stages, prices, config.multiple, given, scoring, config.until, seed)
    if config.nfe is not None:
        task = _capped(task, config.nfe)
    return entry.plan(task, options_of(config, entry))


def _capped(task: Task, most_nfe: int) -> Task:
    """The task with a cap on its transformer evaluations. Raises BudgetError where it forbids even a single video."""
    _, allowed = amounts(task.multiple, task.layout, task.prices)
    needed = sum(task.prices.nfe(depth, 0, task.stages - 1, 1) for depth in range(task.given, task.units))
    if needed > most_nfe:
        raise BudgetError(f"nfe is {most_nfe}, and a single video needs {needed} transformer evaluations: raise it")
    prices = task.prices.capped(allowed, most_nfe)
    multiple = (allowed + prices.finishing) / prices.one_sample(task.layout)
    return replace(task, prices=prices, multiple=max(1.0, multiple))


def _imported(name: str) -> PolicyEntry:
    entry = imported(name, f"policy {name}", "entry")
    if not isinstance(entry, PolicyEntry):
        raise UserError(f"{name} is a {type(entry).__name__}, not a PolicyEntry as in search/policies/tof.py")
    return entry


__all__ = [
    "Allotment",
    "BudgetError",
    "PolicyEntry",
    "Task",
    "check_comparing",
    "check_until",
    "find",
    "make_policy",
    "options_of",
    "register",
    "summaries",
]
