"""A study of people's preferences: which pairs are shown to whom, and what their choices say.

Pairs are of two videos of one prompt and take, made in two settings of an evaluation. Each is shown without names, on
the left or right as a hash of person and pair says, and asks about aesthetics, motion, and alignment with the prompt:
the user study of Pyramidal Flow Matching (arXiv 2410.05954), 50 prompts and 20 people, as a tool.

Choices become a strength for each setting by the model of Bradley and Terry, a tie counting half. Intervals are of a
bootstrap in which people and prompts are both drawn anew, since choices of one person, and about one prompt, are
anything but independent (Owen, 2007): they tell what other people would say of other prompts.

Only settings that were compared, directly or over others, have strengths on one scale. Others are in groups apart. A
draw may leave out what holds a group together, and then says nothing of how far apart its parts are: such draws do not
count, and a group has no intervals where most are of that kind.
"""

from __future__ import annotations

import filecmp
import hashlib
import itertools
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from framegrove.errors import UserError
from framegrove.evaluation.agreement import numbered
from framegrove.evaluation.curves import Interval
from framegrove.evaluation.results import Sample
from framegrove.verification.bradley_terry import strengths

QUESTIONS = ("aesthetics", "motion", "alignment")
RESAMPLES = 1000
_TAILS = (0.025, 0.975)
_ENOUGH = 0.5  # share of the draws that must hold a group together for its intervals

Better = Literal["one", "other", "tie"]
Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Pair:
    """Two videos of a prompt, by their settings in alphabetical order and their files below the evaluation's folder."""

    prompt_index: int
    prompt: str
    take: int
    one: str
    other: str
    files: tuple[str, str]

    @property
    def key(self) -> tuple[int, int, str, str]:
        """What tells it from other pairs."""
        return self.prompt_index, self.take, self.one, self.other


@dataclass(frozen=True)
class Choice:
    """One person's answer to one question about one pair; ``left`` is which of the two was shown there."""

    person: str
    key: tuple[int, int, str, str]
    question: str
    better: Better
    left: Literal["one", "other"]


def pairs_of(rows: Iterable[Sample], folder: Path) -> list[Pair]:
    """Every two settings' videos of the same prompt and take, as far as they are there. Raises UserError for none.

    Two that are the same to the last byte, as where two searches end at one branch, are no pair: nobody could choose.
    """
    groups: dict[tuple[int, int], dict[str, Sample]] = defaultdict(dict)
    for row in rows:
        if row.video is not None and (folder / row.video).is_file():
            groups[row.prompt_index, row.take][str(row.setting)] = row
    found = [
        Pair(prompt, group[one].prompt, take, one, other, (str(group[one].video), str(group[other].video)))
        for (prompt, take), group in sorted(groups.items())
        for one, other in itertools.combinations(sorted(group), 2)
        if not filecmp.cmp(folder / str(group[one].video), folder / str(group[other].video), shallow=False)
    ]
    if not found:
        raise UserError(
            f"{folder} has no two videos of one prompt to choose between: evaluate two settings or more, as --budgets "
            "1x,4x, and leave the videos where they are"
        )
    return found


def next_pair(
    person: str, pairs: Sequence[Pair], answered: Mapping[tuple[int, int, str, str], Collection[str]]
) -> Pair | None:
    """What a person is shown next: of the pairs that they have not answered, one that the fewest people have.

    Among equals the choice is random, but the same for a person who asks again. None when they have answered all.
    """
    left = [pair for pair in pairs if person not in answered.get(pair.key, ())]
    return min(left, key=lambda pair: (len(answered.get(pair.key, ())), _hash(person, pair)), default=None)


def is_swapped(person: str, pair: Pair) -> bool:
    """Whether a person sees ``other`` on the left."""
    return _hash(person, pair, "side")[0] % 2 == 1


def _hash(person: str, pair: Pair, *more: str) -> bytes:
    return hashlib.blake2b(repr((person, pair.key, *more)).encode(), digest_size=8).digest()


# ---- what the choices say


@dataclass(frozen=True)
class SettingStrength:
    """A setting by people's choices: log-odds of being preferred to an average one of its group, and what they were.

    The ends of its interval are nan where too few draws say anything of it.
    """

    setting: str
    strength: Interval
    won: int
    tied: int
    lost: int


@dataclass(frozen=True)
class ComparedGroup:
    """Settings that were compared with each other, directly or over others, by falling strength.

    ``held`` is the share of the bootstrap's draws in which they were.
    """

    settings: tuple[str, ...]
    held: float


@dataclass(frozen=True)
class QuestionResult:
    """What a question's choices say; ``left`` is the share of those that are no ties which went to the left video.

    Strengths of different ``groups``, the largest first, cannot be compared. ``standings`` are in their order.
    """

    question: str
    choices: int
    people: int
    prompts: int
    left: float | None
    standings: tuple[SettingStrength, ...]
    groups: tuple[ComparedGroup, ...]


