"""What ``jobs.train --plan`` prints: the memory that a run needs of each worker's GPU, by phase and by ZeRO stage."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from framegrove.config.train import SHIPPED, TrainConfig
from jobs.console import Display

if TYPE_CHECKING:
    from framegrove.training.memory import Memory, Model

_COLUMNS = (
    "weights",
    "gradients",
    "masters",
    "moments",
    "averaged",
    "text",
    "reference",
    "buffers",
    "activations",
    "working",
)


def show_plan(config: TrainConfig, workers: int | None, display: Display) -> None:
    """Print the estimate for so many workers of the deepspeed engine, or for the plain engine (None)."""
    from framegrove.training.memory import estimate, estimate_plain
    from framegrove.training.plan import check_heads, check_workers, model_of

    model, where = model_of(config)
    encodes = _encodes(config) if model.frozen else None
    said = _of_text(config, model, encodes) if model.frozen else None
    if encodes is False:
        model = replace(model, frozen=0)
    if workers is None:
        found = [estimate_plain(config, phase, model) for phase in config.phases]
        title = "the plain engine"
    else:
        check_heads(config.sequence_parallel, model.shape)
        check_workers(config.sequence_parallel, workers)
        found = [estimate(config, phase, model, workers) for phase in config.phases]
        title = f"{workers} worker{'s' if workers > 1 else ''} at ZeRO {config.zero}"
        if config.sequence_parallel > 1:
            title += f", {config.sequence_parallel} of them to a pack"
    frozen = (model.held + model.frozen) / 1e9
    display.say(f"{model.trained / 1e9:.3g} B weights are trained, {frozen:.3g} B are frozen ({where})")
    if said:
        display.say(said)
    _print_phases(config, f"GB on each worker: {title}, {config.precision}", found, display)
    if workers is not None:
        _print_stages(config, model, workers, display)


def _encodes(config: TrainConfig) -> bool | None:
    """Whether the run encodes prompts; None where its data or its model is not here to say so."""
    from framegrove.data.ingest import open_catalog, open_heldout
    from framegrove.training.stored_text import stored_text

    folders, start = [given.path for given in config.data_sets], config.model.start
    if not all(Path(folder).is_dir() for folder in folders) or not (start in (None, SHIPPED) or Path(start).exists()):
        return None
    held = open_heldout(folders)
    return stored_text(config, [open_catalog(folders), *([held] if held else [])]) is None


def _of_text(config: TrainConfig, model: Model, encodes: bool | None) -> str:
    """Whether frozen text encoders are counted, and why, in a sentence."""
    size = f"{_gb((2 if config.precision == 'bf16' else 4) * model.frozen)} GB"
    data = ", ".join(given.path for given in config.data_sets)
    match encodes:
        case False:
            return f"the clips in {data} hold embeddings of their captions: no worker holds the text encoders, {size}"
        case True:
            why = f"the clips in {data} hold no embeddings of all captions by the model's text encoders"
        case None:
            why = f"{data} and the model are not both here to say whether the clips hold embeddings of their captions"
    return (
        f"{why}: the text encoders, {size}, are counted on every worker; with embeddings (text.model) none holds them"
    )


def _print_phases(config: TrainConfig, title: str, found: list[Memory], display: Display) -> None:
    from rich.table import Table

    table = Table(title=title)
    table.add_column("phase")
    table.add_column("recompute")
    for name in ("tokens", *_COLUMNS, "total"):
        table.add_column(name, justify="right")
    for phase, memory in zip(config.phases, found, strict=True):
        parts = [_gb(getattr(memory, column)) for column in _COLUMNS]
        table.add_row(
            phase.name, str(config.recomputes(phase)).lower(), f"{memory.tokens:,}", *parts, _gb(memory.total)
        )
    display.console.print(table)


def _print_stages(config: TrainConfig, model: Model, workers: int, display: Display) -> None:
    """The phase with the longest passes, at every ZeRO stage, on as many workers and on twice as many."""
    from rich.table import Table

    from framegrove.training.memory import estimate

    phase = max(config.phases, key=lambda phase: estimate(config, phase, model, workers).tokens)
    table = Table(title=f"GB on each worker in phase {phase.name}, by ZeRO stage")
    for name in ("ZeRO", "workers", "between steps", "total, recompute: false", "total, recompute: true"):
        table.add_column(name, justify="right")
    for stage in (1, 2, 3):
        for count in (workers, 2 * workers):
            of_stage = config.model_copy(update={"zero": stage})
            by_way = [
                estimate(of_stage, phase.model_copy(update={"recompute": way}), model, count) for way in (False, True)
            ]
            table.add_row(str(stage), str(count), _gb(by_way[0].kept), *(_gb(memory.total) for memory in by_way))
    display.console.print(table)


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f}" if count >= 1e8 else f"{count / 1e9:.2g}"
