"""Patch n' Pack: distributing samples of any length over forward passes of a token budget, without padding."""

from __future__ import annotations

from collections.abc import Sequence

from framegrove.errors import UserError


def pack(lengths: Sequence[int], budget: int | None, at_least: int = 1) -> list[list[int]]:
    """Lists of sample indices, one list a forward pass: as few as possible, and about equally long.

    ``lengths`` are the samples' tokens; no pass has more than ``budget`` (None: no limit). There are ``at_least`` so
    many passes, for workers that must all make the same number. Raises UserError for a sample longer than the budget,
    and where there are fewer samples than passes.

    >>> pack([60, 40, 50, 30], budget=100)
    [[0, 3], [1, 2]]
    """
    limit = budget if budget is not None else sum(lengths)
    longest = max(lengths, default=0)
    if longest > limit:
        raise UserError(f"a sample of {longest} tokens does not fit a pass of {limit}: raise pack_tokens of the phase")
    count = max(at_least, -(-sum(lengths) // max(limit, 1)))
    while count <= len(lengths):
        packs, loads = _balance(lengths, count)
        if max(loads) <= limit:
            return packs
        count += 1
    raise UserError(f"{len(lengths)} samples cannot fill {count} forward passes: raise batch of the phase")


def _balance(lengths: Sequence[int], count: int) -> tuple[list[list[int]], list[int]]:
    """Samples go longest first, each to the pack with the fewest tokens; inside a pack they keep the order given."""
    packs: list[list[int]] = [[] for _ in range(count)]
    loads = [0] * count
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        lightest = min(range(count), key=loads.__getitem__)
        packs[lightest].append(index)
        loads[lightest] += lengths[index]
    return [sorted(members) for members in packs], loads
