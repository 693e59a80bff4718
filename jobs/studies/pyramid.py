"""The study of pyramids: new models, each trained for the same FLOPs and sampled without a search.

The comparison of PFM's figure 7, over more than the number of stages. Every trial is a run of Ray Train in a folder of
its own, which goes on from its newest checkpoint.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from framegrove.config.base import load, overridden
from framegrove.config.study import NAMED, Params, StudyConfig, blaming
from framegrove.config.train import TrainConfig
from framegrove.errors import UserError
from jobs.studies import stages
from jobs.studies.notes import folder_of, rows_of

if TYPE_CHECKING:
    from framegrove.evaluation.study_results import Trial, Video

USE = "python -m jobs.train --config FILE --out .."
RUN = "run"  # the training run in a trial's folder
_LEAVING_S = 120.0


@dataclass(frozen=True)
class PyramidStudy:
    """A study of pyramids: ``base`` is the training run where a trial does not say otherwise.

    ``flops`` are what each of its phases costs, forward and backward, and so what each phase of every trial does.
    """

    config: StudyConfig
    base: TrainConfig
    prompts: tuple[str, ...]
    flops: tuple[float, ...]

    @classmethod
    def of(cls, config: StudyConfig, file: Path) -> PyramidStudy:
        """Check everything that can be checked before a trial; ``file`` is the training run's. Raises UserError."""
        overrides = [_override(key, value) for key, value in config.settings.items()]
        base = load(TrainConfig, file, overrides)
        if base.model.start is not None:
            raise UserError(f"{file}: an existing model keeps its pyramid; set model.start=null and give model.vae")
        from actors.trainer import at_absolute_paths
        from jobs.studies.pool import prompts_of

        study = cls(config, at_absolute_paths(base), prompts_of(config.prompts, config.seed), ())
        study.check()
        return cls(config, study.base, study.prompts, tuple(stages.flops_of_phases(study.base)))

    def check(self) -> None:
        """What the trials share, then every value of every parameter, one at a time. Raises UserError."""
        most = self.base.model.shape.max_num_frames
        if self.config.units is not None and self.config.units > most:
            raise UserError(f"units: a video of {self.config.units} units cannot be made: this model makes 1 to {most}")
        for name in self.config.names:
            for value in self.config.space[name].examples:
                with blaming(name, value):
                    check_sizes(self.shaped({name: value}))

    def applies(self, name: str, given: Params) -> bool:
        """Whether a parameter changes anything about a training run with these others."""
        height = given.get("stages", self.base.model.recipe.pyramid.stages)
        return height > 1 or name not in ("boundaries", "weights")

    def shaped(self, params: Params) -> TrainConfig:
        """The training run with a trial's pyramid, as long as it is configured. Raises UserError for what cannot be."""
        run = stages.of_height(self.base, params["stages"]) if "stages" in params else self.base
        data = run.model_dump(mode="json")
        recipe, phases = data["model"]["recipe"], data["phases"]
        height = recipe["pyramid"]["stages"]
        if "boundaries" in params:
            recipe["pyramid"]["boundaries"] = [(at / height) ** params["boundaries"] for at in range(height + 1)]
        if "steps" in params:
            recipe["steps"] |= {"first": [params["steps"]] * height, "others": [params["steps"]] * height}
        for phase in phases:
            if "weights" in params:
                phase["objective"]["stage_weights"] = [float(params["weights"]) ** at for at in range(height)]
            if "corruption" in params:
                phase["objective"]["corruption"] = params["corruption"]
            if "history" in params and phase["units"] > 1:
                phase["units"] = min(phase["units"], params["history"] + 1)
                weights = phase["objective"]["unit_weights"]
                phase["objective"]["unit_weights"] = weights and weights[: phase["units"]]
        others = {name: value for name, value in params.items() if name not in NAMED["pyramid"]}
        return overridden(TrainConfig, data, [_override(*each) for each in others.items()], "the run")

    def run(self, params: Params) -> TrainConfig:
        """A trial's training run: as many steps as cost what the study's base does, with samples on the way."""
        return stages.of_equal_cost(self.shaped(params), self.flops, self.prompts, self.config.seed)

    def winner(self, trial: Trial) -> dict[str, Any]:
        """What jobs.train takes as --config to train as a trial did, without the study's samples."""
        own = {"samples": self.base.samples, "checkpoint_every": self.base.checkpoint_every}
        run = self.run(trial.params).model_copy(update=own)
        return run.model_dump(mode="json", exclude_defaults=True) | {"model": run.model.model_dump(mode="json")}

    def label(self, trial: Trial) -> str:
        """What a trial is called in the pictures of trainings."""
        alone = set(trial.params) == {"stages"}
        return stages.name_of(trial.params["stages"]) if alone else trial.name


def _override(key: str, value: Any) -> str:
    """A value as an override of the training run's configuration: JSON is YAML, in which text stays text."""
    return f"{key}={json.dumps(value, ensure_ascii=False)}"


def check_sizes(run: TrainConfig) -> None:
    """Raise UserError where the pyramid does not divide the sizes that a run trains on, or samples."""
    from framegrove.config.flow import latent_size
    from framegrove.models.pretrained import VAE, embedded_model
    from framegrove.models.vae_files import read_vae_config

    recipe, vae = run.model.recipe, run.model.vae
    folder = embedded_model() / VAE if vae == "shipped" else Path(str(vae))
    factor = read_vae_config(folder).spatial_factor
    sizes = {(recipe.height, recipe.width), *(tuple(size) for phase in run.phases for size in phase.sizes or ())}
    for height, width in sizes:
        latent_size(height, width, stages=recipe.pyramid.stages, patch=run.model.shape.patch_size, factor=factor)


