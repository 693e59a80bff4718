"""Which branch to finish when time is up, and how."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping

from framegrove.search.fusion import LogP
from framegrove.search.tree import Latent, Layout, PanelWork, Plan, Scores
from framegrove.types import Assessment, Path, SampleWork, prefixes

EXPECT = 0.85  # how likely a unit that nobody has judged is taken to be right


def most_promising(
    layout: Layout,
    finished: Collection[Path],
    dead: Collection[Path],
    panels: Mapping[PanelWork, Scores],
    log_p: LogP,
    most_units: float = math.inf,
) -> Path | None:
    """The branch from which a video is most likely to become right, by the scores that are in; None if there is none.

    Candidates are branches whose units are all ``finished`` and of whose prefixes none is ``dead``; a branch that has
    children but no judgement of its own is left out, since its children stand for it. Units that nobody has judged, and
    those still to come, count as right with probability EXPECT. Ties go to the longer branch. There is time for
    ``most_units`` more: where that is too few for every candidate, only the longest are considered.
    """
    judged: dict[Path, tuple[Assessment, Scores]] = {}
    order = list(Assessment)
    for work in sorted(panels, key=lambda work: order.index(work.assessment)):  # the last assessment of a branch counts
        judged[work.path] = work.assessment, panels[work]

    def promise(path: Path) -> float:
        """The logarithm of the probability that the video becomes right."""
        total, units = 0.0, 0
        for prefix in prefixes(path):
            if prefix in judged and judged[prefix][0] is Assessment.FINAL:  # of everything up to there
                total, units = log_p(*judged[prefix]), len(prefix) - layout.given
            elif prefix in judged:
                total, units = total + log_p(*judged[prefix]), units + 1
        return total + math.log(EXPECT) * (layout.units - layout.given - units)

    alive = [path for path in finished if all(each in finished and each not in dead for each in prefixes(path))]
    parents = {path[:-1] for path in finished}
    alive = [path for path in alive if path in judged or path not in parents]
    longest = max(map(len, alive), default=0)
    alive = [path for path in alive if layout.units - len(path) <= most_units] or [
        path for path in alive if len(path) == longest
    ]
    return max(alive, key=lambda path: (promise(path), len(path), tuple(-step for step in path)), default=None)


def rest_of(
    path: Path, layout: Layout, running: Iterable[SampleWork], dead: Collection[Path], taken: Collection[Path]
) -> Iterator[tuple[Path, SampleWork]]:
    """Unit by unit, a branch and the work that makes its newest unit, from ``path`` to a whole video.

    What is ``running`` already goes on; otherwise the unit is that of a child that is not ``taken``.
    """
    running = list(running)
    while len(path) < layout.units:
        going_on = (
            (child, work)
            for work in running
            for child in work.paths
            if child[:-1] == path and work.last_stage == layout.last_stage and child not in dead
        )
        fresh = (*path, next(index for index in range(len(taken) + 1) if (*path, index) not in taken))
        path, work = next(going_on, (fresh, SampleWork((fresh,), 0, layout.last_stage)))
        yield path, work


def works_of(
    winner: Path,
    layout: Layout,
    planned: Iterable[SampleWork],
    to_come: Mapping[Path, SampleWork],
    made: Mapping[Latent, SampleWork],
) -> dict[SampleWork, None]:
    """Every work that makes a branch, those of its drafts included, in the order of its units.

    Of works that are ``planned``, ``to_come`` at full resolution by branch, or have ``made`` what is there.
    """
    coming = {layout.finished(path): work for path, work in to_come.items()}
    by_latent = {latent: work for work in planned for latent in layout.outputs(work)} | coming | dict(made)
    works: dict[SampleWork, None] = {}
    for path in prefixes(winner)[layout.given :]:
        chain = [by_latent[layout.finished(path)]]
        while chain[0].first_stage:
            chain.insert(0, by_latent[Latent(path, chain[0].first_stage - 1)])
        works |= dict.fromkeys(chain)
    return works


def known_children(plan: Plan, finished: Collection[Path], given_up: Collection[Path]) -> set[Path]:
    """Branches that somebody has asked for, or made."""
    asked = (path for work in plan.certain if isinstance(work, SampleWork) for path in work.paths)
    return {*asked, *finished, *given_up}
