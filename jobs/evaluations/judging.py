"""What jobs.evaluate --judges does: judges held against the oracle of the digits world, or against people's choices."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path as File
from typing import TYPE_CHECKING, Any

import numpy as np

from framegrove.config.verifier import PanelConfig, VerifierConfig, load_panel, log_odds
from framegrove.errors import UserError
from framegrove.types import Assessment, Path, Scored, ScoreWork
from framegrove.words import counted
from jobs.console import make_folder
from jobs.evaluations import measuring
from jobs.evaluations.calibrating import truth_of

if TYPE_CHECKING:
    from framegrove.digits.world import DigitObject
    from framegrove.evaluation.agreement import Agreement
    from framegrove.evaluation.curves import Interval
    from framegrove.evaluation.human_pairs import HumanPair
    from framegrove.evaluation.report import SearchRecord
    from framegrove.verification.clips import Frames
    from jobs.console import Display
    from jobs.evaluations.laboratory import Laboratory
    from jobs.evaluations.measuring import Item

RESULTS, FIGURES = "results.parquet", "judges.json"
EVERYTHING, PAIRS = "all", "pairs"
_FPS, _MOST = 8.0, 257  # of a person's video: frames a second that judges are shown, of faster ones, and how many


@dataclass(frozen=True)
class Opinion:
    """What a judge said of one branch or video: the probability that it is right, beside the truth.

    ``prompt`` and ``group`` (siblings, or videos of one prompt) are names. ``right`` is None where nobody says.
    """

    judge: str
    assessment: str
    prompt: str
    group: str
    which: str
    chance: float
    right: bool | None
    flops: int
    seconds: float


@dataclass(frozen=True)
class Judged:
    """How well a judge does at an assessment, and what a verdict costs (the seconds: median, as it measures itself)."""

    judge: str
    assessment: str
    agreement: Agreement
    flops: float
    seconds: float


class Opinions:
    """Collects what judges say of the branches of finished searches over a cache, beside what the oracle reads.

    They are asked what the search's own panel was asked, of finished units, about one branch at a time. Those that
    compare hold it against its siblings.
    """

    def __init__(self, lab: Laboratory, judges: PanelConfig) -> None:
        assert lab.reading is not None, "searches over a cache can be read"
        self._lab, self._reading = lab, lab.reading
        self._judges = {config.name: config for config in judges.verifiers}
        self._there: set[tuple[int, Path, Assessment]] = set()  # several searches have branches in common
        self.said: list[Opinion] = []

    async def add(self, item: Item, record: SearchRecord) -> None:
        """Ask about all branches of a search that were judged."""
        for path, assessment in _asked(record):
            if (item.index, path, assessment) not in self._there:
                self._there.add((item.index, path, assessment))
                assert item.objects is not None, "the oracle knows prompts of the digits world"
                await self._ask(item.index, record, path, assessment, item.objects)

    async def _ask(
        self, prompt: int, record: SearchRecord, path: Path, assessment: Assessment, asked: Sequence[DigitObject]
    ) -> None:
        truth = truth_of(self._reading, record, path, assessment, asked)
        if truth is None:
            return
        for name, scored in (await self._lab.opinions(record, path, assessment)).items():
            self.said.append(
                Opinion(
                    name,
                    assessment.value,
                    f"{prompt} {record.request.prompt}",
                    f"{prompt} {path[:-1]} {assessment.value}",
                    f"{path}",
                    chance_of(self._judges[name], scored),
                    truth,
                    scored.cost.flops,
                    scored.cost.seconds,
                )
            )


def _asked(record: SearchRecord) -> list[tuple[Path, Assessment]]:
    """What was judged in a search, each once, in the order of its branches."""
    found = ((node.path, scored.work.assessment) for node in record.outcome.nodes for scored in node.scored)
    return list(dict.fromkeys(found))


def chance_of(config: VerifierConfig, scored: Scored) -> float:
    """A judge's probability that something is right, from its scores, by its calibration if it has one."""
    from framegrove.search.fusion import Panel, chance

    # How much a judge counts beside others is no matter here; how much its scores count beside each other is.
    alone = config if isinstance(config.weight, dict) else config.model_copy(update={"weight": 1.0})
    return chance(scored.work.assessment, scored.scores, Panel([alone], {}).log_p)