def verdicts(choices: Sequence[Choice]) -> list[QuestionResult]:
    """A verdict for each question that has been answered, settings by falling strength in their groups."""
    by_question = {each: [choice for choice in choices if choice.question == each] for each in QUESTIONS}
    return [_verdict(question, some) for question, some in by_question.items() if some]


def _verdict(question: str, choices: Sequence[Choice]) -> QuestionResult:
    settings = sorted({setting for choice in choices for setting in choice.key[2:]})
    people, prompts = (numbered(each) for each in ([c.person for c in choices], [c.key[0] for c in choices]))
    count, table = len(settings), _Table.of(settings, choices)
    found = np.array(table.strengths(count, np.ones(len(choices))))
    rng = np.random.default_rng(0)
    weights = [_draw(rng, people) * _draw(rng, prompts) for _ in range(RESAMPLES)]
    groups, low, high = _grouped(table, settings, found, weights)
    tallies = {setting: Counter[str]() for setting in settings}
    for choice in choices:
        _, _, one, other = choice.key
        tallies[one][{"one": "won", "other": "lost", "tie": "tied"}[choice.better]] += 1
        tallies[other][{"one": "lost", "other": "won", "tie": "tied"}[choice.better]] += 1
    standings = [
        SettingStrength(
            setting,
            Interval(float(found[at]), float(low[at]), float(high[at])),
            *(tallies[setting][name] for name in ("won", "tied", "lost")),
        )
        for at, setting in enumerate(settings)
    ]
    decided = [choice for choice in choices if choice.better != "tie"]
    left = sum(choice.better == choice.left for choice in decided) / len(decided) if decided else None
    by_setting = {each.setting: each for each in standings}
    in_order = tuple(by_setting[setting] for group in groups for setting in group.settings)
    return QuestionResult(question, len(choices), len(set(people)), len(set(prompts)), left, in_order, tuple(groups))


def _grouped(
    table: _Table, settings: Sequence[str], found: Array, weights: Sequence[Array]
) -> tuple[list[ComparedGroup], Array, Array]:
    """The groups of settings, the largest first, and the ends of the settings' intervals, from the draws' weights."""
    count = len(settings)
    drawn_DS = np.array([table.strengths(count, each) for each in weights])
    labels_DS = np.array([table.groups(count, each) for each in weights])
    whole_S = np.array(table.groups(count, np.ones(len(table.pair_C))))
    low_S, high_S, groups = np.full(count, np.nan), np.full(count, np.nan), []
    for group in dict.fromkeys(whole_S):
        (members,) = np.nonzero(whole_S == group)
        holds_D = (labels_DS[:, members] == labels_DS[:, members[:1]]).all(1)
        if holds_D.mean() >= _ENOUGH:
            low_S[members], high_S[members] = np.quantile(drawn_DS[np.ix_(holds_D, members)], _TAILS, axis=0)
        ordered = tuple(settings[at] for at in sorted(members, key=lambda at: -found[at]))
        groups.append(ComparedGroup(ordered, float(holds_D.mean())))
    return sorted(groups, key=lambda each: -len(each.settings)), low_S, high_S


class _Table(NamedTuple):
    """Choices as arrays: which of ``pairs`` of settings each is about, and how much of it ``one`` has won."""

    pairs: list[tuple[int, int]]
    pair_C: npt.NDArray[np.int64]
    won_C: Array

    @classmethod
    def of(cls, settings: Sequence[str], choices: Sequence[Choice]) -> _Table:
        place = {setting: at for at, setting in enumerate(settings)}
        about = [(place[choice.key[2]], place[choice.key[3]]) for choice in choices]
        pairs = list(dict.fromkeys(about))
        number = {pair: at for at, pair in enumerate(pairs)}
        won = [{"one": 1.0, "other": 0.0, "tie": 0.5}[choice.better] for choice in choices]
        return cls(pairs, np.array([number[pair] for pair in about]), np.array(won))

    def strengths(self, count: int, weights_C: Array) -> tuple[float, ...]:
        """Those of all settings, where each choice counts as often as ``weights_C`` says."""
        times_P = np.bincount(self.pair_C, weights_C, len(self.pairs))
        won_P = np.bincount(self.pair_C, weights_C * self.won_C, len(self.pairs))
        there = [at for at, times in enumerate(times_P) if times]
        won = {self.pairs[at]: float(won_P[at] / times_P[at]) for at in there}
        return strengths(count, won, weights={self.pairs[at]: float(times_P[at]) for at in there})

    def groups(self, count: int, weights_C: Array) -> list[int]:
        """A number for each setting, the same for those that were compared, directly or over others.

        Choices of which ``weights_C`` are 0 were not made.
        """
        labels = list(range(count))
        for at in np.nonzero(np.bincount(self.pair_C, weights_C, len(self.pairs)))[0]:
            one, other = (labels[each] for each in self.pairs[at])
            labels = [one if label == other else label for label in labels]
        return labels


def _draw(rng: np.random.Generator, numbers: Sequence[int]) -> Array:
    """How often each of some people, or prompts, is drawn, for every choice."""
    count = max(numbers) + 1
    return np.bincount(rng.integers(count, size=count), minlength=count)[list(numbers)].astype(float)
