"""Videos that are made by searches and measured one by one, what is measured being on the disk: evaluations go on."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from framegrove.config.suite import Setting
from framegrove.errors import UserError
from framegrove.search import policies
from framegrove.words import counted
from jobs.evaluations.laboratory import side_by_side

if TYPE_CHECKING:
    from framegrove.config.model import Native
    from framegrove.config.search import SearchConfig
    from framegrove.digits.world import DigitObject
    from framegrove.evaluation.ledger import Ledger
    from framegrove.evaluation.report import SearchRecord
    from framegrove.evaluation.results import Sample
    from framegrove.types import GenerationRequest
    from jobs.console import Display
    from jobs.evaluations.laboratory import Laboratory
    from jobs.evaluations.prompts import Prompts

SEED = 90_000  # of the prompts; clips that models are trained on have small seeds, and another split
VIDEOS = "videos"  # the folder of what is kept, below an evaluation's own
UNFINISHED = "unfinished"  # and that of searches that go on where they were interrupted
_TAKES_APART = 100_000  # between the seeds of two takes: more than there are prompts


@dataclass(frozen=True)
class Item:
    """One video to be made and measured; ``file`` is where it is kept, below the evaluation's folder.

    ``objects`` are what the oracle of the digits world is asked for, None for other prompts.
    """

    index: int
    setting: Setting
    objects: tuple[DigitObject, ...] | None
    request: GenerationRequest
    take: int = 0
    dimensions: tuple[str, ...] = ()
    file: str = ""

    @property
    def place(self) -> tuple[int, tuple[Setting, int]]:
        """That of its row in a ledger."""
        return self.index, (self.setting, self.take)


def items(
    native: Native, settings: Sequence[Setting], prompts: Prompts, seed: int, *, units: int | None = None
) -> list[Item]:
    """Prompt by prompt, so that an evaluation that is cut short has whole pairs; ``units`` of None: the model's own.

    All settings make their videos of a prompt from the same seeds.
    """
    from framegrove.types import GenerationRequest

    return [
        Item(
            each.index,
            setting,
            each.objects,
            GenerationRequest(
                prompt=each.text,
                seed=seed + each.index + take * _TAKES_APART,
                units=units or native.units,
                height=native.height,
                width=native.width,
                policy=setting.policy,
                budget=setting.budget,
                until=setting.until,
            ),
            take,
            each.dimensions,
            str(PurePosixPath(VIDEOS, folder_of(setting), prompts.video_name(each, take))),
        )
        for each in prompts.asked
        for take in range(each.takes)
        for setting in settings
    ]


def folder_of(setting: Setting) -> str:
    """The name of the folder of a setting's videos."""
    return quote(str(setting), safe=" ")


def search_of(base: SearchConfig, setting: Setting) -> SearchConfig:
    """How a setting searches: ``base``, but for what the setting says.

    Raises UserError for an unknown policy, and for options that it does not have.
    """
    entry = policies.find(setting.policy)
    own = {**base.options.get(entry.name, {}), **setting.options}
    given = {name: getattr(setting, name) for name in ("until", "fusion", "path_score")}
    changed = {name: value for name, value in given.items() if value is not None}
    changed |= {"policy": setting.policy, "budget": f"{setting.budget:g}x"}
    search = base.model_copy(update={**changed, "options": {**base.options, entry.name: own}})
    try:
        policies.options_of(search, entry)
        policies.check_until(entry, setting.until)
    except UserError as error:
        raise UserError(f"setting {setting}: {error}") from None
    return search


def open_ledger(lab: Laboratory, path: Path, which: Mapping[str, Any]) -> Ledger[Sample]:
    """The rows that are there already; ``which``, JSON values, says what is measured besides what ``lab`` is.

    Raises UserError where the file holds others.
    """
    from framegrove.evaluation import results

    identity = lab.run(lab.runner.identity())
    identity["search"] = {key: value for key, value in identity["search"].items() if key not in ("policy", "budget")}
    return results.open_ledger(path, {**identity, **lab.facts, **which})


def measure(
    lab: Laboratory, wanted: Sequence[tuple[Item, Ledger[Sample]]], display: Display, *, keep: Path | None = None
) -> None:
    """Make the videos of which a ledger has no row yet, and add it.

    With ``keep``, an evaluation's folder, each video is kept in there, and is on the disk before its row is. Searches
    on actors keep a journal there as well: one that was interrupted resumes where it was.
    """
    missing = [(item, ledger) for item, ledger in wanted if not ledger.has(*item.place)]
    if len(missing) < len(wanted):
        there = f"{len(wanted) - len(missing)} of {counted(len(wanted), 'video')} are there already"
        display.say(f"{there}: measuring the others" if missing else there)
    ledgers = {id(item): ledger for item, ledger in missing}
    journals = keep / UNFINISHED if keep is not None else None

    async def add(item: Item, record: SearchRecord) -> None:
        if keep is not None:
            await asyncio.to_thread(_keep, record, keep / item.file)
        ledgers[id(item)].add(await measured(lab, item, record, kept=keep is not None))
        if journals is not None:
            shutil.rmtree(journals / _journal_name(item), ignore_errors=True)

    make(lab, [item for item, _ in missing], add, display, journals=journals if lab.journals else None)
    if journals is not None:
        shutil.rmtree(journals, ignore_errors=True)  # all is done: what is left are those of searches with a row


