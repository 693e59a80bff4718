"""How many GPUs each actor of a search asks for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from framegrove.cluster.placement import Bundle, Role


@dataclass(frozen=True)
class Shares:
    """GPUs of one generator, and of a verifier that is not split; 0 where the machines of that role have none."""

    generator: float
    unsplit: float

    def verifier(self, split: int) -> float:
        """GPUs of a verifier that is split over so many; 0 for one that takes none."""
        return self.unsplit * split


def gpu_shares(
    nodes: Sequence[Bundle], generators: int, *, splits: Sequence[int] = (1,), grows: bool = False
) -> Shares:
    """GPUs for so many ``generators`` and for verifiers, each split over so many whole ones, on machines like these.

    Whole GPUs where there are enough, and on a cluster that ``grows``, which gets more when all are taken. Where there
    are fewer, generators share; verifiers, which size their memory by the GPU, share only where there is no other way.
    """
    theirs = _cards(nodes, Role.GENERATE)
    its = _cards(nodes, Role.VERIFY)
    its_alone = sum(its) - sum(map(min, theirs, its))
    unsplit = 1.0 if sum(its) else 0.0
    wanted = sum(splits) * unsplit
    left = sum(theirs) - max(0.0, wanted - its_alone)  # verifiers take GPUs of their own machines first
    if not sum(theirs):
        return Shares(0.0, unsplit)
    if grows:
        return Shares(1.0, unsplit)
    if left < 1 and all(split == 1 for split in splits):
        common = max(1.0, sum(map(min, theirs, its)))
        share = 1 / math.ceil((generators + len(splits)) / common)
        return Shares(share, share if unsplit else 0.0)
    return Shares(1 / math.ceil(generators / max(1.0, left)), unsplit)


def _cards(nodes: Sequence[Bundle], role: Role) -> list[float]:
    """The GPUs of each machine on which this role's actors may run."""
    known = any(role.value in node for node in nodes)
    return [node.get("GPU", 0.0) if role.value in node or not known else 0.0 for node in nodes]
