"""Patch n' Pack over many workers: samples of any length shared out to forward passes of a token budget, unpadded.

Everything here is a function of the lengths alone, so that all workers compute the same and need not ask each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heapify, heapreplace

from framegrove.errors import UserError

_LEVEL = 0.997  # mean over largest load of a pass: nobody looks for a better balance than this


def share_out(lengths: Sequence[int], budget: int | None, workers: int = 1) -> list[list[list[int]]]:
    """For each worker the forward passes that it makes, each a list of sample indices: as few as possible.

    ``lengths`` are the samples' tokens; no pass has more than ``budget`` (None: no limit, a pass a worker). All workers
    make the same number of passes, for ZeRO communicates in every pass, and about as many tokens. Raises UserError for
    a sample longer than the budget, and where there are fewer samples than passes.

    >>> share_out([60, 40, 50, 30, 20, 10], budget=110, workers=2)
    [[[0, 3, 5]], [[1, 2, 4]]]
    """
    limit = sum(lengths) if budget is None else budget
    if (longest := max(lengths, default=0)) > limit:
        raise UserError(f"a sample of {longest} tokens does not fit a pass of {limit}: raise pack_tokens of the phase")
    passes = workers * max(1, -(-sum(lengths) // max(workers * limit, 1)))
    while passes <= len(lengths):
        packs, loads = _balance(lengths, passes, min(limit, int(sum(lengths) / passes / _LEVEL)))
        if max(loads) <= limit:
            return _dealt(packs, loads, workers)
        passes += workers
    raise UserError(f"{len(lengths)} samples cannot fill {passes} forward passes: raise batch of the phase")


def fitting(lengths: Sequence[int], budget: int, passes: int) -> int:
    """How many samples, from the first on, fit together into ``passes`` of a token budget.

    It may be a few less than could be squeezed in: passes are filled greedily.
    """
    total, count = 0, 0
    for length in lengths:
        if total + length > budget * passes:
            break
        total, count = total + length, count + 1
    while count and max(_balance(lengths[:count], passes, budget)[1]) > budget:
        count -= max(1, count // 400)
    return count


def _balance(lengths: Sequence[int], count: int, enough: int) -> tuple[list[list[int]], list[int]]:
    """Samples go longest first, each to the pack with the fewest tokens; inside a pack they keep the order given.

    Then the heaviest pack is relieved until no pack has more than ``enough``, or as far as that goes.
    """
    packs: list[list[int]] = [[] for _ in range(count)]
    queue = [(0, pack) for pack in range(count)]
    heapify(queue)
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        load, lightest = queue[0]
        packs[lightest].append(index)
        heapreplace(queue, (load + lengths[index], lightest))
    loads = [sum(lengths[i] for i in members) for members in packs]
    while max(loads) > enough and _relieve(packs, loads, lengths):
        pass
    return [sorted(members) for members in packs], loads


def _relieve(packs: list[list[int]], loads: list[int], lengths: Sequence[int]) -> bool:
    """Swap a sample of the heaviest pack for a shorter one of another, so that both end below it; False if none does.

    Of all such swaps the one after which the heavier of the two is lightest.
    """
    heavy = max(range(len(packs)), key=loads.__getitem__)
    best, swap = loads[heavy], None
    for pack, load in enumerate(loads):
        gap = loads[heavy] - load
        if gap < 2 or loads[heavy] - gap // 2 >= best:  # even halving the gap would be no better
            continue
        for mine in packs[heavy]:
            for theirs in packs[pack]:
                moved = lengths[mine] - lengths[theirs]
                if 0 < moved < gap and (after := max(loads[heavy] - moved, load + moved)) < best:
                    best, swap = after, (pack, mine, theirs)
    if swap is None:
        return False
    pack, mine, theirs = swap
    moved = lengths[mine] - lengths[theirs]
    packs[heavy][packs[heavy].index(mine)], packs[pack][packs[pack].index(theirs)] = theirs, mine
    loads[heavy], loads[pack] = loads[heavy] - moved, loads[pack] + moved
    return True


def _dealt(packs: Sequence[list[int]], loads: Sequence[int], workers: int) -> list[list[list[int]]]:
    """The packs dealt to the workers, heaviest first and in turns that change direction, so that sums are alike."""
    hands: list[list[list[int]]] = [[] for _ in range(workers)]
    for place, pack in enumerate(sorted(range(len(packs)), key=lambda i: -loads[i])):
        turn, seat = divmod(place, workers)
        hands[seat if turn % 2 == 0 else workers - 1 - seat].append(packs[pack])
    return hands
