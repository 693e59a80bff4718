"""What keeps the best tree setting of a suite from being always right: generator, judge or policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from framegrove.config.suite import Setting, SuiteConfig
from framegrove.evaluation.curves import Interval, bootstrap
from framegrove.evaluation.evidence import Chapter, Outcome, complete, right
from framegrove.evaluation.results import Row, by_setting


@dataclass(frozen=True)
class Blame:
    """What keeps the best tree setting from being always right, by replacing one part at a time with a perfect twin.

    ``judge``: what the oracle as judge adds to the same setting. ``policy``: what the most right setting at the same
    judge has more. ``generator``: what is wrong even in the most right setting with the oracle as judge, and
    ``hazard``, the mean share of units that go wrong without a search. None where that was not run.
    """

    setting: str
    right: Interval
    judge: Interval | None
    policy: Interval | None
    most_right: str
    generator: Interval | None
    ceiling: str | None
    hazard: float | None


def blame(rows: Sequence[Row], ceiling: Sequence[Row], found: Chapter, suite: SuiteConfig) -> Blame | None:
    """Who is to blame for what the best tree setting gets wrong; ``found`` is what the rows show.

    ``ceiling`` are the rows with the oracle as judge, if any. None where there is no tree setting.
    """
    trees = [outcome for outcome in found.outcomes if outcome.setting.policy in suite.trees]
    if not trees:
        return None
    reaching = [aim.setting for aim in found.aims if aim.setting is not None]
    best = found.find(reaching[0]) if reaching else _most_right(trees)
    top, setting = _most_right(found.outcomes), best.setting
    shares, perfect = _shares(rows), _shares(ceiling)
    highest = max(perfect, key=lambda each: sum(perfect[each].values()), default=None)
    single = next((outcome.right.mean for outcome in found.outcomes if outcome.setting.policy == "single"), None)
    return Blame(
        setting=setting.label,
        right=best.right,
        judge=_gain(perfect.get(setting, {}), shares[setting]),
        policy=_gain(shares[top.setting], shares[setting]),
        most_right=top.setting.label,
        generator=bootstrap([1.0 - share for share in perfect[highest].values()]) if highest else None,
        ceiling=highest.label if highest else None,
        hazard=1.0 - single ** (1.0 / found.units) if single is not None else None,
    )


def _gain(ones: Mapping[int, float], others: Mapping[int, float]) -> Interval | None:
    """The mean of one minus the other over the prompts that both have, None where there are none."""
    shared = sorted(ones.keys() & others.keys())
    return bootstrap([ones[prompt] - others[prompt] for prompt in shared]) if shared else None


def _shares(rows: Sequence[Row]) -> dict[Setting, dict[int, float]]:
    """By setting and prompt, whether a video is right."""
    return {each: {row.prompt_index: right(row) for row in group} for each, group in by_setting(complete(rows)).items()}


def _most_right(outcomes: Sequence[Outcome]) -> Outcome:
    """The setting with the highest share of right videos, the cheapest of equals."""
    return max(outcomes, key=lambda outcome: (outcome.right.mean, -outcome.cost.mean))
