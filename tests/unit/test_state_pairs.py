"""State goes from any engine, ZeRO stage and number of workers to any other: the same bits, and the same next step."""

from __future__ import annotations

import datetime
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing

from framegrove.training.engine import DeepSpeedEngine, PlainEngine
from framegrove.training.fragments import Counts, File, Fragments, write
from tests.unit.test_engine import CONFIG, CPU, samples_of, trainable

BATCH = 4
KINDS = ((1, "fp32"), (2, "fp32"), (3, "fp32"), (1, "bf16"), (2, "bf16"), (3, "bf16"))


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


def pass_on(folder: Path, expected: tuple[float, float]) -> None:
    """As one of the workers: load every state in ``folder`` into every kind of engine, save it again, make a step."""
    world, rank = dist.get_world_size(), dist.get_rank()
    states = sorted(path for path in folder.iterdir() if path.is_dir())
    for zero, precision in KINDS:
        for state in states:
            engine = restored(DeepSpeedEngine(trainable(), precision, CPU, zero), state)  # type: ignore[arg-type]
            again = folder / f"{state.name}, zero {zero} {precision} of {world}"
            save(engine, again)
            if rank == 0:
                before, after = whole(state), whole(again)
                assert before.keys() == after.keys()
                assert all(torch.equal(before[key], after[key]) for key in before), again.name
                assert opened(again)[1] == opened(state)[1]
            found = step(engine, 2)
            assert found == pytest.approx(expected, rel=1e-4 if precision == "fp32" else 0.05), again.name
            if state != states[-1] and rank == 0:  # one state of every kind is passed on
                again.rename(folder.parent / again.name)
            engine.most(0)


def work(rank: int, world: int, folder: Path, expected: tuple[float, float]) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    patience = datetime.timedelta(seconds=120)
    store = folder.parent / f"store of {world} {len(list(folder.iterdir()))}"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world, timeout=patience)
    pass_on(folder, expected)
    dist.destroy_process_group()


@pytest.fixture(autouse=True)
def no_group() -> Iterator[None]:
    assert not dist.is_initialized()
    yield


def test_any_engine_goes_on_from_any_other(tmp_path: Path) -> None:
    plain = PlainEngine(trainable(), "fp32", CPU)
    for number in range(2):
        step(plain, number)
    states = tmp_path / "states"
    states.mkdir()
    save(plain, states / "plain")
    expected = step(plain, 2)
    for world in (2, 4, 1):
        torch.multiprocessing.spawn(work, (world, states, expected), world)
    for state in states.iterdir():
        again = restored(PlainEngine(trainable(), "fp32", CPU), state)
        assert step(again, 2) == expected, state.name  # to the bit
    assert len(list(states.iterdir())) == 1 + 3 * len(KINDS)
