"""The rounds of jobs.improve: searches, training on what they left, and a look at what has become of the model."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as File
from typing import TYPE_CHECKING, Any

from framegrove.config.improve import COLLECTED, ImproveConfig
from framegrove.config.train import MODEL, DataConfig, TrainConfig
from framegrove.config.verifier import PanelConfig, load_panel
from framegrove.errors import UserError
from framegrove.files import replacing, write_json
from framegrove.words import counted
from jobs import collecting
from jobs.evaluations.laboratory import ORACLE, Laboratory, on_ray, over_cache, side_by_side
from jobs.evaluations.measuring import search_of

if TYPE_CHECKING:
    from actors.model_files import ModelFiles
    from framegrove.config.model import ModelSource
    from framegrove.config.search import SearchConfig
    from framegrove.config.suite import Setting
    from framegrove.digits.world import DigitObject
    from framegrove.evaluation.guards import GuardResult, GuardRow, Instead
    from framegrove.evaluation.ledger import Ledger
    from framegrove.evaluation.report import SearchRecord
    from framegrove.types import GenerationRequest
    from jobs.console import Display

REPORT, BEST, PICTURE = "report.json", "best.json", "improved.png"
_APART = 1_000_000  # between the seeds of two rounds' searches


@dataclass(frozen=True, eq=False)
class Loop:
    """A loop in ``out``. ``train`` trains a configuration in a folder; ``cache``: search over it, in this process."""

    config: ImproveConfig
    out: File
    train: Callable[[TrainConfig, File], File]
    generators: int
    searches: int
    cache: File | None
    display: Display

    def run(self) -> list[dict[str, Any]]:
        """All rounds, or what is left of them; what each round was worth."""
        config, display = self.config, self.display
        from framegrove.evaluation.guards import draw

        before = self._guarded(config.train.model.source, 0)
        best, best_rows, start = 0, before, config.train.model.start
        reports: list[dict[str, Any]] = []
        of_rounds = {0: before}
        for number in range(1, config.rounds + 1):
            source = _source(config.train, start)
            found = self._collected(source, number)
            self._trained(found, start, number)
            start = str(self._folder(number) / "run")
            rows = self._guarded(_source(config.train, start), number)
            of_rounds[number] = rows
            report = self._reported(number, rows, best_rows, before, found, reports)
            reports.append(report)
            draw(of_rounds, self._groups, self.out / PICTURE)
            gain = report["over_best"][0]["gain"]["difference"]["mean"]
            if gain > config.guard.gain:
                best, best_rows = number, rows
                self._publish(number)
            write_json(self.out / REPORT, {"rounds": reports, "best": best})
            if gain <= config.guard.gain:
                display.say(
                    f"round {number} gained {gain:+.3f} by the judge apart, no more than {config.guard.gain:g}: the "
                    f"loop ends, and the model of round {best} is the best"
                )
                break
        return reports

    @functools.cached_property
    def _cases(self) -> tuple[Case, ...]:
        """All that models are held to; read once, files of prompts may be long."""
        return tuple(_cases(self.config))

    @property
    def _groups(self) -> list[tuple[str, str]]:
        """Kinds of prompts with their settings; what counts first."""
        return list(dict.fromkeys(case.group for case in self._cases))

    def _folder(self, number: int) -> File:
        return self.out / f"round-{number}"

    def _laboratory(
        self, source: ModelSource, search: SearchConfig, judge: PanelConfig | None
    ) -> contextlib.AbstractContextManager[Laboratory]:
        panel = load_panel(self.config.verifier)
        panel.check_absolute("which of them are right, for a model to learn from: choose another verifier")
        place = functools.partial(over_cache, self.cache) if self.cache else on_ray
        return place(source, panel, search, self.generators, searches=self.searches, held_out=judge)

    def _collected(self, source: ModelSource, number: int) -> collecting.Findings:
        """What searches with a model leave, in a round's folder."""
        given, seed = self.config.collect, _seed(self.config, number)
        options = json.dumps({given.policy: given.options})
        search = collecting.search_config(given.policy, given.budget, [f"options={options}"])
        self.display.begin(f"round {number}: reading the model")
        task = collecting.CollectingTask.of(
            source,
            search,
            _prompts(self.config, number),
            units=self.config.units,
            seed=seed,
            margin=given.margin,
            least=given.least,
            most=given.most,
        )
        folder = self._folder(number) / COLLECTED
        folder.mkdir(parents=True, exist_ok=True)
        with self._laboratory(source, search, None) as lab:
            found = collecting.collect(task, lab, folder, self.display)
        self.display.say(
            f"round {number}: {counted(found.examples, 'winner')} and {counted(found.pairs, 'pair')} of "
            f"{counted(found.searches, 'search')}"
        )
        return found

    def _trained(self, found: collecting.Findings, start: str | None, number: int) -> None:
        """Train on what a round's searches left; a run that was interrupted is resumed, a finished one left alone."""
        run = self._folder(number) / "run"
        finished = self._folder(number) / "trained.json"  # a run has a model from its first checkpoint on
        if finished.is_file():
            return
        left_by = {"examples": found.examples, "pairs": found.pairs}
        data = []
        for each in self.config.train.data_sets:
            name = each.path.removeprefix(COLLECTED)
            if name == each.path:
                data.append(each)
            elif left_by.get(name) == 0:
                raise UserError(
                    f"round {number} has no {name} left to learn from: of {len(found.compared)} pairs of siblings none "
                    "passed collect.margin, collect.least and collect.most; loosen them, or search for more prompts"
                )
            else:
                data.append(DataConfig(path=str(self._folder(number) / COLLECTED / name), weight=each.weight))
        model = self.config.train.model.model_copy(update={"start": start})
        self.train(self.config.train.model_copy(update={"data": tuple(data), "model": model}), run)
        write_json(finished, {"steps": self.config.train.steps})

    def _guarded(self, source: ModelSource, number: int) -> list[GuardRow]:
        """How good a round's model is, by what it was not trained on."""
        from actors.model_files import ModelFiles
        from framegrove.config.search import SearchConfig
        from framegrove.evaluation import guards

        guard, display = self.config.guard, self.display
        display.begin(f"round {number}: reading the model")
        files, judge = ModelFiles.read(source), None if guard.judge == ORACLE else load_panel(guard.judge)
        search = SearchConfig(speculate="off")
        with self._laboratory(source, search, judge) as lab:
            facts = {
                **lab.run(lab.runner.identity(search)),
                "guard": guard.model_dump(mode="json"),
                "units": self.config.units,
                "prompts": collecting.digest(
                    "\n".join(case.prompt for case in self._cases)
                ).hex(),  # not those that are searched for
            }
            ledger = guards.open_ledger(self._folder(number) / "guards.jsonl", facts)
            wanted = [case for case in self._cases if not ledger.has(case.index, case.group)]
            if wanted:
                look = _Look(self.config, files, lab, ledger, judge, display, len(self._cases))
                display.begin("connecting to the workers")
                with lab.connected():
                    lab.run(
                        side_by_side(lab, wanted, look.one, display, f"round {number}: holding the model to its judge")
                    )
            return ledger.rows

    def _reported(
        self,
        number: int,
        rows: Sequence[GuardRow],
        best: Sequence[GuardRow],
        first: Sequence[GuardRow],
        found: collecting.Findings,
        earlier: Sequence[Mapping[str, Any]],
    ) -> dict[str, Any]:
        from framegrove.evaluation.guards import instead, verdicts
        from framegrove.training import curve

        groups, training = self._groups, curve.cost(self._folder(number) / "run")
        over_first = verdicts(first, rows, groups)
        costs = [(each["collected"]["flops"], each["training"]["flops"]) for each in earlier]
        costs.append((found.flops, training["flops"]))
        searched, trained = (sum(column) for column in zip(*costs, strict=True))
        worth = instead(first, rows, groups, searched + trained)
        report = {
            "round": number,
            "collected": found.summary(),
            "training": training,
            "over_first": [each.as_json() for each in over_first],
            "over_best": [each.as_json() for each in verdicts(best, rows, groups)],
            "instead": [each.as_json() for each in worth],
        }
        write_json(self._folder(number) / REPORT, report)
        self._tell(number, over_first)
        self._tell_cost(searched, trained, worth)
        return report

    def _tell_cost(self, searched: float, trained: float, worth: Sequence[Instead]) -> None:
        self.display.say(f"cost so far: {searched:.2e} FLOPs of searches and {trained:.2e} of training")
        for each in worth:
            paid = "nothing is saved" if each.videos is None else f"paid for after {counted(each.videos, 'video')}"
            self.display.say(
                f"unsearched, beside {each.setting} with the first model: right {each.difference.difference} more "
                f"often, at {each.saved:.2e} FLOPs less a video; {paid}"
            )

    def _tell(self, number: int, found: Sequence[GuardResult]) -> None:
        from rich.table import Table

        table = Table(title=f"Round {number} beside the first model, the same prompts and seeds; 95% intervals")
        for column in (
            "prompts",
            "setting",
            "right, by the judge apart",
            "gain",
            "by the panel",
            "gain",
            "motion",
            "variety",
            "worse",
        ):
            table.add_column(column, justify="left" if column in ("prompts", "setting") else "right")
        for each in found:
            ratios = ["-" if ratio is None else f"x {ratio:.2f}" for ratio in (each.motion, each.variety)]
            gains = [str(gain.difference) for gain in (each.gain, each.panel_gain)]
            table.add_row(
                each.kind,
                each.setting,
                str(each.judged),
                gains[0],
                str(each.panel),
                gains[1],
                *ratios,
                f"{each.worse:.0%}",
            )
        self.display.console.print(table)

    def _publish(self, number: int) -> None:
        """The best model so far, at OUT/model."""
        with replacing(self.out / MODEL) as partial:
            shutil.copytree(self._folder(number) / "run" / MODEL, partial)
        write_json(self.out / BEST, {"round": number})


