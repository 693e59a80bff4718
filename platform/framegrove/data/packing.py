"""Patch n' Pack: sharing samples of any length out to forward passes of a token budget, without padding."""

from __future__ import annotations

from collections.abc import Sequence

from framegrove.errors import UserError


def pack(lengths: Sequence[int], budget: int | None, at_least: int = 1) -> list[list[int]]:
    """Indices of samples, as few packs of at most ``budget`` tokens as can be found, and about equally long.

    ``at_least`` so many packs are made, for workers that must all make the same number of passes. Raises UserError
    for a sample that is longer than the budget, and when there are fewer samples than packs.
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
    """Longest first, each onto the lightest pack; in a pack, samples stay in the order given."""
    packs: list[list[int]] = [[] for _ in range(count)]
    loads = [0] * count
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        lightest = min(range(count), key=loads.__getitem__)
        packs[lightest].append(index)
        loads[lightest] += lengths[index]
    return [sorted(members) for members in packs], loads
