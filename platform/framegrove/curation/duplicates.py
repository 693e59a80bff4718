"""Near-duplicates: clips whose perceptual hashes differ in a few bits, found in a set of any size."""

from __future__ import annotations

import itertools
from dataclasses import replace

import imagehash
import numpy as np
from PIL import Image

from framegrove.curation.clip import Clip, Rejection

HASH_BITS = 192  # three frames of 64 bits
_PLACES = (0.2, 0.5, 0.8)  # of a clip: where the hashed frames are


def hashed(clip: Clip) -> Clip:
    """The clip with its hash; a stage that rejects nothing."""
    last = len(clip.frames) - 1
    pictures = [Image.fromarray(clip.frames[round(place * last)]) for place in _PLACES]
    bits = np.concatenate([imagehash.phash(picture).hash.ravel() for picture in pictures])
    return replace(clip, hash=np.packbits(bits).tobytes())


class DuplicateIndex:
    """Hashes of clips by identity, searched by Hamming distance.

    Of two hashes that differ in at most n bits, one of n + 1 bands must be equal (pigeonhole): only hashes that share
    a band are compared.

    >>> index = DuplicateIndex(18)
    >>> index.nearest(clip.hash) or index.add(clip.id, clip.hash)
    """

    def __init__(self, bits: int) -> None:
        """``bits`` may differ between duplicates."""
        self._bits = bits
        edges = np.linspace(0, HASH_BITS, bits + 2).round().astype(int).tolist()
        self._bands = [(low, (1 << (high - low)) - 1) for low, high in itertools.pairwise(edges)]
        self._tables: list[dict[int, list[int]]] = [{} for _ in self._bands]
        self._values: dict[int, int] = {}

    def add(self, identity: int, hash_: bytes) -> None:
        """Remember a clip."""
        value = int.from_bytes(hash_, "big")
        self._values[identity] = value
        for (shift, mask), table in zip(self._bands, self._tables, strict=True):
            table.setdefault(value >> shift & mask, []).append(identity)

    def nearest(self, hash_: bytes) -> tuple[int, int] | None:
        """The remembered clip that is closest, and the bits that differ; None if all differ in more than allowed."""
        value = int.from_bytes(hash_, "big")
        found = {
            identity
            for (shift, mask), table in zip(self._bands, self._tables, strict=True)
            for identity in table.get(value >> shift & mask, ())
        }
        distances = ((value ^ self._values[identity]).bit_count() for identity in found)
        best = min(((distance, identity) for distance, identity in zip(distances, found, strict=True)), default=None)
        return (best[1], best[0]) if best is not None and best[0] <= self._bits else None

    def __contains__(self, identity: int) -> bool:
        return identity in self._values


class DuplicateStage:
    """Rejects clips that look like one it has passed, or like one that was kept in an earlier run.

    The only stage that remembers: it has to see every clip of the set, in an order that does not change.
    """

    def __init__(self, bits: int, kept: dict[int, bytes]) -> None:
        """``kept`` are hashes of earlier runs by the clips' identities: those clips stay, whatever comes first now."""
        self._index = DuplicateIndex(bits)
        for identity, hash_ in kept.items():
            self._index.add(identity, hash_)

    def __call__(self, clip: Clip) -> Clip | Rejection:
        if clip.id in self._index:
            return clip
        nearest = self._index.nearest(clip.hash)
        if nearest is not None:
            return clip.rejected("duplicates", f"near-duplicate (of clip {nearest[0]}, {nearest[1]} bits differ)")
        self._index.add(clip.id, clip.hash)
        return clip
