"""What a panel said of the branches of searches beside what the oracle reads, and calibrations fitted to that."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path as File
from typing import TYPE_CHECKING, Any

from framegrove.errors import UserError
from framegrove.types import Assessment, Path

if TYPE_CHECKING:
    from framegrove.config.verifier import Calibration, PanelConfig, VerifierConfig
    from framegrove.digits.readings import BranchReading
    from framegrove.digits.world import DigitObject
    from framegrove.evaluation.report import SearchRecord
    from jobs.evaluations.measuring import Item

SEED = 170_000  # of the prompts: other ones than any evaluation or suite has
FILE = "verifiers.yaml"
_FEW = 40  # branches, right and wrong ones, below which a calibration is a guess


@dataclass
class Said:
    """What one verifier said of branches at one assessment, and whether they are right; ``prompts`` says of which."""

    scores: list[dict[str, float]] = field(default_factory=list)
    right: list[bool] = field(default_factory=list)
    prompts: list[int] = field(default_factory=list)

    def half(self, which: int) -> tuple[list[dict[str, float]], list[bool]]:
        """The branches of every other prompt."""
        mine = [place for place, prompt in enumerate(self.prompts) if prompt % 2 == which]
        return [self.scores[place] for place in mine], [self.right[place] for place in mine]


@dataclass(frozen=True)
class Fitted:
    """A calibration, and its expected error beside that of the verifier as it was.

    Both are measured on the half of the prompts that the first of two fits has not seen; what is kept is fitted to all.
    """

    verifier: str
    assessment: Assessment
    branches: int
    share_right: float
    before: float
    after: float
    calibration: Calibration

    @property
    def few(self) -> bool:
        """Whether there are too few branches, right or wrong ones, to rely on it."""
        rarer = min(self.share_right, 1 - self.share_right)
        return self.branches * rarer < _FEW / 2


class Verdicts:
    """Collects verdicts, by verifier and assessment, from finished searches over a cache.

    A middle unit is judged as what follows a right branch, so that branches of wrong ones do not count there; a whole
    video is right if all of it is.
    """

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._there: set[tuple[int, Path, str, Assessment]] = set()  # several searches have branches in common
        self.said: dict[tuple[str, Assessment], Said] = defaultdict(Said)

    async def add(self, item: Item, record: SearchRecord) -> None:
        """Take in what was said of all branches of a search."""
        assert item.objects is not None, "the oracle knows prompts of the digits world"
        for node in record.outcome.nodes:
            for scored in node.scored:
                which = item.index, node.path, scored.work.verifier, scored.work.assessment
                if which in self._there:
                    continue
                self._there.add(which)
                truth = truth_of(self._reading, record, node.path, scored.work.assessment, item.objects)
                if truth is not None:
                    said = self.said[scored.work.verifier, scored.work.assessment]
                    said.scores.append(dict(scored.scores))
                    said.right.append(truth)
                    said.prompts.append(item.index)


Reading = Callable[["SearchRecord", Path, Sequence["DigitObject"]], "BranchReading"]
"""The oracle's reading of a branch of a search, held against what was asked for."""


def truth_of(
    reading: Reading, record: SearchRecord, path: Path, assessment: Assessment, asked: Sequence[DigitObject]
) -> bool | None:
    """Whether a branch is right in what an assessment asks about; None where that is not to be learned from.

    A middle unit is judged as what follows a right branch.
    """
    if path not in record.outcome.handles or assessment is Assessment.POTENTIAL:
        return None  # a draft's preview is not what there is to be read any more
    if assessment is Assessment.FINAL:
        return reading(record, path, asked).whole.fully_right
    if len(path) > 1 and not reading(record, path[:-1], asked).whole.fully_right:
        return None
    return reading(record, path, asked).newest.fully_right


def fits(said: Mapping[tuple[str, Assessment], Said], panel: PanelConfig) -> Iterator[Fitted]:
    """A calibration for all that each verifier was asked, in the order of the panel."""
    from framegrove.search.fusion import Panel, chance
    from framegrove.verification.calibration import calibration_error, fitted

    for config in panel.verifiers:
        as_it_was = Panel([config], {})
        for assessment in config.assessments:
            found = said.get((config.name, assessment))
            if found is None:
                continue
            before, after = float("nan"), float("nan")
            (learned, truths), (others, held_out) = found.half(0), found.half(1)
            if learned and others:
                trial = fitted(learned, truths)
                said_before = [chance(assessment, tuple(each.items()), as_it_was.log_p) for each in others]
                before = calibration_error(said_before, held_out)
                after = calibration_error([math.exp(trial.log_p(each)) for each in others], held_out)
            share = sum(found.right) / len(found.right)
            whole = fitted(found.scores, found.right)
            yield Fitted(config.name, assessment, len(found.right), share, before, after, whole)


def write(panel: PanelConfig, found: Sequence[Fitted], folder: File) -> File:
    """The panel with these calibrations, as a file that --verifier takes. Raises UserError where nothing was found."""
    import yaml

    from framegrove.files import replacing

    if not found:
        raise UserError("nothing was judged: give a policy that judges branches, as --policies beam,linear")
    entries = []
    for config in panel.verifiers:
        mine = {each.assessment: each.calibration for each in found if each.verifier == config.name}
        entries.append(config.model_copy(update={"calibration": {**config.calibration, **mine}}))
    data = {"verifiers": [_as_written(entry) for entry in entries]}
    with replacing(folder / FILE) as partial:
        partial.write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
    return folder / FILE


def _as_written(config: VerifierConfig) -> dict[str, Any]:
    """An entry of a panel's file, with everything that the model's folder would fill in if it were left out."""
    told = config.model_dump(mode="json", exclude_defaults=True)
    if config.has_engine:
        told |= config.model_dump(mode="json", include={"questions", "engine", "calibration"})
    return told
