"""The Pareto front of a study over several objectives, and how sure it is, given the prompts.

Prompts are drawn again and again with replacement, the same ones for all trials: their difficulty is common to all, and
what is left is how often a trial would still be on the front had other prompts been asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from framegrove.config.study import Objective
from framegrove.evaluation.curves import Interval
from framegrove.evaluation.study_results import Numbers, Trial
from framegrove.words import counted

DRAWS = 2000
ENOUGH = 8  # prompts, of fewer of which drawing anew says little of others
_AT_ONCE = 100  # draws that are compared together: memory grows with their number times the square of the trials'


@dataclass(frozen=True)
class FrontPlace:
    """Where a finished trial stands: the means of all objectives by name, whether no other trial is better, and the
    share of draws of the prompts in which that is so."""

    trial: Trial
    means: dict[str, Interval]
    on_front: bool
    chance: float


def is_beaten(losses: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """For points (.., N, K), of which less is better in all K: whether another one is no worse in any and better in
    one (.., N). Equal points beat neither each other."""
    mine, theirs = losses[..., :, None, :], losses[..., None, :, :]
    return np.asarray(((theirs <= mine).all(-1) & (theirs < mine).any(-1)).any(-1))


def standings(trials: Sequence[Trial], goals: Sequence[Objective], *, draws: int = DRAWS) -> list[FrontPlace]:
    """Every finished trial's standing, in order. All must have videos for the same prompts."""
    finished = [trial for trial in trials if trial.state == "finished"]
    if not finished:
        return []
    losses_NPK = np.stack([_losses(trial, goals) for trial in finished])
    beaten = is_beaten(losses_NPK.mean(1))
    rng, prompts = np.random.default_rng(0), losses_NPK.shape[1]
    survived = np.zeros(len(finished))
    for begin in range(0, draws, _AT_ONCE):
        chosen = rng.integers(prompts, size=(min(_AT_ONCE, draws - begin), prompts))
        survived += (~is_beaten(losses_NPK[:, chosen].mean(2).transpose(1, 0, 2))).sum(0)
    return [
        FrontPlace(trial, {goal.name: trial.mean(goal.name) for goal in goals}, not lost, float(share))
        for trial, lost, share in zip(finished, beaten, survived / draws, strict=True)
    ]


def doubt(prompts: int) -> str:
    """What to say of means, intervals and chances over so few prompts, as a sentence's words; nothing of `ENOUGH`.

    >>> doubt(2), doubt(8)
    ('2 prompts: intervals and sure mean little', '')
    """
    if prompts >= ENOUGH:
        return ""
    if prompts == 1:
        return "1 prompt: there are no intervals, and how sure the front is cannot be told"
    return f"{counted(prompts, 'prompt')}: intervals and sure mean little"


def ties(found: Sequence[FrontPlace], goals: Sequence[Objective]) -> list[tuple[FrontPlace, FrontPlace]]:
    """Trials on the front that `front` leaves out, each with the one there that it equals in all objectives."""
    kept = {_means(each, goals): each for each in front(found, goals)}
    pairs = [(each, kept[_means(each, goals)]) for each in found if each.on_front]
    return [(each, first) for each, first in pairs if each is not first]


def front(found: Sequence[FrontPlace], goals: Sequence[Objective]) -> list[FrontPlace]:
    """Those on the front, the best in the first objective first; of several that are equal in all, the first tried."""
    kept: dict[tuple[float, ...], FrontPlace] = {}
    for each in found:
        if each.on_front:
            kept.setdefault(_means(each, goals), each)
    first = goals[0]
    return sorted(kept.values(), key=lambda each: each.means[first.name].mean * (-1 if first.up else 1))


def _means(each: FrontPlace, goals: Sequence[Objective]) -> tuple[float, ...]:
    return tuple(each.means[goal.name].mean for goal in goals)


def _losses(trial: Trial, goals: Sequence[Objective]) -> Numbers:
    """(prompts, objectives), less being better."""
    return np.stack([trial.each(goal.name) * (-1 if goal.up else 1) for goal in goals], axis=-1)
