"""How many GPUs each actor of a search asks for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from framegrove.cluster.placement import Bundle, Role


@dataclass(frozen=True)
class Shares:
    """GPUs of one generator, and of the verifier; 0 where the machines of that role have none."""

    generator: float
    verifier: float


def gpu_shares(nodes: Sequence[Bundle], generators: int, *, split: int = 1, grows: bool = False) -> Shares:
    """GPUs for so many ``generators`` and a verifier ``split`` over whole ones, on machines with these resources.

    Whole cards where there are enough, and on a cluster that ``grows``, which gets more when all are taken. Where there
    are fewer, generators share; the verifier, which sizes its memory by the card, shares only one that is the only one.
    """
    theirs, its = _cards(nodes, Role.GENERATE), _cards(nodes, Role.VERIFY)
    its_alone = sum(its) - sum(map(min, theirs, its))
    verifier = float(split) if sum(its) else 0.0
    left = sum(theirs) - max(0, verifier - its_alone)  # the verifier takes cards of its own machines first
    if not sum(theirs):
        return Shares(0.0, verifier)
    if grows:
        return Shares(1.0, verifier)
    if split == 1 and left < 1:
        return Shares(1 / (generators + 1), 1 / (generators + 1))
    return Shares(1 / math.ceil(generators / max(1, left)), verifier)


def _cards(nodes: Sequence[Bundle], role: Role) -> list[float]:
    """The GPUs of each machine on which this role's actors may run."""
    known = any(role.value in node for node in nodes)
    return [node.get("GPU", 0.0) if role.value in node or not known else 0.0 for node in nodes]
