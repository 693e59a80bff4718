"""Totals of fused ranks as whole numbers in NumPy arrays, exact in every comparison: what search/bounds.py adds up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from framegrove.errors import UserError


class Scale:
    """Totals as whole numbers that compare as the exact ones do.

    In points, what a path has collected is seldom whole, and over rounds its denominators outgrow 64 bits. But only
    whole points are ever added to it, so its fractional part matters in comparisons alone, and there any numbers in
    the same order do. The fractions that occur, 0 among them, are numbered, and a point is worth as many units as there
    are fractions. Example: 6 2/3 and 5 1/3 points collected, fractions 0, 1/3, 2/3 numbered 0, 1, 2, a point being
    3 units: 6 * 3 + 2 = 20 and 5 * 3 + 1 = 16. One more point for the second makes 19: still behind, as 6 1/3 is.

    Attributes: ``collected`` in units; ``average``, the smallest total in units that is not below the average total;
    ``dtype``, of NumPy arrays of totals: Python integers where fine weights ask for more than 64 bits.
    ``exact`` holds what is collected in points times ``denominator``, ``exact_sum`` its sum.
    """

    def __init__(self, before: Sequence[Fraction], weight: int) -> None:
        count = len(before)
        one = 2 * count * weight
        self.weight = weight
        self.denominator = math.lcm(*(value.denominator for value in before))
        exact = [value.numerator * (self.denominator // value.denominator) * one for value in before]
        self.exact_sum = sum(exact)
        fractions = sorted({0, *(value % self.denominator for value in exact)})
        place = {fraction: index for index, fraction in enumerate(fractions)}
        self.point = len(fractions)
        wholes = [divmod(value, self.denominator) for value in exact]
        self.collected = [whole * self.point + place[fraction] for whole, fraction in wholes]
        average = Fraction(self.exact_sum, max(count, 1)) + count * weight * self.denominator
        whole, rest = divmod(average, self.denominator)
        self.average = whole * self.point + sum(fraction < rest for fraction in fractions)
        # The largest number that occurs is a margin: collected, own points, and the worst case for two.
        self.dtype = _smallest_dtype(max(self.collected, default=0) + 4 * one * self.point)
        largest = max(exact, default=0) + one * self.denominator
        self.exact: npt.NDArray[Any] = np.array(exact, _smallest_dtype(2 * count * count * largest))


def _smallest_dtype(largest: int) -> type:
    """An integer type for numbers up to this, with a factor of 2 to spare."""
    if largest < 2**30:
        return np.int32
    return np.int64 if largest < 2**62 else object


def whole_weights(names: Sequence[str], weights: Sequence[float]) -> list[int]:
    """The weights as whole numbers in the same proportion; decimals are taken as written.

    Raises UserError when one is negative or all are 0.
    """
    if not names:
        raise ValueError("a branch was scored by no verifier")
    exact = [Fraction(str(weight)) for weight in weights]
    if min(exact) < 0 or sum(exact) == 0:
        raise UserError(
            f"the weights of {', '.join(names)} are {', '.join(map(str, weights))}: they must not be negative nor all 0"
        )
    scale = math.lcm(*(value.denominator for value in exact))
    return [int(value * scale) for value in exact]
