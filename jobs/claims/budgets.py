"""Scores over the budget: does searching help (VT1 section 4), and does a search only learn to please its judge."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.claims import searching
from jobs.claims.claim import Bench, Claim, Figure, Finding
from jobs.claims.searching import Rows, believed, best_of, right, score

if TYPE_CHECKING:
    from framegrove.config.verifier import PanelConfig

VIDEOS = (1, 2, 4, 8)  # to choose from
_LEAST, _MOST = f"best of {VIDEOS[0]}", f"best of {VIDEOS[-1]}"
_HARM = -0.05  # of the oracle's score: what counts as a fall


def _rows(bench: Bench, judge: str, panel: PanelConfig) -> Rows:
    return searching.measured(bench, f"best-of-{judge}", [best_of(videos) for videos in VIDEOS], panel)


def _by_verifier(bench: Bench) -> Rows:
    from framegrove.config.verifier import PanelConfig

    return _rows(bench, "verifier", PanelConfig())


def _by_signals(bench: Bench) -> Rows:
    """A judge that sees flicker and sharpness, and nothing of what was asked for."""
    from framegrove.config.verifier import PanelConfig, VerifierConfig

    return _rows(bench, "signals", PanelConfig(verifiers=(VerifierConfig(name="signals", kind="signals"),)))


def scaling(bench: Bench) -> Finding:
    """The oracle's verdict on the winner of best of N, over N."""
    rows = _by_verifier(bench)
    gain, gain_score = (rows.minus(_MOST, _LEAST, metric) for metric in (right, score))
    figures = [Figure.of(f"fully right, best of {n}", rows.mean(f"best of {n}", right)) for n in VIDEOS]
    figures += [Figure.of(f"oracle score, best of {n}", rows.mean(f"best of {n}", score)) for n in VIDEOS]
    figures += [Figure.of(f"cost, best of {n}", rows.cost(f"best of {n}"), "samples") for n in VIDEOS]
    headline = f"fully right, best of {VIDEOS[-1]} minus best of {VIDEOS[0]}"
    figures += [Figure.of(headline, gain.difference), Figure.of("oracle score, the same", gain_score.difference)]
    means = [rows.mean(f"best of {n}", score).mean for n in VIDEOS]
    rises = all(after >= before for before, after in itertools.pairwise(means))
    met = gain.difference.low > 0 and rises
    return Finding(tuple(figures), headline, met, lambda path: _draw_scaling(rows, path))


def _draw_scaling(rows: Rows, path: Path) -> None:
    from framegrove.evaluation.figures import COLOURS, save
    from jobs.claims.drawing import banded, canvas, dress

    prompts = len(rows.of(_LEAST, right))
    figure, (axes,) = canvas(title=f"The score rises with the budget: best of N, {prompts} prompts of two digits")
    costs = [rows.cost(f"best of {n}").mean for n in VIDEOS]
    for name, metric, colour in (("fully right", right, COLOURS[0]), ("oracle score", score, COLOURS[1])):
        banded(axes, costs, [rows.mean(f"best of {n}", metric) for n in VIDEOS], color=colour, label=name)
    axes.set_xscale("log", base=2)
    axes.set_xticks(costs, [f"{cost:.2g}" for cost in costs])
    dress(axes, x="total FLOPs, in samples without a search", y="by the oracle, which no search sees")
    save(figure, path)


def hacking(bench: Bench) -> Finding:
    """What the judge believes of its winners and what the oracle says, as the choice grows; for two judges."""
    by_judge = {"verifier": _by_verifier(bench), "signals": _by_signals(bench)}
    figures = []
    for judge, rows in by_judge.items():
        for name, metric in (("judge's score", believed), ("oracle score", score), ("fully right", right)):
            change = rows.minus(_MOST, _LEAST, metric).difference
            figures.append(Figure.of(f"{name}, best of {VIDEOS[-1]} minus best of 1, chosen by {judge}", change))
        gap = rows.mean(_MOST, lambda row: believed(row) - right(row))
        figures.append(Figure.of(f"judge's score minus share right at best of {VIDEOS[-1]}, {judge}", gap))
    own = by_judge["verifier"].minus(_MOST, _LEAST, score).difference
    fooled = by_judge["signals"].minus(_MOST, _LEAST, score).difference
    fooled_itself = by_judge["signals"].minus(_MOST, _LEAST, believed).difference
    met = own.low > _HARM
    remarks = (
        "the judge's score is exp(log p) of its panel: calibrated for the verifier, the bare product of flicker and "
        "sharpness for signals, a judge that nothing told what was asked for",
        f"chosen by signals, the oracle's score changes by {fooled}: "
        + (
            "no gain beyond chance, while its own score rises"
            if fooled.low <= 0 < fooled_itself.low
            else "beyond chance, and upwards"
            if fooled.low > 0
            else "and its own score does not rise beyond chance"
        ),
    )
    headline = f"oracle score, best of {VIDEOS[-1]} minus best of 1, chosen by verifier"
    return Finding(tuple(figures), headline, met, lambda path: _draw_hacking(by_judge, path), remarks)


def _draw_hacking(by_judge: Mapping[str, Rows], path: Path) -> None:
    from framegrove.evaluation.figures import COLOURS, save
    from jobs.claims.drawing import banded, canvas, dress

    figure, panels = canvas(len(by_judge), title="What the judge says of its winners, and what the oracle says")
    drawn = (("the judge's own score", believed, COLOURS[1]), ("oracle score", score, COLOURS[0]))
    for axes, (judge, rows) in zip(panels, by_judge.items(), strict=True):
        for name, metric, colour in (*drawn, ("fully right, by the oracle", right, COLOURS[2])):
            banded(axes, VIDEOS, [rows.mean(f"best of {n}", metric) for n in VIDEOS], color=colour, label=name)
        axes.set_xscale("log", base=2)
        axes.set_xticks(VIDEOS, [str(n) for n in VIDEOS])
        axes.set_ylim(0, 1.03)
        dress(axes, x="videos to choose from", y="mean over prompts", title=f"chosen by {judge}")
    save(figure, path)


CLAIMS = (
    Claim(
        name="scaling",
        question="Does the score rise with the budget of a search?",
        source="VT1 algorithm 1: scores of random linear search rise with the number of videos",
        measured=f"share of videos fully right and score by the oracle, of the winner of best of {VIDEOS}, judged by "
        "the shipped verifier, two digits, 8 units",
        aim="the oracle's score does not fall from any N to the next, and the gain in fully right videos from 1 to 8 "
        "has an interval above 0",
        takes="20 min for 24 prompts; what the claims of one folder share is made once",
        run=scaling,
        missing="other policies: the suite digits-long has them (claim tree-vs-linear)",
        prompts=24,
    ),
    Claim(
        name="judge-hacking",
        question="Does a search, as its budget grows, please its judge without making the video better?",
        source="VT1; EvoSearch (2025), where best of N lowers metrics that the search did not see",
        measured="the judge's own score of its winner beside the oracle's, best of N over N, once for the shipped "
        "verifier and once for signals, a judge that knows flicker and sharpness alone",
        aim="with the shipped verifier the oracle's score does not fall by more than 0.05 (interval) from 1 to 8",
        takes="25 min for 24 prompts, 5 where scaling was measured in the same folder",
        run=hacking,
        missing="more than 8 videos; verifiers of other sizes",
        prompts=24,
    ),
)
