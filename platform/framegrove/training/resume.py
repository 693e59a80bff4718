"""Going on with a run: what may have changed since, what may not, and the history that is kept of it.

Anything may change that the result can be said to be trained *with* from here on: workers, ZeRO stage, engine, learning
rates, steps still to be done, where the data lies. What has made the steps so far is what the run is: its seed, the
shape of its model, the VAE of its latents, and the phases that it has begun. To change those is to start another run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from framegrove.config.train import CHECKPOINTS, MODEL, SHIPPED, TrainConfig
from framegrove.errors import UserError
from framegrove.files import append_line, identity, whole_lines
from framegrove.models.pretrained import VAE
from framegrove.models.sources import find_model
from framegrove.training import checkpoint
from framegrove.training.engine import DeepSpeedEngine, PlainEngine
from framegrove.training.fragments import Fragments

AnyEngine = PlainEngine | DeepSpeedEngine

HISTORY = "history.jsonl"
DAMAGED, SKIPPED, GOT_WORSE, UNSEEN = "damaged", "skipped", "worse", "unseen"
WARNINGS = frozenset({DAMAGED, SKIPPED, GOT_WORSE, UNSEEN})  # events that are logged as well

# Where a model comes from may change, so that a run can be moved: what it is made of may not.
_FREE_OF_MODEL = {"start", "variant", "allow_pickle", "vae", "encoders"}
# How the steps of a phase are made may change at any time, which samples it draws and what it asks of them may not.
_FREE_OF_PHASE = {
    "steps", "pack_tokens", "learning_rate", "matrix_learning_rate", "warmup", "decay", "betas", "eps", "weight_decay",
    "clip", "ema", "recompute",
}  # fmt: skip


class OtherRun(UserError):
    """A run's folder was given with a configuration that would make it another run."""


def check(out: Path, theirs: Mapping[str, Any], ours: TrainConfig, step: int) -> None:
    """Raise OtherRun where the run in ``out``, ``step`` steps along with configuration ``theirs``, is another one."""
    was, now = _what_it_is(theirs, theirs, step), _what_it_is(asdict_of(ours), theirs, step)
    for key, (before, after) in _differences(was, now).items():
        raise OtherRun(
            f"the run in {out} is {step} steps along with {key} {_shown(before)}, which cannot become {_shown(after)} "
            "now: keep it, or give another --out"
        )
    begin = 0
    for index, phase in enumerate(theirs["phases"]):
        done = min(phase["steps"], step - begin)
        if done <= 0:
            break
        last = step <= begin + phase["steps"]
        wanted = ours.phases[index].steps
        if wanted < done or (not last and wanted != done):
            least = f"at least {done}" if last else f"{done}"
            raise OtherRun(
                f"the run in {out} has done {done} steps of phase {phase['name']}: phases.{index}.steps must be "
                f"{least}, not {wanted}; or give another --out"
            )
        begin += phase["steps"]


def at_hand(config: TrainConfig, out: Path) -> TrainConfig:
    """The configuration for a machine that lacks the model which the run began with: what it needs is in out/model."""
    model, own = config.model, out / MODEL
    if not own.is_dir():
        return config
    if model.start is None:
        gone = model.vae != SHIPPED and not Path(str(model.vae)).exists()
        update = {"vae": str(own / VAE)}
    else:
        try:
            find_model(model.source)
            gone = False
        except UserError:
            gone = True
        update = {"start": str(own)}
    return config.model_copy(update={"model": model.model_copy(update=update)}) if gone else config