def _keep(record: SearchRecord, path: Path) -> None:
    from framegrove.files import replacing
    from framegrove.media.writing import encode_mp4

    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_bytes(encode_mp4(record.frames, record.fps))


def _journal_name(item: Item) -> str:
    return f"{item.index}-{item.take}-{folder_of(item.setting)}"


def make(
    lab: Laboratory,
    items: Sequence[Item],
    then: Callable[[Item, SearchRecord], Awaitable[None]],
    display: Display,
    *,
    journals: Path | None = None,
) -> None:
    """Make some videos, and hand each one's record over as soon as it is there; searches keep ``journals`` if given."""
    if items:
        display.begin("connecting to the workers")
        with lab.connected():
            lab.run(_make(lab, items, then, display, journals))


async def _make(
    lab: Laboratory,
    items: Sequence[Item],
    then: Callable[[Item, SearchRecord], Awaitable[None]],
    display: Display,
    journals: Path | None,
) -> None:
    made = 0

    async def one(item: Item) -> None:
        nonlocal made
        display.show(made / len(items), f"{made} of {len(items)}, now {item.setting}: {item.request.prompt}")
        runner = lab.searching(search_of(lab.search, item.setting), item.setting.panel)
        journal = journals / _journal_name(item) if journals is not None else None
        if journal is not None:
            journal.mkdir(parents=True, exist_ok=True)
        await then(item, await runner.search(item.request, journal=journal))
        made += 1

    await side_by_side(lab, items, one, display, f"making {counted(len(items), 'video')}")


async def measured(lab: Laboratory, item: Item, record: SearchRecord, *, kept: bool = False) -> Sample:
    """The row of one video, which says where it is ``kept``; with what the oracle says, where that can be asked."""
    from framegrove.evaluation.report import busy_seconds, lost
    from framegrove.evaluation.results import Row, Sample
    from framegrove.types import Assessment, SampleWork

    outcome = record.outcome
    panel = await lab.runner.judge(record, again=item.setting.panel is not None)  # all settings by the same judges
    sampling = [span for span in outcome.spans if isinstance(span.work, SampleWork)]
    scoring = [span for span in outcome.spans if not isinstance(span.work, SampleWork)]
    facts: dict[str, Any] = {
        "prompt_index": item.index,
        "prompt": item.request.prompt,
        "setting": item.setting,
        "units": item.request.units,
        "seed": item.request.seed,
        "verifier_score": sum(panel.values()) / len(panel),
        "nfe": outcome.sampling.spent.nfe,
        "generator_flops": outcome.sampling.certain.flops,
        "decoding_flops": outcome.sampling.certain.decoding,
        "verifier_flops": outcome.scoring.certain.flops,
        "wasted_flops": (lost(outcome.sampling) + lost(outcome.scoring)).all_flops,
        "single_flops": record.single.all_flops,
        "branches": len(outcome.nodes),
        "seconds": outcome.seconds,
        "generators_busy": busy_seconds(sampling) / (lab.workers[0] * max(outcome.seconds, 1e-9)),
        "verifiers_busy": busy_seconds(scoring) / (lab.workers[1] * max(outcome.seconds, 1e-9)),
        "panel_log_p": lab.panel.log_p(Assessment.FINAL, tuple(panel.items())),
        "search_score": _search_score(record),
        "held_out": await lab.held_out(record),
        "take": item.take,
        "video": item.file if kept else None,
        "dimensions": item.dimensions,
        "resumed": outcome.restored > 0,
    }
    return Row(**facts, **_truth(lab, item.objects, record)) if item.objects is not None else Sample(**facts)


def _truth(lab: Laboratory, objects: Sequence[DigitObject], record: SearchRecord) -> dict[str, Any]:
    """What the oracle says of a record's winner."""
    from framegrove.digits.travel import travel_of

    verdict = lab.verdict(record, objects)
    travel = travel_of(record.frames, objects, verdict)
    return {
        "objects": len(objects),
        "oracle_score": verdict.score,
        "fully_right": verdict.fully_right,
        "travel": travel.pixels_per_frame,
        "moving_as_asked": travel.as_asked,
    }


def _search_score(record: SearchRecord) -> float | None:
    """The winner's path score, where its policy judged it."""
    winner = next(node for node in record.outcome.nodes if node.path == record.outcome.winner)
    return winner.judgements[-1].total if winner.judgements else None