def objective(number: int, params: Params, given: tuple[Any, ...], report: Callable[[Mapping[str, Any]], None]) -> None:
    """What a trial's process does: train, then sample for every prompt and measure."""
    import ray

    from actors.trainer import fit
    from framegrove.cluster.placement import Role, placed
    from framegrove.cluster.session import connect

    study, workers, out = given
    folder = folder_of(out, number)
    rows = rows_of(folder)
    if len(rows.rows) == len(study.prompts):
        return
    run = study.run(params)
    _wait_for(folder / RUN / ".lock")
    with connect() as cluster:
        model = fit(run, folder / RUN, cluster, workers=workers, callbacks=[_marking(folder / RUN, run.steps)])
        shown = (str(model), study.prompts, study.config.seed, study.config.units)
        # Not where Tune has put this process, which has no CPU to give.
        task = ray.remote(sampled).options(**placed(Role.GENERATE), scheduling_strategy="DEFAULT")
        videos = ray.get(task.remote(*shown))
    for video in videos:
        if not rows.has(video.prompt, ""):
            rows.add(video)


def _wait_for(lock: Path) -> None:
    """Until a process of this trial that a killed command has left behind is gone, which Ray sees to."""
    from framegrove.files import InUse, locked

    deadline = time.monotonic() + _LEAVING_S
    while lock.exists() and time.monotonic() < deadline:
        try:
            locked(lock, "").close()
        except InUse:
            time.sleep(1.0)
        else:
            return


def sampled(model: str, prompts: Sequence[str], seed: int, units: int | None) -> list[Video]:
    """A video for every prompt, without a search, and what there is to measure of it."""
    import torch

    from actors.model_files import ModelFiles, costs_of
    from framegrove.config.model import ModelSource
    from framegrove.digits import travel, world
    from framegrove.digits.oracle import DigitsOracle
    from framegrove.flow.generation import generate
    from framegrove.models.pretrained import load_pipeline
    from framegrove.types import GenerationRequest
    from jobs.studies.pool import video_of

    torch.set_num_threads(1)
    files, pipeline, oracle = ModelFiles.read(ModelSource(name=model)), load_pipeline(model), DigitsOracle()
    recipe, found = files.recipe, []
    length = units or recipe.units
    for number, prompt in enumerate(prompts):
        began = time.monotonic()
        (made,) = generate(pipeline, [prompt], [seed + number], units=length)
        seconds = time.monotonic() - began
        request = GenerationRequest(prompt, seed + number, length, recipe.height, recipe.width)
        text, negative = pipeline.text.encode([prompt + recipe.prompt_suffix, recipe.negative_prompt])
        tokens = len(text.tokens_LD), len(negative.tokens_LD)
        cost = costs_of(files, recipe, files.check(request), *tokens).unsearched(length)
        objects = world.parse(prompt)
        assert objects is not None, "checked when the study began"
        read = (oracle.judge(made.frames, objects), made.frames, objects, travel.real_travel(objects, length))
        costs = {"sampling": cost.flops, "decoding": cost.decoding, "judging": 0, "wasted": 0, "seconds": seconds}
        found.append(video_of(number, prompt, read, **costs))
    return found


def training_of(folder: Path) -> dict[str, Any]:
    """What a trial's training has taken so far, and its last loss."""
    from framegrove.training import curve

    lines = curve.read(folder / RUN / curve.LINES)
    if not lines:
        return {}
    return {
        "training_flops": curve.flops_of(lines),
        "training_seconds": lines[-1]["seconds"],
        "loss": lines[-1]["losses"].get("loss"),
    }


def draw(study: PyramidStudy, trials: Sequence[Trial], out: Path) -> list[Path]:
    """learning.png and samples.png, of the given trials; none where none of them has shown anything."""
    runs = {study.label(trial): stages.marks(folder_of(out, trial.number) / RUN) for trial in trials}
    shown = {label: marks for label, marks in runs.items() if marks}
    return stages.draw(shown, out) if shown else []


def _marking(folder: Path, steps: int) -> Any:
    """A callback of Ray Train, at work in its controller, that tells Tune the score of the newest samples."""
    from ray.tune.integration.ray_train import TuneReportCallback

    class Marking(TuneReportCallback):
        def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
            step = metrics[0]["step"]
            told = [{**metrics[0], "share": step / steps, **_mark(folder, step, steps)}, *metrics[1:]]
            super().after_report(run_context, told, checkpoint)

    return Marking()


def _mark(folder: Path, step: int, steps: int) -> dict[str, Any]:
    """The score of the newest samples at a step, and how far the training was when they were made, in marks; at its end
    no mark is set, since what is stopped then would have been trained for nothing."""
    newest = [mark for mark in stages.marks(folder) if mark.step <= step][-1:]
    if not newest:
        return {}
    # Of a report without new samples too: their score is compared with those of other trials at that mark.
    share = {"mark": stages.mark_of(newest[0].step, steps)} if step < steps else {}
    return {"score": newest[0].score.mean, **share}
