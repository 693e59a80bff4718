"""When a pool of actors gets one more, and when one is let go: the rule, without a clock or an actor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from framegrove.config.pool import PoolSize


@dataclass(frozen=True)
class Patience:
    """Seconds: how long works wait before more actors are started, how long an actor is idle before it is let go.

    An actor takes seconds to minutes to load its model: it is not started for a queue that is gone by then, and not let
    go between two videos. ``look`` is the time between two looks at a pool, ``again`` that after one without room.
    """

    grow: float = 5.0
    rest: float = 60.0
    look: float = 1.0
    again: float = 30.0


@dataclass(frozen=True)
class Load:
    """What a pool is like at one moment.

    ``up`` actors are there, ``coming`` are being started; ``waiting`` works could start if there were more actors, and
    some have for ``waited`` seconds without a break. Each of ``idle`` says for how long an actor has had no work.
    """

    up: int
    coming: int = 0
    waiting: int = 0
    waited: float = 0.0
    idle: Sequence[float] = ()


USUAL = Patience()


def change(size: PoolSize, load: Load, *, at_a_time: int = 1, patience: Patience = USUAL) -> int:
    """How many actors more a pool should have, less than 0 for fewer, each of which takes ``at_a_time`` works.

    Laws (tests/unit/test_resizing.py): what is there and coming stays within ``size``; nobody is let go while a work
    waits or an actor comes, nor anybody who has not been idle for long enough; no more are started than works wait.

    >>> change(PoolSize(1, 4), Load(up=1, waiting=2, waited=6))
    2
    >>> change(PoolSize(1, 4), Load(up=3, idle=(70, 61, 10)))
    -2
    """
    there = load.up + load.coming
    if load.waiting:
        wanted = math.ceil(load.waiting / at_a_time) - load.coming if load.waited >= patience.grow else 0
        return max(0, min(wanted, size.most - there))
    if load.coming:
        return 0
    return -max(0, min(sum(seconds >= patience.rest for seconds in load.idle), there - size.least))
