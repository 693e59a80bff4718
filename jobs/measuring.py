"""Videos that are made by searches and measured one by one, what is measured being on the disk: evaluations go on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from framegrove.config.suite import Setting
from framegrove.errors import UserError
from framegrove.search import policies
from framegrove.words import counted
from jobs.laboratory import side_by_side

if TYPE_CHECKING:
    from actors.model_files import ModelFiles
    from framegrove.config.search import SearchConfig
    from framegrove.digits.world import DigitObject
    from framegrove.evaluation.ledger import Ledger
    from framegrove.evaluation.report import SearchRecord
    from framegrove.evaluation.results import Row
    from framegrove.types import GenerationRequest
    from jobs.console import Display
    from jobs.laboratory import Laboratory

SEED = 90_000  # of the prompts; clips that models are trained on have small seeds, and another split


@dataclass(frozen=True)
class Item:
    """One video to be made and measured."""

    index: int
    setting: Setting
    objects: tuple[DigitObject, ...]
    request: GenerationRequest


def items(
    files: ModelFiles,
    settings: Sequence[Setting],
    count: int,
    seed: int,
    *,
    digits: int | None = None,
    units: int | None = None,
) -> list[Item]:
    """Prompt by prompt, so that an evaluation that is cut short has whole pairs; ``units`` of None: the model's own."""
    from framegrove.digits import world
    from framegrove.types import GenerationRequest

    recipe = files.recipe
    return [
        Item(
            index,
            setting,
            objects,
            GenerationRequest(
                prompt=world.caption(objects),
                seed=seed + index,
                units=units or recipe.units,
                height=recipe.height,
                width=recipe.width,
                policy=setting.policy,
                budget=setting.budget,
                until=setting.until,
            ),
        )
        for index, objects in enumerate(world.prompts(count, seed, digits=digits))
        for setting in settings
    ]


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


def open_ledger(lab: Laboratory, path: Path, which: Mapping[str, Any]) -> Ledger[Row]:
    """The rows that are there already; ``which``, JSON values, says what is measured besides what ``lab`` is.

    Raises UserError where the file holds others.
    """
    from framegrove.evaluation import results

    identity = lab.run(lab.runner.identity())
    identity["search"] = {key: value for key, value in identity["search"].items() if key not in ("policy", "budget")}
    return results.open_ledger(path, {**identity, **lab.facts, **which})


def measure(lab: Laboratory, wanted: Sequence[tuple[Item, Ledger[Row]]], display: Display) -> None:
    """Make the videos of which a ledger has no row yet, and add it."""
    missing = [(item, ledger) for item, ledger in wanted if not ledger.has(item.index, item.setting)]
    if len(missing) < len(wanted):
        there = f"{len(wanted) - len(missing)} of {counted(len(wanted), 'video')} are there already"
        display.say(f"{there}: going on with the others" if missing else there)
    ledgers = {id(item): ledger for item, ledger in missing}

    async def add(item: Item, record: SearchRecord) -> None:
        ledgers[id(item)].add(await measured(lab, item, record))

    make(lab, [item for item, _ in missing], add, display)


def make(
    lab: Laboratory, items: Sequence[Item], then: Callable[[Item, SearchRecord], Awaitable[None]], display: Display
) -> None:
    """Make some videos, and hand each one's record over as soon as it is there."""
    if items:
        display.begin("connecting to the workers")
        with lab.connected():
            lab.run(_make(lab, items, then, display))


async def _make(
    lab: Laboratory, items: Sequence[Item], then: Callable[[Item, SearchRecord], Awaitable[None]], display: Display
) -> None:
    made = 0

    async def one(item: Item) -> None:
        nonlocal made
        display.show(made / len(items), f"{made} of {len(items)}, now {item.setting}: {item.request.prompt}")
        runner = lab.searching(search_of(lab.search, item.setting), item.setting.panel)
        await then(item, await runner.search(item.request))
        made += 1

    await side_by_side(lab, items, one, display, f"making {counted(len(items), 'video')}")


async def measured(lab: Laboratory, item: Item, record: SearchRecord) -> Row:
    """The row of one video."""
    from framegrove.digits.travel import travel_of
    from framegrove.evaluation.report import busy_seconds, lost
    from framegrove.evaluation.results import Row
    from framegrove.types import Assessment, SampleWork

    outcome = record.outcome
    panel = await lab.runner.judge(record, again=item.setting.panel is not None)  # all settings by the same judges
    verdict = lab.verdict(record, item.objects)
    travel = travel_of(record.frames, item.objects, verdict)
    sampling = [span for span in outcome.spans if isinstance(span.work, SampleWork)]
    scoring = [span for span in outcome.spans if not isinstance(span.work, SampleWork)]
    return Row(
        prompt_index=item.index,
        prompt=item.request.prompt,
        objects=len(item.objects),
        setting=item.setting,
        units=item.request.units,
        seed=item.request.seed,
        oracle_score=verdict.score,
        fully_right=verdict.fully_right,
        verifier_score=sum(panel.values()) / len(panel),
        nfe=outcome.sampling.spent.nfe,
        generator_flops=outcome.sampling.certain.flops,
        decoding_flops=outcome.sampling.certain.decoding,
        verifier_flops=outcome.scoring.certain.flops,
        wasted_flops=(lost(outcome.sampling) + lost(outcome.scoring)).all_flops,
        single_flops=record.single.all_flops,
        branches=len(outcome.nodes),
        seconds=outcome.seconds,
        generators_busy=busy_seconds(sampling) / (lab.workers[0] * outcome.seconds),
        verifiers_busy=busy_seconds(scoring) / (lab.workers[1] * outcome.seconds),
        panel_log_p=lab.panel.log_p(Assessment.FINAL, tuple(panel.items())),
        search_score=_search_score(record),
        travel=travel.pixels_per_frame,
        moving_as_asked=travel.as_asked,
        held_out=await lab.held_out(record),
    )


def _search_score(record: SearchRecord) -> float | None:
    """The winner's path score, where its policy judged it."""
    winner = next(node for node in record.outcome.nodes if node.path == record.outcome.winner)
    return winner.judgements[-1].total if winner.judgements else None