def compare_with_the_oracle(
    lab: Laboratory, items: Sequence[Item], judges: PanelConfig, out: File, display: Display
) -> None:
    """Make searches over a cache, ask the judges of their branches, and leave what was found in ``out``."""
    judges.check_files()
    opinions = Opinions(lab, judges)
    measuring.make(lab, items, opinions.add, display)
    found = against_the_truth(opinions.said, {config.name for config in judges.verifiers if config.anchors})
    _finish(found, opinions.said, {"truth": "oracle", "prompts": len(items)}, out, display)


def compare_with_people(judges: str, file: File, out: File, display: Display) -> None:
    """Show the judges of a file people's pairs of videos, and leave what was found in ``out``."""
    from framegrove.evaluation.human_pairs import read_pairs

    panel, pairs = load_panel(judges), read_pairs(file)
    panel.check_files()
    make_folder(out)
    said, found = against_people(panel, pairs, display)
    decided = sum(pair.decided is not None for pair in pairs)
    _finish(found, said, {"truth": "people", "pairs": len(pairs), "decided": decided}, out, display)


def against_the_truth(said: Sequence[Opinion], comparing: Collection[str] = ()) -> list[Judged]:
    """How well each judge agrees with the oracle: at each assessment and, where it has several, at all together.

    Those that are ``comparing`` tell siblings apart, and nothing else can be measured of them.
    """
    found = []
    for judge in dict.fromkeys(each.judge for each in said):
        own = [each for each in said if each.judge == judge]
        asked = [each.value for each in Assessment if any(one.assessment == each.value for one in own)]
        parts = {each: [one for one in own if one.assessment == each] for each in asked}
        if len(parts) > 1:
            parts[EVERYTHING] = own
        judged = [_judged(judge, name, part) for name, part in parts.items()]
        found += [_within_alone(each) for each in judged] if judge in comparing else judged
    return found


def _within_alone(judged: Judged) -> Judged:
    from framegrove.evaluation.agreement import NOTHING

    figures = replace(judged.agreement, accuracy=NOTHING, across=NOTHING, calibration=NOTHING)
    return replace(judged, agreement=figures)


def _judged(judge: str, assessment: str, part: Sequence[Opinion]) -> Judged:
    from framegrove.evaluation.agreement import agreement, numbered

    found = agreement(
        [each.chance for each in part],
        [bool(each.right) for each in part],
        numbered([each.prompt for each in part]),
        numbered([each.group for each in part]),
    )
    return Judged(judge, assessment, found, *_costs(part))


def _costs(part: Sequence[Opinion]) -> tuple[float, float]:
    return float(np.mean([each.flops for each in part])), float(np.median([each.seconds for each in part]))


def against_people(
    judges: PanelConfig, pairs: Sequence[HumanPair], display: Display
) -> tuple[list[Opinion], list[Judged]]:
    """What judges say of people's pairs of videos, in this process, and how often they choose as people did.

    Raises UserError for a judge that cannot judge files of videos, and for files that are none.
    """
    for config in judges.verifiers:
        if config.reads != "frames":
            raise UserError(f"verifier {config.name} judges latents, and pairs are videos: leave it out of --judges")
        if Assessment.FINAL not in config.assessments:
            raise UserError(f"verifier {config.name} does not judge whole videos (final): leave it out of --judges")
    from actors.verifier_kinds import set_environment

    said: list[Opinion] = []
    set_environment(judges.verifiers)
    for config in judges.verifiers:
        display.begin(f"{config.name} judges {counted(len(pairs), 'pair')}")
        said += asyncio.run(_videos_judged(config, pairs, display))
    return said, [
        _chosen(config, [each for each in said if each.judge == config.name], pairs) for config in judges.verifiers
    ]


async def _videos_judged(config: VerifierConfig, pairs: Sequence[HumanPair], display: Display) -> list[Opinion]:
    """A judge's opinion of each video or, where it compares, of each pair, one after the other."""
    from actors.verifier_kinds import verifier_class

    judge: Any = verifier_class(config.kind)(config)  # one that reads frames
    alone = [(pair.prompt, (video,)) for pair in pairs for video in (pair.a, pair.b)]
    asked = list(dict.fromkeys([(pair.prompt, (pair.a, pair.b)) for pair in pairs] if config.anchors else alone))
    said = []
    try:
        await judge.ready()
        for done, (prompt, videos) in enumerate(asked):
            clips = [await asyncio.to_thread(frames_of_video, video) for video in videos]
            work = ScoreWork((0,), Assessment.FINAL, config.name, ((1,),) if config.anchors else ())
            scored = await judge.score(work, prompt, *clips)
            chance = scored.answers[0][1] if config.anchors else chance_of(config, scored)
            cost, which = scored.cost, _called(*videos)
            said.append(Opinion(config.name, PAIRS, prompt, prompt, which, chance, None, cost.flops, cost.seconds))
            display.show((done + 1) / len(asked), f"{done + 1} of {len(asked)}")
    finally:
        judge.close()
    return said


