"""What jobs.evaluate does with public benchmarks: VBench's scores, its and EvalCrafter's totals, Fréchet distances."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from framegrove.config.suite import Setting
from framegrove.errors import UserError
from framegrove.evaluation import evalcrafter, vbench
from jobs.evaluations import vbench_scoring
from jobs.evaluations.measuring import VIDEOS, folder_of
from jobs.evaluations.prompts import VBENCH, Prompts
from jobs.evaluations.vbench_scoring import Scoring

if TYPE_CHECKING:
    from framegrove.evaluation.results import Sample
    from jobs.console import Display

LEAST = 2  # videos that have a spread
SCORES = "vbench"  # the folder of VBench's results, below an evaluation's own
_EVALCRAFTER = "evalcrafter:"


def names(dimension: str | None) -> tuple[str, ...]:
    """The dimensions in a comma-separated list, none for none. Raises UserError for one that there is not."""
    given = dimension.split(",") if dimension is not None else ()
    return vbench.check_dimensions(each.strip().replace(" ", "_") for each in given if each.strip())


def wanted(prompts: Prompts, dimensions: Collection[str]) -> list[str]:
    """The dimensions that some of VBench's prompts are scored in: those of ``dimensions``, or all that they have."""
    there = {each for prompt in prompts.suite for each in prompt.dimensions}
    return [each for each in vbench.DIMENSIONS if each in there and (not dimensions or each in dimensions)]


def check_weights(suite: str, prompts: Prompts, dimensions: Collection[str], weights: Path | None) -> None:
    """Raise UserError unless the folder of VBench's weights, where one is given, has all that its prompts take."""
    if weights is None:
        return
    if not prompts.suite:
        raise UserError(f"--weights is for VBench's prompts, not {suite[:60]}: add --suite vbench:FILE.json")
    vbench_scoring.check_weights(weights, wanted(prompts, dimensions))


def check_distances(prompts: Prompts) -> None:
    """Raise UserError where there are too few videos for a distance between distributions."""
    if sum(each.takes for each in prompts.asked) < LEAST:
        raise UserError(f"--distances takes {LEAST} videos a setting at least: raise --prompts")


def tell_totals(source: str, display: Display) -> None:
    """Print the totals of a benchmark's results. Raises UserError for what is none."""
    name, _, place = source.partition(":")
    if not place or f"{name}:" not in (VBENCH, _EVALCRAFTER):
        raise UserError(f"--totals takes vbench:RESULTS or evalcrafter:METRICS.json, not {source[:60]!r}")
    if f"{name}:" == VBENCH:
        _table("VBench, in percent", vbench.lines(vbench.read_results(Path(place))), display)
    else:
        found = evalcrafter.aspects(evalcrafter.read_metrics(Path(place)))
        _table("EvalCrafter", evalcrafter.lines(found), display)


def score(
    suite: str,
    prompts: Prompts,
    settings: Sequence[Setting],
    dimensions: Sequence[str],
    weights: Path | None,
    out: Path,
    display: Display,
) -> None:
    """Score the videos of VBench's prompts as far as that can be done here, and print each setting's dimensions."""
    asked, suite_file = wanted(prompts, dimensions), Path(suite.removeprefix(VBENCH))
    left: set[str] = set()
    for setting in settings:
        scoring = Scoring(out / VIDEOS / folder_of(setting), prompts.suite, out / SCORES / folder_of(setting))
        vbench_scoring.score_natively(scoring, asked)
        unscored = scoring.missing(asked)
        if unscored and weights is not None:
            vbench_scoring.score_by_vbench(scoring, suite_file, unscored, weights, display)
        elif unscored and vbench_scoring.has_fastvideo():
            vbench_scoring.score_by_fastvideo(scoring, unscored, display)
        missing = scoring.missing(asked)
        left |= set(missing)
        scores = vbench.read_results(scoring.out) if len(missing) < len(asked) else {}
        if known := {name: score for name, score in scores.items() if name not in missing}:
            _table(f"VBench, in percent: {setting}", vbench.lines(known), display)
    if left:
        display.say(
            f"not scored: {', '.join(each for each in asked if each in left)}, which take VBench's weights (--weights "
            f"DIR) or FastVideo (pip install fastvideo[eval-vbench]); the videos in {out / VIDEOS} are called as "
            "VBench expects them"
        )


def tell_distances(rows: Sequence[Sample], prompts: Prompts, out: Path, display: Display) -> None:
    """Print and keep the Fréchet distances of each setting's videos from the world's own clips of the same prompts."""
    from rich.table import Table

    from framegrove.digits.teacher_features import TeacherFeatures, reference_clips
    from framegrove.evaluation.frechet import Gaussian, frechet_distance
    from framegrove.evaluation.results import by_setting
    from framegrove.files import write_json
    from framegrove.media.writing import decode_mp4

    display.begin("measuring Fréchet distances")
    network, units = TeacherFeatures(), rows[0].units
    asked = [each.objects for each in prompts.asked if each.objects is not None for _ in range(each.takes)]
    real = network.of(reference_clips(asked, units))
    table = Table(title="Squared Fréchet distances from the digits world's own clips, by features of its teacher")
    for column in ("setting", "pictures (FID)", "their count", "videos (FVD)", "their count"):
        table.add_column(column, justify="left" if column == "setting" else "right")
    found = {}
    for setting, group in by_setting(rows).items():
        made = network.of(decode_mp4(out / row.video)[0] for row in group if row.video is not None)
        kinds = {}
        for kind in ("pictures", "videos"):
            ours, theirs = Gaussian.of(getattr(made, kind)), Gaussian.of(getattr(real, kind))
            kinds[kind] = {"distance": frechet_distance(ours, theirs), "samples": [ours.count, theirs.count]}
        found[str(setting)] = kinds
        figures = [(f"{kinds[kind]['distance']:.2f}", str(kinds[kind]["samples"])) for kind in kinds]
        table.add_row(str(setting), *(text for pair in figures for text in pair))
    display.console.print(table)
    display.say(
        "distances of few samples are too large, by as much as there are few: compare those of equal counts alone, and "
        "not with distances by other features"
    )
    write_json(out / "distances.json", found)


def _table(title: str, rows: Sequence[tuple[str, str]], display: Display) -> None:
    from rich.table import Table

    table = Table(title=title)
    table.add_column("")
    table.add_column("score", justify="right")
    for row in rows:
        table.add_row(*row)
    display.console.print(table)
