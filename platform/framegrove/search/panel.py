"""The panel of a search: which verifiers take part in which assessment, and what they have said together."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from framegrove.errors import UserError
from framegrove.search.tree import PanelWork, PlannedWork, Result, Scores, Work, columns
from framegrove.types import Assessment, SampleWork, Scored, ScoreWork


class Panel:
    """``members`` are the names of the verifiers that take part in each assessment."""

    def __init__(self, members: Mapping[Assessment, Sequence[str]]) -> None:
        self._members = members
        self._alone = len({name for names in members.values() for name in names}) == 1
        self.scores: dict[PanelWork, Scores] = {}
        """What is known of branches that everybody who takes part has scored, or that were given up."""

    @property
    def widest(self) -> int:
        """The most works that one judgement takes."""
        return max((len(names) for names in self._members.values()), default=1) or 1

    def works(self, planned: PlannedWork) -> tuple[Work, ...]:
        """The works for single workers that make up a planned one. Raises UserError where no verifier can judge."""
        if isinstance(planned, SampleWork):
            return (planned,)
        names = self._members.get(planned.assessment, ())
        if not names:
            raise UserError(
                f"no verifier takes part in the {planned.assessment} assessment, which this policy asks for: add it to "
                "what a verifier judges, or choose another policy"
            )
        return tuple(ScoreWork(planned.path, planned.assessment, name) for name in names)

    def add_up(self, work: PanelWork, done: Mapping[Work, Result]) -> bool:
        """Whether this was missing and is now complete, by what is ``done``: then its scores are known."""
        results = [done.get(each) for each in self.works(work)]
        scored = [result for result in results if isinstance(result, Scored)]
        if work in self.scores or len(scored) < len(results):
            return False
        said = (columns(result, alone=self._alone) for result in scored)
        self.scores[work] = tuple(itertools.chain.from_iterable(said))
        return True

    def give_up(self, works: Sequence[PanelWork]) -> None:
        """These branches have scores of 0, in the columns that others have at the same assessment.

        Where nothing was ever scored at an assessment, one column stands for those that nobody knows.
        """
        names = {work.assessment: [name for name, _ in scores] for work, scores in self.scores.items()}
        for work in works:
            self.scores[work] = tuple((name, 0.0) for name in names.get(work.assessment, ["given up"]))