def _seed(config: ImproveConfig, number: int) -> int:
    """Of a round's searches."""
    return config.train.seed + number * _APART


def _prompts(config: ImproveConfig, number: int) -> collecting.Prompts:
    """What a round searches for."""
    return collecting.read_prompts(config.collect.prompts, _seed(config, number), config.collect.digits)


def _source(train: TrainConfig, start: str | None) -> ModelSource:
    return train.model.model_copy(update={"start": start}).source


@dataclass(frozen=True)
class Case:
    """A prompt, the ``index``-th of its ``kind``, in a setting; ``objects`` are what the oracle looks for."""

    kind: str
    index: int
    prompt: str
    objects: tuple[DigitObject, ...]
    setting: Setting

    @property
    def group(self) -> tuple[str, str]:
        """What it is averaged with."""
        return self.kind, str(self.setting)


_KINDS = {1: "one digit", 2: "two digits"}


def _cases(config: ImproveConfig) -> Iterator[Case]:
    """All that a model is held to, what counts first."""
    guard = config.guard
    unsearched, *others = guard.settings
    kinds = _guard_prompts(config)
    for kind, prompts in kinds.items():
        for index, given in enumerate(prompts):
            yield Case(kind, index, *given, unsearched)
    for kind, prompts in itertools.islice(kinds.items(), 1 if guard.searched else None):
        for setting in others:
            for index, given in enumerate(prompts[: guard.searched]):
                yield Case(kind, index, *given, setting)


