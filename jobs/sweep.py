"""Sweep one choice by Ray Tune, and see what it costs and what it is worth.

    python -m jobs.sweep --what budget --out runs/sweep-budget
    python -m jobs.sweep --what stages --data runs/digits-clips --out runs/sweep-stages

budget: a search on 1x, 2x, 4x and 8x of a sample's FLOPs. stages: new models of 1, 2 and 3 pyramid stages, each
trained for the FLOPs of --config's run and sampled without a search. --model and what goes with it is for budgets,
--config, --data and --set for stages. Every trial makes videos for the same held-out prompts and has them read by the
oracle. Leaves sweep.json and the Pareto picture sweep.png in --out, and prints the table; of stages also learning.png,
how right each model's samples are after how much training, and samples.png, the samples themselves.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from framegrove.config.verifier import load_panel
from framegrove.errors import UserError
from framegrove.search import policies
from framegrove.types import DEFAULT_POLICY
from framegrove.words import counted
from jobs.console import (
    Display,
    DtypeOption,
    LogLevelOption,
    ModelOption,
    OverwriteOption,
    PickleOption,
    VariantOption,
    VerifierOption,
    application,
    make_folder,
    model_source,
    one_line_errors,
    policy_help,
    refuse_finished,
)
from jobs.stages import comparable, draw, marks, name_of

if TYPE_CHECKING:
    from framegrove.cluster.session import Cluster
    from framegrove.config.model import ModelSource
    from framegrove.config.verifier import PanelConfig

app = application()

CONFIG = Path(__file__).parent / "configs" / "digits_sweep.yaml"
SEED = 95_000  # of the prompts; held out, and not those of jobs.evaluate


class What(StrEnum):
    """What is varied."""

    BUDGET = "budget"
    STAGES = "stages"


@dataclass(frozen=True)
class Trial:
    """What a trial found: oracle scores with a bootstrap interval, costs a video, and the end of its training."""

    label: str
    score: float
    low: float
    high: float
    fully_right: float
    flops: float
    price: float  # all parts, in samples without a search of the trial's own model
    seconds: float
    training_seconds: float = 0.0
    loss: float | None = None


@app.command()
def main(
    what: Annotated[What, typer.Option(help="budget: how much to search; stages: the pyramid's height.")],
    out: Annotated[Path, typer.Option(help="Folder for sweep.json, sweep.png and the trials.")],
    prompts: Annotated[int, typer.Option(min=1, help="Held-out prompts that each trial makes a video for.")] = 8,
    budgets: Annotated[str, typer.Option(help="Comma-separated search budgets.")] = "1x,2x,4x,8x",
    policy: Annotated[
        str, typer.Option(help=f"How to search above 1x. {policy_help()}; or module:ENTRY.")
    ] = DEFAULT_POLICY,
    stages: Annotated[str, typer.Option(help="Comma-separated numbers of pyramid stages.")] = "1,2,3",
    model: ModelOption = None,
    variant: VariantOption = None,
    dtype: DtypeOption = "float32",
    allow_pickle: PickleOption = False,
    verifier: VerifierOption = None,
    generators: Annotated[int, typer.Option(min=1, help="Generator actors.")] = 2,
    config: Annotated[Path, typer.Option(help="Training run of each number of stages.")] = CONFIG,
    data: Annotated[Path | None, typer.Option(help="Clips to train on, made by jobs.prepare.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override a key of --config (repeatable).")] = None,
    overwrite: OverwriteOption = False,
    log_level: LogLevelOption = None,
) -> None:
    """Run one trial after the other, and compare."""
    with one_line_errors(log_level), Display() as display:
        out, panel = out.absolute(), load_panel(verifier)
        if what is What.BUDGET and (data or set_):
            raise UserError("--data and --set are for --what stages, which trains: leave them out")
        if what is What.BUDGET:
            space, trial = _budgets(budgets, policy, model_source(model, variant, dtype, allow_pickle), prompts)
        else:
            overrides = [*(set_ or ()), *([f"data={data}"] if data else ())]
            space, trial = _heights(stages, config, overrides, prompts, out)
        refuse_finished(out / "sweep.json", overwrite)
        make_folder(out)
        _clear(what, space, out, display, overwrite=overwrite)
        display.begin("connecting to Ray")
        from framegrove.cluster.session import connect

        with connect() as cluster:
            found = _tuned(what.value, space, trial, out, _studio(generators, panel, cluster), display)
        _finish(what, found, prompts, out, display)
        if what is What.STAGES:
            drawn = draw({stages: marks(_folder(out, stages)) for stages in space}, out)
            display.say("\n".join(map(str, drawn)))


def _clear(what: What, space: list[Any], out: Path, display: Display, *, overwrite: bool) -> None:
    """Remove what an earlier sweep has left if that is to be replaced; otherwise its training runs go on."""
    runs = [_folder(out, stages) for stages in space if _folder(out, stages).is_dir()] if what is What.STAGES else []
    if overwrite:
        for each in (*runs, out / "tune"):
            shutil.rmtree(each, ignore_errors=True)
    elif runs:
        display.say(f"going on with {', '.join(map(str, runs))}")


def _budgets(text: str, policy: str, source: ModelSource, prompts: int) -> tuple[list[Any], dict[str, Any]]:
    from framegrove.config.search import parse_budget

    policies.find(policy)
    multiples = [parse_budget(part) for part in text.split(",") if part.strip()]
    if not multiples:
        raise UserError("nothing to sweep: give at least one of --budgets")
    from actors.model_files import ModelFiles

    return multiples, {"source": ModelFiles.read(source).source, "policy": policy, "prompts": prompts}


def _heights(
    text: str, config: Path, overrides: list[str], prompts: int, out: Path
) -> tuple[list[Any], dict[str, Any]]:
    from framegrove.config.base import load
    from framegrove.config.train import TrainConfig

    names = [part.strip() for part in text.split(",") if part.strip()]
    if not names or not all(name.isdigit() and 1 <= int(name) <= 6 for name in names):
        raise UserError(f"--stages must be numbers from 1 to 6, as in 1,2,3, not {text!r}")
    checked = load(TrainConfig, config, overrides)
    if checked.model.start is not None:
        raise UserError(f"{config}: an existing model keeps its pyramid; set model.start=null and give model.vae")
    from actors.trainer import at_absolute_paths
    from framegrove.digits import world

    heights = [int(name) for name in names]
    asked = [world.caption(objects) for objects in world.prompts(prompts, SEED)]
    runs = comparable(at_absolute_paths(checked), heights, asked)
    given = {height: run.model_dump(mode="json") for height, run in runs.items()}
    return heights, {"runs": given, "prompts": prompts, "out": str(out)}


def _studio(generators: int, panel: PanelConfig, cluster: Cluster) -> Any:
    """The studio of all trials. Raises NoRoom where its actors find none."""
    import ray

    from framegrove.cluster.placement import require

    actors = generators + sum(verifier.actors.most for verifier in panel.verifiers)
    require(cluster, [{"CPU": 1.0}] * actors, purpose="a sweep")
    return ray.remote(Studio).options(num_cpus=0).remote(generators, panel)


def _tuned(what: str, space: list[Any], given: dict[str, Any], out: Path, studio: Any, display: Display) -> list[Trial]:
    """Run the trials one after the other. Raises UserError with what a failed one said."""
    import ray
    from ray import tune

    display.begin(f"{counted(len(space), 'trial')} over {what}")
    function = {"budget": try_budget, "stages": try_stages}[what]
    # A trial only waits for actors and workers that have CPUs of their own.
    trial = tune.with_resources(tune.with_parameters(function, given=given, studio=studio), {"CPU": 0.01})
    tuner = tune.Tuner(
        trial,
        param_space={what: tune.grid_search(space)},
        tune_config=tune.TuneConfig(max_concurrent_trials=1),
        run_config=tune.RunConfig(
            name="tune", storage_path=str(out), verbose=0, callbacks=[_shown(what, len(space), display)]
        ),
    )
    try:
        results = tuner.fit()
        for error in results.errors:
            raise UserError(f"a trial failed: {_last_line(error)}")
        ray.get(studio.close.remote())
    finally:
        ray.kill(studio)
    found = [results[index].metrics or {} for index in range(len(results))]
    return [Trial(**{key: each[key] for key in Trial.__dataclass_fields__ if key in each}) for each in found]


def try_budget(config: dict[str, Any], given: dict[str, Any], studio: Any) -> None:
    """One trial: search on a budget."""
    import ray
    from ray import tune

    budget = config["budget"]
    measured = studio.measure.remote(f"{budget:g}x", given["source"], budget, given["prompts"], given["policy"])
    tune.report(ray.get(measured))


def try_stages(config: dict[str, Any], given: dict[str, Any], studio: Any) -> None:
    """One trial: train a new model of so many stages, then sample from it without a search."""
    import ray
    from ray import tune
    from ray.tune.integration.ray_train import TuneReportCallback

    from actors.trainer import fit
    from framegrove.cluster.session import connect
    from framegrove.config.model import ModelSource
    from framegrove.config.train import TrainConfig
    from framegrove.training import curve

    stages = config["stages"]
    run = TrainConfig.model_validate(given["runs"][stages])
    out = _folder(Path(given["out"]), stages)
    with connect() as cluster:
        model = fit(run, out, cluster, callbacks=[TuneReportCallback()])
    last = curve.read(out / curve.LINES)[-1]
    source = ModelSource(name=str(model))
    measured = ray.get(studio.measure.remote(name_of(stages), source, 1.0, given["prompts"]))
    tune.report({**measured, "training_seconds": last["seconds"], "loss": last["losses"]["loss"]})


def _folder(out: Path, stages: int) -> Path:
    """Where the run of so many stages is."""
    return out / f"stages-{stages}"


class Studio:
    """Makes videos and measures them; an actor, so that generators and verifier stay up from trial to trial."""

    def __init__(self, generators: int, verifier: PanelConfig) -> None:
        self._generators, self._verifier = generators, verifier
        self._source: ModelSource | None = None
        self._runner: Any = None

    async def measure(
        self, label: str, source: ModelSource, budget: float, prompts: int, policy: str = "single"
    ) -> dict[str, Any]:
        """A ``Trial`` as a dictionary: a policy on a budget over held-out prompts; at 1x there is nothing to search."""
        from actors.model_files import ModelFiles
        from actors.searches import search_runner
        from framegrove.digits import world
        from framegrove.digits.oracle import DigitsOracle
        from framegrove.evaluation.curves import bootstrap
        from framegrove.types import GenerationRequest

        if self._source != source:
            await self.close()
            runner = search_runner(source, self._verifier, generators=self._generators)
            self._source, self._runner = source, runner
        how = policy if budget > 1 else "single"
        oracle, recipe, began = DigitsOracle(), ModelFiles.read(source).recipe, time.monotonic()
        verdicts, flops, prices = [], [], []
        for index, objects in enumerate(world.prompts(prompts, SEED)):
            size = (recipe.units, recipe.height, recipe.width)
            request = GenerationRequest(world.caption(objects), SEED + index, *size, how, budget)
            record = await self._runner.search(request)
            verdicts.append(oracle.judge(record.frames, objects))
            prices.append(record.price.total)
            flops.append(prices[-1] * record.single.all_flops)
        score = bootstrap([verdict.score for verdict in verdicts])
        right = sum(verdict.fully_right for verdict in verdicts) / prompts
        seconds = (time.monotonic() - began) / prompts
        cost = (sum(flops) / prompts, sum(prices) / prompts)
        return asdict(Trial(label, score.mean, score.low, score.high, right, *cost, seconds))

    async def close(self) -> None:
        """End generators and verifier."""
        if self._runner is not None:
            await self._runner.close()


def _shown(what: str, count: int, display: Display) -> Any:
    """A callback of Tune that says what the trials report."""
    from ray import tune

    class Shown(tune.Callback):
        def __init__(self, display: Display) -> None:
            self.display, self.done = display, 0

        def __getstate__(self) -> dict[str, Any]:
            return {"done": self.done}  # Tune keeps a copy of its callbacks on disk; a terminal cannot go there

        def on_trial_result(
            self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any
        ) -> None:
            setting = f"{what} {trial.config[what]:g}"
            if "score" in result:
                self.display.say(f"{setting}: score {result['score']:.3f}, {result['flops']:.2e} FLOPs a video")
            else:
                self.display.show(self.done / count, f"{setting}: step {result['step']}, loss {result['loss']:.4f}")

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
            self.done += 1
            self.display.show(self.done / count, f"{self.done} of {count} trials")

    return Shown(display)


def _last_line(error: BaseException) -> str:
    cause = getattr(error, "cause", None) or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return lines[-1] if lines else type(cause).__name__


def _finish(what: What, found: list[Trial], prompts: int, out: Path, display: Display) -> None:
    """Write what was found and print it."""

    from rich.table import Table

    from framegrove.evaluation.curves import PRICE, CurvePoint, Interval, draw_curves, pareto
    from framegrove.files import write_json

    # Models of different pyramids have no sample in common, so that only FLOPs compare them.
    axis, shown = (PRICE, "price") if what is What.BUDGET else ("FLOPs of a video, all parts", "flops")
    points = {
        each.label: CurvePoint(each.label, getattr(each, shown), Interval(each.score, each.low, each.high))
        for each in found
    }
    best = {point.label for point in pareto(list(points.values()))}
    asked = counted(prompts, "held-out prompt")
    table = Table(title=f"Sweep over {what}, {asked}, oracle scores with 95% bootstrap intervals")
    columns = ["score", "fully right", "price", "FLOPs a video", "seconds", "Pareto"]
    if what is What.STAGES:
        columns += ["training s", "loss"]
    for column in (what.value, *columns):
        table.add_column(column, justify="left" if column == what.value else "right", overflow="fold")
    for each in found:
        cells = [str(points[each.label].score), f"{each.fully_right:.2f}", f"{each.price:.2f}x"]
        cells += [f"{each.flops:.3g}", f"{each.seconds:.1f}"]
        cells.append("yes" if each.label in best else "")
        if what is What.STAGES:
            cells += [f"{each.training_seconds:.0f}", f"{each.loss:.4f}" if each.loss is not None else ""]
        table.add_row(each.label, *cells)
    title = f"What {what} costs and is worth, {asked}"
    draw_curves({what.value: list(points.values())}, out / "sweep.png", title=title, score="oracle score", cost=axis)
    write_json(out / "sweep.json", [asdict(each) for each in found])
    display.console.print(table)
    display.say("\n".join(str(out / name) for name in ("sweep.json", "sweep.png")))


if __name__ == "__main__":
    app()
