"""Measure how often a generator's units go wrong, unit by unit, on held-out prompts of the digits world.

    python -m jobs.hazard --units 16 --out runs/hazard

Videos are sampled without a search, in one process, and the oracle reads every unit; those that go wrong are replaced
by more children of right ones, so that late units are read as often as early ones. Leaves hazard.json and hazard.png
in --out, and prints the table. True clips of the same prompts are read beside them: what the oracle calls wrong of
those is the floor. The shipped model takes a quarter of a second of CPU time a unit, 16 units of the default prompts
about seven minutes. Run it again to go on where it was interrupted, or with more prompts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from framegrove.errors import UserError
from jobs.console import (
    Display,
    DtypeOption,
    LogLevelOption,
    ModelOption,
    PickleOption,
    VariantOption,
    application,
    make_folder,
    model_source,
    one_line_errors,
)
from jobs.evaluations import measuring

if TYPE_CHECKING:
    from actors.model_files import ModelFiles
    from framegrove.digits.oracle import DigitsOracle
    from framegrove.evaluation.hazard import UnitHazard, UnitReading
    from framegrove.models.pretrained import Pipeline

app = application()

_KINDS = {2: "two digits", 1: "one digit"}
_BATCH = 32  # videos side by side
_CLIPS = 8  # true clips encoded together


@app.command()
def main(
    out: Annotated[Path, typer.Option(help="Folder for hazard.json and hazard.png.")],
    units: Annotated[int, typer.Option(min=1, help="How long the videos are: 1 + 8 (units - 1) frames.")] = 16,
    pairs: Annotated[int, typer.Option(min=0, help="How many held-out prompts of two digits.")] = 32,
    singles: Annotated[int, typer.Option(min=0, help="How many of one digit.")] = 16,
    videos: Annotated[int, typer.Option(min=1, max=_BATCH, help="Videos of each prompt.")] = 2,
    seed: Annotated[int, typer.Option(min=0, help="Which prompts, and the seed of the first.")] = measuring.SEED,
    model: ModelOption = None,
    variant: VariantOption = None,
    dtype: DtypeOption = "float32",
    allow_pickle: PickleOption = False,
    log_level: LogLevelOption = None,
) -> None:
    """Measure the share of wrong units, given a right parent, unit by unit."""
    with one_line_errors(log_level), Display() as display:
        if not pairs and not singles:
            raise UserError("nothing to measure: --pairs and --singles are both 0, give at least one prompt")
        display.begin("reading the model")
        from actors.model_files import ModelFiles

        files = ModelFiles.read(model_source(model, variant, dtype, allow_pickle))
        _check(files, units)
        make_folder(out)
        what = {"model": files.fingerprint(), "units": units, "videos": videos, "seed": seed}
        kept = Kept.read(out / "readings.json", what)
        parts = [part for digits, count in ((2, pairs), (1, singles)) for part in _parts(digits, count, videos)]
        if kept.parts:
            display.say(f"continuing what is in {kept.path}")
        if any(part.key not in kept.parts for part in parts):
            _measure(files, parts, kept, display)
        _finish(files, parts, kept, out, display)


def _check(files: ModelFiles, units: int) -> None:
    """Raise UserError for a model that cannot make such videos of this world."""
    from framegrove.digits import world
    from framegrove.types import GenerationRequest

    recipe = files.recipe
    if (recipe.height, recipe.width) != (world.SIZE, world.SIZE):
        raise UserError(
            f"the model makes videos of {recipe.width}x{recipe.height}, and the oracle reads those of the digits "
            f"world, {world.SIZE}x{world.SIZE}: choose a --model that was trained on it"
        )
    files.check(GenerationRequest("a red 3 moves left and right", 0, units, recipe.height, recipe.width))


@dataclass(frozen=True)
class Part:
    """Prompts ``first`` to ``stop`` of those with so many ``digits``: what is measured at once and kept."""

    digits: int
    first: int
    stop: int

    @property
    def key(self) -> str:
        return f"{self.digits} digits, prompts {self.first} to {self.stop}"


def _parts(digits: int, count: int, videos: int) -> list[Part]:
    size = _BATCH // videos
    return [Part(digits, first, min(first + size, count)) for first in range(0, count, size)]


@dataclass(frozen=True)
class Kept:
    """Readings by part and by source ("generated", and true clips "decoded" and "drawn"), on the disk in one file."""

    path: Path
    what: dict[str, Any]
    parts: dict[str, dict[str, Any]]

    @classmethod
    def read(cls, path: Path, what: dict[str, Any]) -> Kept:
        """What an earlier run has left. Raises UserError where it measured something else, or is damaged."""
        import json

        from framegrove import files

        what = files.identity(what)
        if not path.is_file():
            return cls(path, what, {})
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
            other = files.difference(held["what"], what)
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{path} holds no readings: choose another --out, or remove the file") from None
        if other is not None:
            raise UserError(f"{path} holds another measurement, {other}: choose another --out, or remove the file")
        return cls(path, what, held["parts"])

    def add(self, part: Part, readings: dict[str, list[UnitReading]], seconds: float) -> None:
        """Keep a part; when this returns it is on the disk."""
        import json

        from framegrove.files import replacing

        rows = {source: [[each.prompt, each.path, each.faults] for each in some] for source, some in readings.items()}
        self.parts[part.key] = {"seconds": seconds, **rows}
        with replacing(self.path) as partial:
            partial.write_text(json.dumps({"what": self.what, "parts": self.parts}) + "\n", encoding="utf-8")

    def readings(self, parts: Sequence[Part], source: str) -> list[UnitReading]:
        """The readings of some parts, in order; prompts with one and with two digits have numbers of their own."""
        from framegrove.evaluation.hazard import UnitReading

        return [
            UnitReading(10 * prompt + part.digits, tuple(path), tuple(faults))
            for part in parts
            for prompt, path, faults in self.parts[part.key][source]
        ]


def _measure(files: ModelFiles, parts: list[Part], kept: Kept, display: Display) -> None:
    """Measure the parts that are missing and keep each."""
    import torch

    from framegrove.digits.oracle import DigitsOracle
    from framegrove.models.pretrained import load_source

    pipeline = load_source(files.source).to("cuda" if torch.cuda.is_available() else "cpu")
    oracle, units, videos, seed = DigitsOracle(), *(int(kept.what[key]) for key in ("units", "videos", "seed"))
    missing = [part for part in parts if part.key not in kept.parts]
    total = units * sum(part.stop - part.first for part in missing)
    before = 0
    display.begin(f"sampling and reading {videos * total} units")

    for part in missing:
        count = part.stop - part.first

        def on_unit(done: int, part: Part = part, count: int = count, before: int = before) -> None:
            display.show((before + done * count) / total, f"{part.key}, unit {done} of {units}")

        began = time.process_time()
        generated = _generated(pipeline, oracle, part, units, videos, seed, on_unit)
        seconds = time.process_time() - began
        kept.add(part, {"generated": generated, **_true(pipeline, oracle, part, units, seed)}, seconds)
        before += units * count


def _generated(
    pipeline: Pipeline,
    oracle: DigitsOracle,
    part: Part,
    units: int,
    videos: int,
    seed: int,
    on_unit: Callable[[int], None],
) -> list[UnitReading]:
    """Readings of the generator's units. The prompts' seeds are those of jobs.evaluate."""
    from dataclasses import replace

    from framegrove.digits import world
    from framegrove.digits.unit_readings import unit_faults
    from framegrove.evaluation.population import read_units

    asked = world.prompts(part.stop, seed, digits=part.digits)[part.first :]
    readings = read_units(
        pipeline,
        [world.caption(objects) for objects in asked],
        [seed + index for index in range(part.first, part.stop)],
        lambda frames, prompt: unit_faults(oracle, frames, asked[prompt]),
        units=units,
        videos=videos,
        on_unit=on_unit,
    )
    return [replace(reading, prompt=part.first + reading.prompt) for reading in readings]


def _true(pipeline: Pipeline, oracle: DigitsOracle, part: Part, units: int, seed: int) -> dict[str, list[UnitReading]]:
    """Readings of true clips of the same prompts, as drawn and after the VAE, each until it is read wrong."""
    import numpy as np

    from framegrove.digits import world
    from framegrove.digits.clips import seen_through

    found: dict[str, list[UnitReading]] = {"decoded": [], "drawn": []}
    for first in range(part.first, part.stop, _CLIPS):
        indices = range(first, min(first + _CLIPS, part.stop))
        clips = [world.clip(seed, index, split="heldout", digits=part.digits, units=units) for index in indices]
        drawn = np.stack([clip.frames for clip in clips])
        for source, frames in (("decoded", seen_through(pipeline.vae, drawn)), ("drawn", drawn)):
            for index, clip, video in zip(indices, clips, frames, strict=True):
                found[source] += _read(oracle, index, video, clip.objects, units)
    return found


def _read(oracle: DigitsOracle, prompt: int, video: Any, asked: Any, units: int) -> list[UnitReading]:
    from framegrove.config.request import frames_of
    from framegrove.digits.unit_readings import unit_faults
    from framegrove.evaluation.hazard import UnitReading

    readings: list[UnitReading] = []
    while len(readings) < units and not (readings and readings[-1].faults):
        path = (0,) * (len(readings) + 1)
        readings.append(UnitReading(prompt, path, unit_faults(oracle, video[: frames_of(len(path))], asked)))
    return readings


def _finish(files: ModelFiles, parts: list[Part], kept: Kept, out: Path, display: Display) -> None:
    """Write what was found and print it."""
    from framegrove.evaluation.hazard import draw_hazards, hazards
    from framegrove.files import write_json

    of_kind = {name: [part for part in parts if part.digits == digits] for digits, name in _KINDS.items()}
    found = {name: hazards(kept.readings(some, "generated")) for name, some in of_kind.items() if some}
    floors = {source: hazards(kept.readings(parts, source)) for source in ("decoded", "drawn")}
    sampled = len(kept.readings(parts, "generated"))
    seconds = sum(float(kept.parts[part.key]["seconds"]) for part in parts)
    write_json(
        out / "hazard.json",
        {
            "model": files.name,
            **kept.what,
            "prompts": {name: sum(part.stop - part.first for part in some) for name, some in of_kind.items()},
            "generated": {name: [asdict(each) for each in group] for name, group in found.items()},
            "floor": {source: [asdict(each) for each in group] for source, group in floors.items()},
            "cost": {"units": sampled, "cpu_seconds": seconds, "cpu_seconds_per_unit": seconds / sampled},
        },
    )
    title = f"Units that go wrong, {sum(part.stop - part.first for part in parts)} held-out prompts"
    draw_hazards(found, floors["decoded"], out / "hazard.png", title=title)
    for name, group in found.items():
        _print(name, group, display)
    wrong = {source: sum(round(each.wrong.mean * each.units) for each in group) for source, group in floors.items()}
    read = {source: sum(each.units for each in group) for source, group in floors.items()}
    display.say(
        "floor, units of true clips called wrong: "
        + "; ".join(f"{source} {wrong[source]} of {read[source]}" for source in floors)
    )
    display.say(f"{sampled} units sampled and read in {seconds:.0f} s of CPU time, {seconds / sampled:.2f} s each")
    display.say("\n".join(str(out / name) for name in ("hazard.json", "hazard.png")))


def _print(name: str, group: Sequence[UnitHazard], display: Display) -> None:
    from rich.table import Table

    from framegrove.digits.unit_readings import UnitFault

    table = Table(title=f"{name}: wrong, given a right parent, with 95% intervals; a unit may have several faults")
    for column in ("unit", "read", "prompts", "wrong", *UnitFault, "videos without a search right so far"):
        table.add_column(column, justify="right", overflow="fold")
    for each in group:
        table.add_row(
            *map(str, (each.unit, each.units, each.prompts, each.wrong)),
            *(f"{each.faults.get(fault, 0.0):.1%}" for fault in UnitFault),
            str(each.unsearched),
        )
    display.console.print(table)


if __name__ == "__main__":
    app()
