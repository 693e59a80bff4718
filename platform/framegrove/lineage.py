"""How a path names branches whose noise is a mutation of a sibling's (EvoSearch, 2025).

The noise of a branch is decided by (seed, path) alone. So a mutated child carries its lineage in its child index, in
decimal digits:

    a fresh child     k                                     below 10,000,000
    a mutated child   (parent + 1) NN JJ ddd                parent: the index of the sibling that it was mutated from,
                                                            which may be mutated itself
                                                            NN: strength at the initial noise, in hundredths
                                                            JJ: strength at the noise of the pyramid's jumps, likewise
                                                            ddd: which of the parent's mutations it is

    3          the fourth fresh child                       shown as  3
    46030007   mutation 7 of it, strengths 0.60 and 0.30    shown as  3~7(60/30)
    460300086030002   mutation 2 of that, the same again    shown as  3~7(60/30)~2(60/30)

Everything that knows branches by their paths (journals, caches, file names) therefore tells mutated ones from fresh
ones without knowing of mutation. The strengths are part of the name, and no setting of a generator: two searches that
mutate differently may share a cache, and a branch is what its path says on any machine, whatever the settings of a
search that is resumed there. Python's integers have no largest one, so that there may be any number of generations.
"""

from __future__ import annotations

from dataclasses import dataclass

from framegrove.types import Path

_NUMBERS = 1_000  # mutations of one sibling with the same strengths
_HUNDREDTHS = 100
FRESH = _HUNDREDTHS * _HUNDREDTHS * _NUMBERS  # indices from here on are those of mutated children


@dataclass(frozen=True, order=True)
class Mutation:
    """How a child was mutated: from sibling ``parent``, of whose mutations it is the ``number``th.

    ``initial`` and ``jump`` are the strengths in hundredths, 0 to 99: at 0 that noise is the parent's. At least one is
    not 0, or the child would be its parent. Raises ValueError for what cannot be.
    """

    parent: int
    number: int
    initial: int
    jump: int

    def __post_init__(self) -> None:
        if self.parent < 0 or not 0 <= self.number < _NUMBERS:
            raise ValueError(f"mutation {self.number} of sibling {self.parent}: there are 0 to {_NUMBERS - 1} of each")
        if not (0 <= self.initial < _HUNDREDTHS and 0 <= self.jump < _HUNDREDTHS and self.initial + self.jump):
            raise ValueError(f"strengths are 0 to 99 hundredths and not both 0, not {self.initial} and {self.jump}")

    @property
    def index(self) -> int:
        """The mutated child's index among the children of its branch."""
        strengths = self.initial * _HUNDREDTHS + self.jump
        return (self.parent + 1) * FRESH + strengths * _NUMBERS + self.number


def mutation_of(index: int) -> Mutation | None:
    """How the child of this index was mutated, None if it is fresh.

    >>> mutation_of(46030007)
    Mutation(parent=3, number=7, initial=60, jump=30)
    """
    if index < FRESH:
        return None
    parent, rest = divmod(index, FRESH)
    strengths, number = divmod(rest, _NUMBERS)
    return Mutation(parent - 1, number, *divmod(strengths, _HUNDREDTHS))


def sibling(path: Path, mutation: Mutation) -> Path:
    """The branch that the mutated child ``path`` was mutated from."""
    return (*path[:-1], mutation.parent)


def unmutated(path: Path) -> Path:
    """The fresh branch that a branch descends from by mutations; itself where it is fresh.

    >>> unmutated((2, 46060007))
    (2, 3)
    """
    while (mutation := mutation_of(path[-1])) is not None:
        path = sibling(path, mutation)
    return path


def branch_name(path: Path) -> str:
    """A branch for people to read, the same wherever they read it.

    >>> branch_name((2, 46060007))
    '2.3~7(60)'
    """
    return ".".join(map(_child_name, path))


def _child_name(index: int) -> str:
    mutation = mutation_of(index)
    if mutation is None:
        return str(index)
    same = mutation.initial == mutation.jump
    strengths = str(mutation.initial) if same else f"{mutation.initial}/{mutation.jump}"
    return f"{_child_name(mutation.parent)}~{mutation.number}({strengths})"
