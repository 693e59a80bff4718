"""The rounds of jobs.improve: searches, training on what they left, and a look at what has become of the model."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
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
from jobs.laboratory import ORACLE, Laboratory, on_ray, over_cache, side_by_side
from jobs.measuring import search_of

if TYPE_CHECKING:
    from actors.model_files import ModelFiles
    from framegrove.config.model import ModelSource
    from framegrove.config.search import SearchConfig
    from framegrove.config.suite import Setting
    from framegrove.digits.world import DigitObject
    from framegrove.evaluation.guards import GuardRow, Verdict
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
            report = self._reported(number, rows, best_rows, before, found)
            reports.append(report)
            draw(of_rounds, self.out / PICTURE)
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

    def _folder(self, number: int) -> File:
        return self.out / f"round-{number}"

    def _laboratory(
        self, source: ModelSource, search: SearchConfig, judge: PanelConfig | None
    ) -> contextlib.AbstractContextManager[Laboratory]:
        panel = load_panel(self.config.verifier)
        place = functools.partial(over_cache, self.cache) if self.cache else on_ray
        return place(source, panel, search, self.generators, searches=self.searches, held_out=judge)

    def _collected(self, source: ModelSource, number: int) -> collecting.Findings:
        """What searches with a model leave, in a round's folder."""
        from framegrove.config.base import load
        from framegrove.config.search import SearchConfig

        given, seed = self.config.collect, self.config.train.seed + number * _APART
        options = json.dumps({given.policy: given.options})
        search = load(
            SearchConfig,
            None,
            ["speculate=off", f"policy={given.policy}", f"budget={given.budget}", f"options={options}"],
        )
        self.display.begin(f"round {number}: reading the model")
        task = collecting.Task.of(
            source,
            search,
            collecting.read_prompts(given.prompts, seed),
            units=self.config.units,
            seed=seed,
            margin=given.margin,
            least=given.least,
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
        """Train on what a round's searches left. A run that is finished is left alone."""
        run = self._folder(number) / "run"
        if (run / MODEL).is_dir():
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
                    "passed collect.margin and collect.least; lower them, or search for more prompts"
                )
            else:
                data.append(DataConfig(path=str(self._folder(number) / COLLECTED / name), weight=each.weight))
        model = self.config.train.model.model_copy(update={"start": start})
        self.train(self.config.train.model_copy(update={"data": tuple(data), "model": model}), run)

    def _guarded(self, source: ModelSource, number: int) -> list[GuardRow]:
        """How good a round's model is, by what it was not trained on."""
        from actors.model_files import ModelFiles
        from framegrove.config.search import SearchConfig
        from framegrove.evaluation import guards

        guard, display = self.config.guard, self.display
        display.begin(f"round {number}: reading the model")
        files, judge = ModelFiles.read(source), None if guard.judge == ORACLE else load_panel(guard.judge)
        prompts = _guard_prompts(self.config)
        search = SearchConfig(speculate="off")
        with self._laboratory(source, search, judge) as lab:
            facts = {
                **lab.run(lab.runner.identity(search)),
                "guard": guard.model_dump(mode="json"),
                "units": self.config.units,
            }
            ledger = guards.open_ledger(self._folder(number) / "guards.jsonl", facts)
            wanted = [
                (index, setting)
                for index in range(len(prompts))
                for setting in guard.settings
                if not ledger.has(index, str(setting))
            ]
            if wanted:
                look = _Look(self.config, files, lab, prompts, ledger, judge, display, len(wanted))
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
    ) -> dict[str, Any]:
        from framegrove.evaluation.guards import verdicts
        from framegrove.training import curve

        lines = curve.read(self._folder(number) / "run" / curve.LINES)
        over_first = verdicts(first, rows)
        report = {
            "round": number,
            "collected": found.summary(),
            "training": {"steps": lines[-1]["step"], "seconds": lines[-1]["seconds"]} if lines else {},
            "over_first": [each.as_json() for each in over_first],
            "over_best": [each.as_json() for each in verdicts(best, rows)],
        }
        write_json(self._folder(number) / REPORT, report)
        self._tell(number, over_first)
        return report

    def _tell(self, number: int, found: Sequence[Verdict]) -> None:
        from rich.table import Table

        table = Table(title=f"Round {number} beside the first model, the same prompts and seeds; 95% intervals")
        for column in (
            "setting",
            "right, by the judge apart",
            "gain",
            "by the panel",
            "gain",
            "motion",
            "variety",
            "worse",
        ):
            table.add_column(column, justify="left" if column == "setting" else "right")
        for each in found:
            ratios = ["-" if ratio is None else f"x {ratio:.2f}" for ratio in (each.motion, each.variety)]
            gains = [str(gain.difference) for gain in (each.gain, each.panel_gain)]
            table.add_row(
                each.setting, str(each.judged), gains[0], str(each.panel), gains[1], *ratios, f"{each.worse:.0%}"
            )
        self.display.console.print(table)

    def _publish(self, number: int) -> None:
        """The best model so far, at OUT/model."""
        with replacing(self.out / MODEL) as partial:
            shutil.copytree(self._folder(number) / "run" / MODEL, partial)
        write_json(self.out / BEST, {"round": number})


