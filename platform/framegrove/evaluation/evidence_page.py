"""What a suite shows, as Markdown: a table of settings for each length and judge, and what follows from it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from framegrove.evaluation.blame import Blame
from framegrove.evaluation.curves import Interval
from framegrove.evaluation.evidence import Aim, BesideLinear, Chapter, Outcome, Teamwork, Trend
from framegrove.words import counted


def page(name: str, aims_for: int, chapters: Sequence[tuple[Chapter, Chapter | None, Blame | None]]) -> str:
    """All of it; for each length what was found, the same with the oracle as judge, and who is to blame.

    ``aims_for`` is the length, in units, that the aims are for.
    """
    parts = [
        f"# {name}",
        "Means over prompts with 95% bootstrap intervals; differences are paired by prompt. Costs are total FLOPs in "
        "samples: 1 is sampling and decoding a video once, without a search. *Right* is what the oracle says, whom no "
        "search sees; *P(right)* what the search's own judge says of the winner.",
    ]
    for found, ceiling, blame in chapters:
        aims = "Aims" if found.units == aims_for else f"The aims, which are for {aims_for} units, at this length"
        parts.append(f"## {counted(found.units, 'unit')}, {counted(found.prompts, 'prompt')}")
        parts += _chapter(found, aims)
        if blame is not None:
            parts.append("**What keeps it from being always right**, one part at a time replaced by a perfect twin")
            parts.append("\n".join(f"- {line}" for line in _blame(blame)))
        if ceiling is not None:
            parts.append(f"### Ceiling: the oracle as judge, {counted(ceiling.prompts, 'prompt')} (no result, a bound)")
            parts += _chapter(ceiling, "The aims with a perfect judge")
    return "\n\n".join(parts) + "\n"


def _chapter(found: Chapter, aims: str) -> Iterator[str]:
    yield _settings(found.outcomes)
    if found.plateau is not None:
        yield f"The plateau of linear search is **{found.plateau}**."
    if found.aims:
        yield f"**{aims}**"
        yield "\n".join(f"- {_aim(aim)}" for aim in found.aims)
    if found.standings:
        yield "**Tree policies beside linear search**: the cheapest setting that reaches the plateau, or the nearest"
        yield _standings(found.standings, found.stop)
    yield "**The winners**: what the search's judge says, how much moves, what a judge says that no search saw"
    yield _winners(found.outcomes)
    if found.trends:
        yield "**More budget**: the dearest setting of a family minus the cheapest, in points"
        yield _trends(found.trends)
    if found.teamwork:
        yield "**A panel beside its best member**, in points"
        yield _table(["panel", "best member", "right", "cost ratio"], map(_teamwork, found.teamwork))


def _settings(outcomes: Sequence[Outcome]) -> str:
    head = ["setting", "right", "minus single", "minus plateau", "total cost", "sampling + decoding + judging + wasted"]
    return _table(head, map(_setting, outcomes))


def _setting(outcome: Outcome) -> list[str]:
    price = outcome.price
    return [
        str(outcome.setting),
        _percent(outcome.right),
        _points(outcome.beside_single),
        _points(outcome.beside_plateau),
        _plain(outcome.cost),
        f"{price.sampling:.2f} + {price.decoding:.2f} + {price.judging:.2f} + {price.wasted:.2f}",
    ]


def _winners(outcomes: Sequence[Outcome]) -> str:
    held_out = list(outcomes[0].held_out)
    head = ["setting", "P(right)", "rank correlation with oracle", "oracle score", "px per frame", "moves as asked"]
    return _table([*head, *held_out], (_winner(outcome, held_out) for outcome in outcomes))


def _winner(outcome: Outcome, held_out: Sequence[str]) -> list[str]:
    return [
        str(outcome.setting),
        _percent(outcome.believed),
        "" if outcome.agreement is None else f"{outcome.agreement:.2f}",
        f"{outcome.oracle_score.mean:.3f}",
        f"{outcome.travel.mean:.2f}",
        _percent(outcome.as_asked),
        *(f"{outcome.held_out[name].mean:.3f}" for name in held_out),
    ]


def _aim(aim: Aim) -> str:
    wanted = f"at most {aim.allowed:.2f} of what {aim.against} costs"
    if aim.ratio is None:
        verdict = "**missed**: no tree setting reaches the plateau"
    elif aim.met:
        verdict = f"**met** by {aim.setting}: {_plain(aim.ratio)}"
    else:
        verdict = f"**missed** by {aim.short_by:.2f}: the cheapest that reaches the plateau, {aim.setting}, costs "
        verdict += f"{_plain(aim.ratio)} of it"
    return f"{wanted}: {verdict}; met in {aim.met_in:.0%} of the draws when all is chosen anew in each"


def _standings(standings: Sequence[BesideLinear], stop: str | None) -> str:
    head = ["policy", "setting", "reaches the plateau", "minus plateau", "cost / plateau's"]
    rows = [
        [
            each.policy,
            each.setting,
            "yes" if each.reached else "no",
            _points(each.difference),
            _plain(each.of_plateau),
            *([_plain(each.of_stop)] if each.of_stop else []),
        ]
        for each in standings
    ]
    return _table([*head, *([f"cost / {stop}"] if stop else [])], rows)


def _trends(trends: Sequence[Trend]) -> str:
    rows = [
        [
            trend.family,
            trend.settings[0],
            trend.settings[-1],
            _points(trend.believed),
            _points(trend.right),
            "yes" if trend.rises else "no",
        ]
        for trend in trends
    ]
    return _table(["family", "cheapest", "dearest", "P(right)", "right", "both rise"], rows)


def _teamwork(each: Teamwork) -> list[str]:
    return [each.panel, each.best, _points(each.difference), _plain(each.cost)]


def _blame(blame: Blame) -> Iterator[str]:
    yield f"{blame.setting} is right in {_percent(blame.right)}"
    if blame.judge is not None:
        yield f"judge: with the oracle in its place, the same setting gains {_points(blame.judge)} points"
    gain = "is this one" if blame.most_right == blame.setting else f"has {_points(blame.policy)} points more"
    yield f"policy: the setting that is right most often with the same judge, {blame.most_right}, {gain}"
    if blame.generator is not None:
        yield (
            f"generator: {_percent(blame.generator)} stay wrong with the oracle as judge in the best setting there, "
            f"{blame.ceiling}"
        )
    if blame.hazard is not None:
        yield f"generator: {blame.hazard:.1%} of units go wrong without a search, on average"


def _percent(share: Interval) -> str:
    return f"{100 * share.mean:.0f}% [{100 * share.low:.0f}, {100 * share.high:.0f}]"


def _points(difference: Interval | None) -> str:
    if difference is None:
        return ""
    return f"{100 * difference.mean:+.1f} [{100 * difference.low:+.1f}, {100 * difference.high:+.1f}]"


def _plain(value: Interval) -> str:
    return f"{value.mean:.2f} [{value.low:.2f}, {value.high:.2f}]"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