def _guard_prompts(config: ImproveConfig) -> dict[str, list[tuple[str, tuple[DigitObject, ...]]]]:
    """Prompts to hold a model to, by their kind, with what the oracle looks for. No round searches for any of them."""
    guard, spec = config.guard, config.guard.prompts
    searched_for = {prompt for number in range(1, config.rounds + 1) for prompt, _ in _prompts(config, number)}
    given = collecting.read_prompts(spec, guard.seed)
    if not collecting.are_digits(spec):
        if guard.judge == ORACLE:
            raise UserError("the oracle judges prompts of the digits world alone: set guard.prompts to digits:N")
        left: list[tuple[str, tuple[DigitObject, ...]]] = [
            (prompt, ()) for prompt, _ in given if prompt not in searched_for
        ]
        if not left:
            raise UserError(f"all prompts of {spec} are searched for, too: a model is held to others")
        return {"": left}
    from framegrove.digits import world

    return {
        _KINDS[count]: [(world.caption(each), each) for each in _others(guard.seed, count, searched_for, given.count)]
        for count in guard.digits
    }


def _others(seed: int, digits: int, searched_for: Collection[str], count: int) -> Iterator[tuple[DigitObject, ...]]:
    """Prompts of the digits world, but for those that are searched for. Of one digit, few are left: they come again."""
    from framegrove.digits import world

    drawn = (world.prompt(seed, index, digits=digits) for index in itertools.count())
    return itertools.islice((each for each in drawn if world.caption(each) not in searched_for), count)