def _source(train: TrainConfig, start: str | None) -> ModelSource:
    return train.model.model_copy(update={"start": start}).source


def _guard_prompts(config: ImproveConfig) -> list[tuple[str, tuple[DigitObject, ...]]]:
    """Prompts to hold a model to, with the objects that the oracle looks for."""
    guard = config.guard
    if not guard.prompts.startswith("digits:"):
        if guard.judge == ORACLE:
            raise UserError("the oracle judges prompts of the digits world alone: set guard.prompts to digits:N")
        return [(prompt, ()) for prompt, _ in collecting.read_prompts(guard.prompts, guard.seed)]
    from framegrove.digits import world

    count = collecting.read_prompts(guard.prompts, guard.seed).count
    return [(world.caption(each), each) for each in world.prompts(count, guard.seed, digits=guard.digits)]


@dataclass(frozen=True, eq=False)
class _Look:
    """Makes the videos of a prompt in a setting, and has them judged."""

    config: ImproveConfig
    files: ModelFiles
    lab: Laboratory
    prompts: Sequence[tuple[str, tuple[DigitObject, ...]]]
    ledger: Ledger[GuardRow]
    judge: PanelConfig | None
    display: Display
    count: int

    async def one(self, wanted: tuple[int, Setting]) -> None:
        """Judge one prompt in one setting."""
        from framegrove.evaluation.guards import GuardRow, variety_of

        index, setting = wanted
        guard, (prompt, objects) = self.config.guard, self.prompts[index]
        varied = index < guard.varied and setting == guard.settings[0]
        runner = self.lab.searching(search_of(self.lab.search, setting), setting.panel)
        done = len(self.ledger.rows)
        self.display.show(min(done / self.count, 1.0), f"{setting}: {prompt}")
        judged, panel, motion, prices, latents = [], [], [], [], []
        for seed in range(guard.same if varied else 1):
            record = await runner.search(self._request(prompt, guard.seed + index + seed * _APART, setting))
            judged.append(await self._judged(record, objects))
            panel.append(self._chance(await self.lab.runner.judge(record, again=setting.panel is not None)))
            motion.append(self._motion(record, objects))
            prices.append(float((record.outcome.sampling.spent + record.outcome.scoring.spent).all_flops))
            if varied:
                latents.append(await self._latents(record))
        count = len(judged)
        right, chance, moved, price = (sum(each) / count for each in (judged, panel, motion, prices))
        self.ledger.add(GuardRow(index, str(setting), count, right, chance, moved, variety_of(latents), price))

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
        from framegrove.search.fusion import Panel
        from framegrove.types import Assessment

        panel = self.lab.panel if judge is None else Panel(judge.verifiers, {})
        return math.exp(panel.log_p(Assessment.FINAL, tuple(scores.items())))

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