def go_on(engine: AnyEngine, out: Path, config: TrainConfig) -> int:
    """Load the newest undamaged checkpoint of the run in ``out``, if there is one; the number of steps it has done.

    Every worker calls it. Worker 0 removes what runs that were killed have begun to write, and records in the history
    what has changed. Raises OtherRun where the checkpoint is of another model.
    """
    folder, history = out / CHECKPOINTS, History(out)
    if engine.rank == 0:
        checkpoint.remove_orphans(folder)
    found, warnings = checkpoint.newest_whole(folder, engine)
    now = {**asdict_of(config), "engine": engine.name, "workers": engine.world}
    if found is not None:
        check(out, found.about.config, config, found.about.step)
        held = Fragments(found.path, found.files)
        _check_parameters(found.path, held.sizes(), engine)
        engine.restore(held, found.counts)
    if engine.rank == 0:
        step = found.about.step if found else 0
        for warning in warnings:
            history.add(DAMAGED, step, warning)
        if found is None:
            history.add("started", 0, f"started with {_how(now)}", configuration=now)
        else:
            theirs = {**found.about.config, "engine": found.about.engine, "workers": found.about.workers}
            changed = changes(theirs, now)
            told = "".join(f"; {key} {_shown(a)} became {_shown(b)}" for key, (a, b) in changed.items())
            history.add("resumed", step, f"resumed after step {step} with {_how(now)}{told}", changes=changed)
    return found.about.step if found else 0


def _how(now: Mapping[str, Any]) -> str:
    many = f"{now['workers']} worker{'s' if now['workers'] > 1 else ''}"
    return f"the {now['engine']} engine" + (f" (ZeRO {now['zero']}, {many})" if now["engine"] == "deepspeed" else "")


def _check_parameters(path: Path, theirs: Mapping[str, int], engine: AnyEngine) -> None:
    """Raise OtherRun where a checkpoint's parameters are not those that are trained."""
    trained = [(name, p) for name, p in engine.module.named_parameters() if p.requires_grad]
    ours = {name: int(getattr(p, "ds_numel", p.numel())) for name, p in trained}  # ZeRO 3 has cut them to pieces
    for name in {**theirs, **ours}:
        if theirs.get(name) != ours.get(name):
            raise OtherRun(
                f"{path} is of another model ({name} has {theirs.get(name, 'no')} values there and "
                f"{ours.get(name, 'none')} here): give another --out, or the model that the run was started with"
            )


def changes(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What has changed between two configurations: by dotted key, before and after."""
    return _differences(dict(_leaves(theirs)), dict(_leaves(ours)))


def asdict_of(config: TrainConfig) -> dict[str, Any]:
    """A configuration as a checkpoint keeps it."""
    return identity(config.model_dump(mode="json"))


class History:
    """What has happened to a run, a line of JSON each time, for whoever wants to know how a model came about."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / HISTORY

    def add(self, event: str, step: int, says: str, **facts: Any) -> None:
        """Append a line: what happened, after how many steps, in a sentence, and the facts."""
        line = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "event": event, "step": step, "says": says}
        whole_lines(self.path)  # a torn last line would hide all that come after it
        append_line(self.path, {**line, **facts})


def _what_it_is(config: Mapping[str, Any], theirs: Mapping[str, Any], step: int) -> dict[str, Any]:
    """What must not change of a configuration, by dotted key; ``theirs`` says which phases have begun."""
    model = {key: value for key, value in config["model"].items() if key not in _FREE_OF_MODEL}
    model["start"] = "an existing model" if config["model"]["start"] is not None else None
    begun, begin = 0, 0
    for phase in theirs["phases"]:
        begun += begin < step
        begin += phase["steps"]
    phases = [
        {key: value for key, value in phase.items() if key not in _FREE_OF_PHASE}
        | ({"pack_tokens": phase["pack_tokens"]} if phase["batch_tokens"] else {})  # which then says what is drawn
        | {"matrix_learning_rate": "a number" if phase["matrix_learning_rate"] is not None else None}
        for phase in config["phases"][:begun]
    ]
    return dict(_leaves({"seed": config["seed"], "model": model, "phases": phases}))


def _differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    keys = [*theirs, *(key for key in ours if key not in theirs)]
    return {key: (theirs.get(key), ours.get(key)) for key in keys if theirs.get(key) != ours.get(key)}


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every single value of a nested configuration under its dotted key, as ("phases.0.steps", 15)."""
    if not isinstance(value, Mapping | list) or not value:
        yield path, value
        return
    for key, inner in value.items() if isinstance(value, Mapping) else enumerate(value):
        yield from _leaves(inner, f"{path}.{key}" if path else str(key))


def _shown(value: Any) -> str:
    return json.dumps(value)