@dataclass(frozen=True, eq=False)
class _Look:
    """Makes the videos of a prompt in a setting, and has them judged."""

    config: ImproveConfig
    files: ModelFiles
    lab: Laboratory
    ledger: Ledger[GuardRow]
    judge: PanelConfig | None
    display: Display
    count: int

    async def one(self, case: Case) -> None:
        """Judge one prompt in one setting."""
        from framegrove.evaluation.guards import GuardRow, variety_of

        guard, setting, prompt, objects = self.config.guard, case.setting, case.prompt, case.objects
        varied = case.index < guard.varied and setting == guard.settings[0]
        runner = self.lab.searching(search_of(self.lab.search, setting), setting.panel)
        done = len(self.ledger.rows)
        self.display.show(done / self.count, f"{setting}: {prompt}")
        judged, panel, motion, prices, latents = [], [], [], [], []
        for seed in range(guard.same if varied else 1):
            record = await runner.search(self._request(prompt, guard.seed + case.index + seed * _APART, setting))
            judged.append(await self._judged(record, objects))
            panel.append(self._chance(await self.lab.runner.judge(record, again=setting.panel is not None)))
            motion.append(self._motion(record, objects))
            prices.append(float((record.outcome.sampling.spent + record.outcome.scoring.spent).all_flops))
            if varied:
                latents.append(await self._latents(record))
        count = len(judged)
        right, chance, moved, price = (sum(each) / count for each in (judged, panel, motion, prices))
        row = GuardRow(case.kind, case.index, str(setting), count, right, chance, moved, variety_of(latents), price)
        self.ledger.add(row)

    def _request(self, prompt: str, seed: int, setting: Setting) -> GenerationRequest:
        from framegrove.types import GenerationRequest

        recipe = self.files.recipe
        return GenerationRequest(
            prompt=prompt,
            seed=seed,
            units=self.config.units or recipe.units,
            height=recipe.height,
            width=recipe.width,
            policy=setting.policy,
            budget=setting.budget,
            until=setting.until,
        )

    async def _judged(self, record: SearchRecord, objects: Sequence[DigitObject]) -> float:
        if self.judge is None:
            return float(self.lab.verdict(record, objects).fully_right)
        return self._chance(await self.lab.held_out(record), self.judge)

    def _chance(self, scores: Mapping[str, float], judge: PanelConfig | None = None) -> float:
        """The probability that a finished video is right, from the scores of a panel: the searches' own if absent."""
        from framegrove.search.fusion import Panel, chance
        from framegrove.types import Assessment

        panel = self.lab.panel if judge is None else Panel(judge.verifiers, {})
        return chance(Assessment.FINAL, tuple(scores.items()), panel.log_p)

    def _motion(self, record: SearchRecord, objects: Sequence[DigitObject]) -> float:
        """Px a frame: by how far digits travel, or by optical flow."""
        if objects:
            from framegrove.digits.travel import travel_of

            return travel_of(record.frames, objects, self.lab.verdict(record, objects)).pixels_per_frame
        from framegrove.curation.measures import motion

        return motion(record.frames, record.fps) * max(record.frames.shape[1:3]) / record.fps

    async def _latents(self, record: SearchRecord) -> Any:
        import torch

        from framegrove.types import prefixes

        units = await self.lab.runner.latents(record)
        return torch.cat([units[prefix].x for prefix in prefixes(record.outcome.winner)], dim=1).numpy()