def frames_of_video(path: File) -> Frames:
    """The frames of a video that judges are shown: eight a second at most, and 257 at most. Raises MediaError."""
    from framegrove.media.clips import read_clip
    from framegrove.media.probe import opened_video

    with opened_video(path) as (_, stream):
        rate, sides = float(stream.average_rate or _FPS), (stream.height, stream.width)
    # A video that is turned when it is shown is as wide as it is stored high.
    return read_clip(path, min(rate, _FPS), _MOST, [sides, (sides[1], sides[0])]).frames


def _called(*videos: File) -> str:
    """A video or a pair of them, in the table of opinions."""
    return " | ".join(map(str, videos))


def _chosen(config: VerifierConfig, said: Sequence[Opinion], pairs: Sequence[HumanPair]) -> Judged:
    """A judge beside people: how often it prefers what they did, and how well its certainty says so.

    The probability of a choice is the logistic function of the difference of log-odds (Bradley and Terry, 1952).
    People's ties are left out; the judge's count one half. A judge that compares says nothing of a video alone.
    """
    from framegrove.evaluation.agreement import NOTHING, agreement, numbered

    chance = {(each.prompt, each.which): each.chance for each in said}
    decided = [(pair, pair.decided) for pair in pairs if pair.decided is not None]
    prompts = numbered([pair.prompt for pair, _ in decided])
    if config.anchors:
        first = [chance[pair.prompt, _called(pair.a, pair.b)] for pair, _ in decided]
    else:
        first = [_preference(chance[pair.prompt, str(pair.a)], chance[pair.prompt, str(pair.b)]) for pair, _ in decided]
    choices = agreement(first, [pair.choice == "a" for pair, _ in decided], prompts)
    if config.anchors:
        found = replace(choices, pairs=0, within=NOTHING, across=NOTHING)
        return Judged(config.name, PAIRS, found, *_costs(said))
    videos = agreement(
        [chance[pair.prompt, str(video)] for pair, both in decided for video in both],
        [right for _ in decided for right in (True, False)],
        [prompt for prompt in prompts for _ in range(2)],
    )
    found = replace(choices, right=len(decided), pairs=videos.pairs, within=videos.within, across=videos.across)
    return Judged(config.name, PAIRS, found, *_costs(said))


def _preference(one: float, other: float) -> float:
    from framegrove.verification.scoring import probability

    return probability(log_odds(one) - log_odds(other))


def _finish(
    found: Sequence[Judged], said: Sequence[Opinion], facts: Mapping[str, Any], out: File, display: Display
) -> None:
    """Write what was found and print it. Raises UserError where nothing was judged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from framegrove.evaluation.agreement import as_json
    from framegrove.files import replacing, write_json

    if not found:
        raise UserError("nothing was judged: give a policy that judges branches, as --policies beam,linear")
    with replacing(out / RESULTS) as partial:
        pq.write_table(pa.Table.from_pylist([asdict(each) for each in said]), partial)
    write_json(out / FIGURES, {**facts, "judges": [as_json(each) for each in found]})
    _tell(found, display)
    display.say(f"{out / RESULTS}\n{out / FIGURES}")


def _tell(found: Sequence[Judged], display: Display) -> None:
    from rich.table import Table

    people = any(each.assessment == PAIRS for each in found)
    table = Table(
        title=f"Judges against {'people' if people else 'the oracle'}, with 95% bootstrap intervals over prompts"
    )
    within = "AUC within prompts" if people else "AUC within siblings"
    columns = ("judge", "of", "verdicts", "accuracy", within, "AUC across", "calibration error", "FLOPs", "seconds")
    for column in columns:
        table.add_column(column, justify="left" if column in ("judge", "of") else "right", overflow="fold")
    for each in found:
        figures = each.agreement
        measured = (figures.accuracy, figures.within, figures.across, figures.calibration)
        table.add_row(
            each.judge,
            each.assessment,
            str(figures.verdicts),
            *map(_shown, measured),
            f"{each.flops:.3g}" if each.flops else "0",
            f"{each.seconds:.3g}",
        )
    display.console.print(table)
    display.say("FLOPs (mean) and seconds (median) are those of one verdict, asked for by itself")


def _shown(interval: Interval) -> str:
    return "-" if math.isnan(interval.mean) else str(interval)
