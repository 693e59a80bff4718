"""What a judge's error rate does to each policy: simulated judges of known AUC, real policies, real prices."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.claims.claim import Bench, Claim, Figure, Finding

if TYPE_CHECKING:
    from framegrove.evaluation.curves import Interval
    from framegrove.evaluation.simulated import Grid

UNITS = 8
# As measured: RESULTS.md has 5.3% of the shipped model's units wrong without a search, two digits at 8 units.
HAZARD = 0.053
AUCS = (0.55, 0.7, 0.8, 0.9, 0.97, 1.0)
_TEXT, _NEGATIVE = 20, 1  # tokens of a caption of two digits, and of the empty one
_JUDGEMENT = 0.015  # of a sample's FLOPs: what the shipped verifier takes for a verdict, as RESULTS.md has it
_BUDGET = "4x"
POLICIES: dict[str, dict[str, Any]] = {
    "linear": {},
    "linear with stop": {"policy": "linear", "until": 0.9, "budget": "8x"},
    "tof": {},
    "halving": {},
    "beam": {},
    "smc": {},
    "tree": {},
    "pyramid": {},
    "dfs": {},
    "evo": {},
}
_MARGIN = 0.03
_GOOD, _POOR = 0.9, 0.55


def grid(bench: Bench) -> Grid:
    """The grid and the prices of the shipped model's videos."""
    from actors.model_files import ModelFiles, costs_of
    from framegrove.evaluation.simulated import Grid
    from framegrove.search.prices import Prices
    from framegrove.types import Assessment

    files = ModelFiles.read(bench.model)
    recipe = files.recipe
    factor = files.vae.spatial_factor
    costs = costs_of(files, recipe, (recipe.height // factor, recipe.width // factor), _TEXT, _NEGATIVE)
    sample = costs.unsearched(UNITS).all_flops
    judged = dict.fromkeys(Assessment, (round(_JUDGEMENT * sample),) * UNITS)
    return Grid(UNITS, recipe.pyramid.stages, Prices(costs.table, judged))


def run(bench: Bench) -> Finding:
    """Each policy with judges of each AUC, on as many simulated prompts."""
    from framegrove.config.base import validated
    from framegrove.config.search import SearchConfig
    from framegrove.evaluation.curves import bootstrap, compare
    from framegrove.evaluation.simulated import SimulatedJudge, World, searched

    on = grid(bench)
    right: dict[tuple[str, float], dict[int, float]] = {}
    cost: dict[tuple[str, float], Interval] = {}
    pairs = [(name, auc) for name in POLICIES for auc in AUCS]
    for done, (name, auc) in enumerate(pairs):
        bench.display.show(done / len(pairs), f"{name}, AUC {auc:g}")
        about = {"policy": name, "budget": _BUDGET, "speculate": "off", **POLICIES[name]}
        config = validated(SearchConfig, about, name)
        outcomes = [
            searched(config, on, SimulatedJudge(World((HAZARD,) * UNITS, bench.seed + prompt), auc))
            for prompt in range(bench.prompts)
        ]
        right[name, auc] = {prompt: float(each.right) for prompt, each in enumerate(outcomes)}
        cost[name, auc] = bootstrap([each.cost for each in outcomes])
    share = {key: bootstrap(list(each.values())) for key, each in right.items()}
    unsearched = (1 - HAZARD) ** UNITS
    figures = [Figure("fully right without a search, as simulated", unsearched)]
    figures += [Figure.of(f"fully right, {name}, AUC {auc:g}", share[name, auc]) for name, auc in pairs]
    figures += [Figure.of(f"cost, {name}, AUC {auc:g}", cost[name, auc], "samples") for name, auc in pairs]
    best = {auc: _best(share, cost, auc) for auc in AUCS}
    found = {f"{name} {auc:g}": each for (name, auc), each in right.items()}
    gain = compare(f"dfs {_GOOD:g}", f"linear {_GOOD:g}", found).difference
    headline = f"fully right, dfs minus linear, AUC {_GOOD:g}"
    figures.append(Figure.of(headline, gain))
    figures.append(
        Figure.of(f"the same, AUC {_POOR:g}", compare(f"dfs {_POOR:g}", f"linear {_POOR:g}", found).difference)
    )
    cheaper = cost["dfs", _GOOD].mean < cost["linear", _GOOD].mean
    remarks = (
        "the cheapest policy within 0.03 of the best, by the judge's AUC: "
        + "; ".join(f"{auc:g}: {name}" for auc, name in best.items()),
        f"chance of a wrong unit {HAZARD:.3f} at every depth, every prompt alike; real prompts differ, and real "
        "judges err alike on siblings",
        "judges are calibrated at every AUC: what policies that accept lose to bad calibration is not in here",
    )
    met = gain.mean >= -_MARGIN and cheaper
    return Finding(tuple(figures), headline, met, lambda path: _draw(share, cost, unsearched, path), remarks)


def _best(share: Mapping[tuple[str, float], Interval], cost: Mapping[tuple[str, float], Interval], auc: float) -> str:
    top = max(share[name, auc].mean for name in POLICIES)
    reaching = [name for name in POLICIES if share[name, auc].mean >= top - _MARGIN]
    return min(reaching, key=lambda name: cost[name, auc].mean)


def _draw(
    share: Mapping[tuple[str, float], Interval],
    cost: Mapping[tuple[str, float], Interval],
    unsearched: float,
    path: Path,
) -> None:
    import itertools

    from framegrove.evaluation.figures import COLOURS, INK, save
    from jobs.claims.drawing import canvas, dress

    prompts = f"{UNITS} units, a unit is wrong with chance {HAZARD:g}"
    figure, panels = canvas(2, title=f"Judges of known error, simulated: {prompts}", width=5.4, height=4.6)
    at = range(len(AUCS))
    styles = zip(itertools.product(("-", "--"), COLOURS), POLICIES, strict=False)
    for (style, colour), name in styles:
        means = [share[name, auc].mean for auc in AUCS]
        panels[0].plot(at, means, color=colour, ls=style, marker="o", ms=3, label=name)
        panels[1].plot(at, [cost[name, auc].mean for auc in AUCS], color=colour, ls=style, marker="o", ms=3)
    panels[0].axhline(unsearched, color=INK, lw=0.9, ls=":")
    panels[0].annotate("no search", (0, unsearched), (0, -11), textcoords="offset points", fontsize=8)
    for axes, y in zip(panels, ("winners fully right", "total cost, in samples without a search"), strict=True):
        axes.set_xticks(at, [f"{auc:g}" for auc in AUCS])
        dress(axes, x="AUC of the judge between right and wrong siblings", y=y)
    panels[0].legend(frameon=False, fontsize=8, handlelength=3.5, ncols=2, loc="lower right")
    widest = max(each.high - each.low for each in share.values()) / 2
    panels[0].set_title(f"intervals, left out, are at most {widest:.2f} either way", loc="left", fontsize=9.5)
    save(figure, path)


CLAIM = Claim(
    name="judge-errors",
    question="What does a judge's error rate do to each policy, and which policy is for which judge?",
    source="VT1 compares verifiers; here they are simulated, with error rates that are known",
    measured=f"winners fully right and cost of {len(POLICIES)} policies at 4x (linear with stop: up to 8x), with "
    f"simulated, calibrated judges of AUC {', '.join(f'{auc:g}' for auc in AUCS)} among siblings",
    aim=f"with a judge of AUC {_GOOD} depth-first search is within {_MARGIN} of best of N, or better, at less cost",
    takes="10 min for 200 simulated prompts",
    run=run,
    missing="judges that err alike on siblings, or more in some prompts; judges that are badly calibrated",
    prompts=200,
)
