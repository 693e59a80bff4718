"""Examination of a verifier on groups of siblings that the oracle has read: does it tell right from wrong at any depth?

What counts for a search: the order among siblings (AUC within groups of one right parent), the order among roots of all
prompts, whether its probabilities are true (expected calibration error), and how often it is sure of what is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from framegrove.digits.oracle import DigitsOracle
from framegrove.digits.siblings import Group, Objects, Read
from framegrove.digits.teacher import Pixels, Teacher, UnitReading
from framegrove.digits.verifier_judge import Judge, assessment_of
from framegrove.verification.calibration import auc, auc_within, calibration_error, confident_mistakes

AIM_WITHIN, AIM_ROOTS, AIM_ERROR = 0.85, 0.93, 0.05


@dataclass(frozen=True)
class DepthFigures:
    """At one depth, over children of right parents; NaN where there are none of a kind to compare.

    ``uncalibrated`` is the calibration error of the product of the scores, ``calibrated`` that of what a search gets.
    """

    depth: int
    children: int
    right: float  # share
    within: float  # AUC among siblings
    overall: float  # AUC among all children of that depth
    uncalibrated: float
    calibrated: float
    mistakes: float  # share of children that are wrong at P > 0.9


@dataclass(frozen=True)
class Examination:
    """What a verifier is worth among siblings; ``roots`` is the AUC among first units of all prompts."""

    roots: float
    depths: tuple[DepthFigures, ...]

    @property
    def within(self) -> float:
        """The mean AUC among siblings of the depths at which there are both right and wrong ones."""
        known = [each.within for each in self.depths if not math.isnan(each.within)]
        return sum(known) / len(known) if known else math.nan

    def figures(self) -> dict[str, Any]:
        """For a JSON file; what is not known is null."""
        depths = [{name: _known(value) for name, value in asdict(each).items()} for each in self.depths]
        return {"auc_roots": _known(self.roots), "auc_within_siblings": _known(self.within), "depths": depths}

    def markdown(self) -> str:
        """For a README."""
        lines = [
            f"AUC among roots {self.roots:.3f} (aim {AIM_ROOTS}); among siblings {self.within:.3f} on average over "
            f"depths (aim {AIM_WITHIN} at each). Calibration error: aim {AIM_ERROR}.",
            "",
            "| depth | children | right | AUC among siblings | AUC among all | error of P, uncalibrated | error of P "
            "| wrong at P > 0.9 |",
            "| --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
        lines += [
            f"| {each.depth} | {each.children} | {each.right:.0%} | {each.within:.3f} | {each.overall:.3f} "
            f"| {each.uncalibrated:.3f} | {each.calibrated:.3f} | {each.mistakes:.1%} |"
            for each in self.depths
        ]
        return "\n".join(lines).replace("nan", "–")


def oracle_reader(oracle: DigitsOracle) -> Read:
    """Reads units as the oracle does; only whether a unit is right is told."""

    def read(frames: Pixels, asked: Objects) -> UnitReading:
        return UnitReading((), oracle.judge(frames, asked).fully_right)

    return read


def examine(judge: Judge, groups: Sequence[Group], on_groups: Callable[[int], None] = lambda _: None) -> Examination:
    """Examine a verifier on groups whose readings are the oracle's. Groups of wrong parents are left out."""
    known = [group for group in groups if group.parent_right]
    scores = judge.scores(known, on_groups=on_groups)
    depths = []
    for depth in sorted({group.depth for group in known}):
        said: list[float] = []
        plain: list[float] = []
        right: list[bool] = []
        of_group: list[int] = []
        for at, (group, of_children) in enumerate(zip(known, scores, strict=True)):
            if group.depth != depth:
                continue
            assessment = assessment_of(group)
            for reading, each in zip(group.readings, of_children, strict=True):
                said.append(judge.probability(assessment, each))
                plain.append(math.prod(each.values()))
                right.append(bool(reading.right))
                of_group.append(at)
        depths.append(
            DepthFigures(
                depth,
                len(right),
                sum(right) / len(right),
                auc_within(said, right, of_group),
                auc(said, right),
                calibration_error(plain, right),
                calibration_error(said, right),
                confident_mistakes(said, right),
            )
        )
    roots = depths[0].overall if depths and depths[0].depth == 0 else math.nan
    return Examination(roots, tuple(depths))


def agreement(teacher: Teacher, groups: Sequence[Group]) -> dict[str, float]:
    """How far the teacher's labels are the oracle's, on groups whose readings are the oracle's.

    ``told``: share of children that the teacher can tell; of those, ``agrees``; ``right_of_right`` and
    ``wrong_of_wrong``: shares of what the oracle calls so that the teacher does too.
    """
    told = agrees = 0
    by_verdict = {True: [0, 0], False: [0, 0]}
    children = 0
    for group in groups:
        for at, reading in enumerate(group.readings):
            children += 1
            before = [group.before[-1:]] if len(group.before) else []
            said = teacher.read(np.concatenate([*before, group.children[at]]), group.objects).right
            if said is None:
                continue
            told += 1
            agrees += said == reading.right
            by_verdict[bool(reading.right)][0] += said == reading.right
            by_verdict[bool(reading.right)][1] += 1
    return {
        "told": told / max(1, children),
        "agrees": agrees / max(1, told),
        "right_of_right": by_verdict[True][0] / max(1, by_verdict[True][1]),
        "wrong_of_wrong": by_verdict[False][0] / max(1, by_verdict[False][1]),
    }


def _known(value: float) -> float | int | None:
    if isinstance(value, int):
        return value
    return None if math.isnan(value) else round(value, 4)
