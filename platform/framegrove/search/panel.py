"""The panel of a search: which verifiers take part in which assessment, and what they have said together."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence

from framegrove.errors import UserError
from framegrove.search.fusion import GIVEN_UP
from framegrove.search.tree import Members, PanelWork, PlannedWork, Result, Scores, Work, columns
from framegrove.types import Assessment, Path, SampleWork, Scored, ScoreWork, prefixes


def unjudged(asked: Iterable[Assessment], judges: Iterable[Collection[Assessment]]) -> list[Assessment]:
    """Those of the assessments that are ``asked`` for in which none of the verifiers, given by theirs, takes part."""
    return sorted(set(asked).difference(*judges))


class Panel:
    """``members`` are the names of the verifiers that take part in each assessment.

    ``anchors`` are those among them that compare, and with how many branches of a cohort they compare each: with the
    first ones by path, so that it never depends on what was done when.
    """

    def __init__(self, members: Mapping[Assessment, Sequence[str]], anchors: Mapping[str, int] | None = None) -> None:
        self._members = members
        self._anchors = anchors or {}
        self._cohorts: dict[PanelWork, tuple[Path, ...]] = {}  # living members, by path
        self._alone = len({name for names in members.values() for name in names}) == 1
        self.scores: dict[PanelWork, Scores] = {}
        """What is known of branches that everybody who takes part has scored, or that were given up."""

    @property
    def compares(self) -> bool:
        """Whether there are verifiers that compare."""
        return bool(self._anchors)

    @property
    def widest(self) -> int:
        """The most works that one judgement takes."""
        return max((len(names) for names in self._members.values()), default=1) or 1

    def works(self, planned: PlannedWork) -> tuple[Work, ...]:
        """The works for single workers that make up a planned one, as far as they are known.

        Those of verifiers that compare are once its cohort is (``compare``). Raises UserError where no verifier can
        judge.
        """
        if isinstance(planned, SampleWork):
            return (planned,)
        names = self._members.get(planned.assessment, ())
        if not names:
            raise UserError(
                f"no verifier takes part in the {planned.assessment} assessment, which this policy asks for: add it to "
                "what a verifier judges, or choose another policy"
            )
        return tuple(
            ScoreWork(planned.path, planned.assessment, name, self._against(planned, name))
            for name in names
            if name not in self._anchors or planned in self._cohorts
        )

    def compare(self, members: Members, given_up: Collection[Path]) -> None:
        """A cohort is known; those of its branches that were given up are nobody's anchors."""
        living = _living(sorted(members.paths), given_up)
        self._cohorts |= dict.fromkeys((PanelWork(path, members.assessment) for path in members.paths), living)

    def renew(self, work: PanelWork, given_up: Collection[Path]) -> None:
        """Further branches of the cohort were given up: they are no anchors of this one any more."""
        self._cohorts[work] = _living(self._cohorts[work], given_up)

    def unknown(self, work: PanelWork) -> int:
        """How many works of this judgement are not known yet."""
        names = self._members.get(work.assessment, ())
        return 0 if work in self._cohorts else sum(name in self._anchors for name in names)

    def _against(self, work: PanelWork, name: str) -> tuple[Path, ...]:
        if name not in self._anchors:
            return ()
        return tuple(path for path in self._cohorts[work][: self._anchors[name]] if path != work.path)

    def add_up(self, work: PanelWork, done: Mapping[Work, Result]) -> bool:
        """Whether this was missing and is now complete, by what is ``done``: then its scores are known."""
        results = [done.get(each) for each in self.works(work)]
        scored = [result for result in results if isinstance(result, Scored)]
        if work in self.scores or len(scored) < len(results) or self.unknown(work):
            return False
        said = (columns(result, alone=self._alone) for result in scored)
        self.scores[work] = tuple(itertools.chain.from_iterable(said))
        return True

    def give_up(self, works: Sequence[PanelWork]) -> None:
        """These branches have scores of 0, in the columns that others have at the same assessment.

        Where nothing was ever scored at an assessment, one column stands for those that nobody knows (GIVEN_UP).
        """
        names = {work.assessment: [name for name, _ in scores] for work, scores in self.scores.items()}
        for work in works:
            self.scores[work] = tuple((name, 0.0) for name in names.get(work.assessment, [GIVEN_UP]))


def _living(paths: Sequence[Path], given_up: Collection[Path]) -> tuple[Path, ...]:
    return tuple(path for path in paths if not any(prefix in given_up for prefix in prefixes(path)))
