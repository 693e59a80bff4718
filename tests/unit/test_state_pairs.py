"""State passes through engines, ZeRO stages and numbers of workers: the same bits, and the same next step.

A state that is read and written again bit for bit by an engine has passed from its writer's cuts to the reader's. That
any cuts will do is test_fragments.py's.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from framegrove.training.engine import DeepSpeedEngine, PlainEngine
from framegrove.training.fragments import Counts, File, Fragments, write
from tests.unit.test_engine import CONFIG, CPU, samples_of, trainable
from tests.workers import together

BATCH = 4
# The state goes through all of these, in this order: by number of workers, ZeRO stages and precisions.
JOURNEY = (
    (2, ((1, "fp32"), (2, "fp32"), (3, "bf16"))),
    (4, ((3, "fp32"), (1, "bf16"), (2, "fp32"))),
    (1, ((1, "fp32"), (3, "fp32"))),
)


def step(engine: Any, number: int) -> tuple[float, float]:
    """One step on the batch of that number, shared by the workers; the mean loss of all of it and the gradient norm."""
    mine = samples_of(number)[engine.rank :: engine.world]
    update = engine.update([mine], BATCH, CONFIG.phases[0], learning_rate_scale=0.5)
    return float(engine.total(torch.cat(update.losses).sum()[None].double())) / BATCH, update.gradient_norm


def save(engine: Any, folder: Path) -> None:
    """What a saver does, without its thread."""
    if engine.rank == 0:
        folder.mkdir()
    engine.most(0)
    said = (write(folder, engine.rank, engine.fragments()), engine.counts())
    parts = [pickle.loads(bytes.fromhex(text)) for text in engine.gathered([pickle.dumps(said).hex()])]
    files = [file for part, _ in parts for file in part]
    steps = {name: count for _, counts in parts for name, count in counts.steps.items()}
    if engine.rank == 0:
        (folder / "index").write_bytes(pickle.dumps((files, Counts(engine.updates, steps))))
    engine.most(0)


def opened(folder: Path) -> tuple[list[File], Counts]:
    return pickle.loads((folder / "index").read_bytes())


def whole(folder: Path) -> dict[str, torch.Tensor]:
    """Every parameter's values of every kind."""
    files, _ = opened(folder)
    held = Fragments(folder, files)
    kinds = sorted({kind for file in files for kind, *_ in file.fragments})
    found = {(kind, name): held.read(kind, name, 0, n) for name, n in held.sizes().items() for kind in kinds}
    assert all(values is not None for values in found.values())
    return {f"{kind} {name}": values for (kind, name), values in found.items() if values is not None}


def restored(engine: Any, folder: Path) -> Any:
    files, counts = opened(folder)
    engine.restore(Fragments(folder, files), counts)
    return engine


def work(rank: int, engines: tuple[tuple[Any, Any], ...], folder: Path, expected: Any) -> None:
    """As one of some workers: load the newest state into every engine in turn, save it again, make a step."""
    for zero, precision in engines:
        before = sorted(folder.iterdir())[-1]
        engine = restored(DeepSpeedEngine(trainable(), precision, CPU, zero), before)
        again = folder / f"{len(list(folder.iterdir()))} by ZeRO {zero} {precision} of {engine.world}"
        engine.most(0)
        save(engine, again)
        if rank == 0:
            assert opened(again)[1] == opened(before)[1]
            ours, theirs = whole(again), whole(before)
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(ours[key], theirs[key]) for key in ours), again.name
        assert step(engine, 2) == pytest.approx(expected, rel=1e-4 if precision == "fp32" else 0.05), again.name


def test_a_state_passes_through_all_engines(tmp_path: Path) -> None:
    plain = PlainEngine(trainable(), "fp32", CPU)
    for number in range(2):
        step(plain, number)
    states = tmp_path / "states"
    states.mkdir()
    save(plain, states / "0 by the plain engine")
    expected = step(plain, 2)
    for world, engines in JOURNEY:
        together(work, (engines, states, expected), world)()
    for state in states.iterdir():
        assert step(restored(PlainEngine(trainable(), "fp32", CPU), state), 2) == expected, state.name  # to the bit
    assert len(list(states.iterdir())) == 1 + sum(len(engines) for _, engines in JOURNEY)
