"""Steps without a finite loss or gradient: skipped by all engines, counted, named, and limited."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from framegrove.training.engine import DeepSpeedEngine, PlainEngine, Update
from framegrove.training.skips import Skips, TrainingDiverged
from tests.unit.test_checkpoint import Alone
from tests.unit.test_engine import CONFIG, CPU, group, samples_of, trainable

__all__ = ["group"]  # a process group, for DeepSpeed


def step(engine: Any, packs: list[Any]) -> Update:
    return engine.update(packs, 4, CONFIG.phases[0], learning_rate_scale=0.5)


@pytest.mark.parametrize("kind", ["plain", (1, "fp32"), (1, "bf16"), (2, "bf16"), (3, "fp32")])
@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_step_without_a_finite_loss_changes_nothing(kind: Any, value: float) -> None:
    """Neither weights nor moments nor averages; the steps after it are those of a run that never made it."""

    def engine() -> Any:
        if kind == "plain":
            return PlainEngine(trainable(), "fp32", CPU)
        return DeepSpeedEngine(trainable(), kind[1], CPU, kind[0])

    disturbed, other = engine(), engine()
    good = [samples_of(0)[:2], samples_of(0)[2:]]
    sample = samples_of(1)[0]
    bad = replace(sample, target=torch.full_like(sample.target, value))
    for each in (disturbed, other):
        assert not step(each, good).skipped
    before = [fragment.values.clone() for fragment in disturbed.fragments()]
    counts = disturbed.counts()
    assert step(disturbed, [[bad, *samples_of(1)[1:2]], samples_of(1)[2:]]).skipped
    assert all(map(torch.equal, before, (fragment.values for fragment in disturbed.fragments())))
    assert disturbed.counts() == counts
    again = [samples_of(2)[:2], samples_of(2)[2:]]
    ours, theirs = step(disturbed, again), step(other, again)
    assert ours.gradient_norm == theirs.gradient_norm
    assert all(map(torch.equal, ours.losses, theirs.losses))
    for ours_, theirs_ in zip(disturbed.fragments(), other.fragments(), strict=True):
        assert torch.equal(ours_.values, theirs_.values)


def sample(name: str) -> Any:
    return SimpleNamespace(origin=name, cell=SimpleNamespace(unit=2, stage=1))


def update(*losses: float, norm: float = math.nan) -> Update:
    return Update([torch.tensor(losses)], norm)


def test_skipped_steps_are_counted_and_named_and_too_many_in_a_row_end_the_run() -> None:
    told: list[tuple[int, str]] = []
    skips = Skips(2, 5, lambda done, says: told.append((done, says)))
    pack = [[sample("a.mp4"), sample("b.mp4")]]
    skips.count(1, "low", pack, update(1.0, math.inf), Alone())
    skips.count(2, "low", pack, update(1.0, 1.0), Alone())
    assert told == [
        (1, "step 1 of phase low was skipped: no finite loss from b.mp4 (unit 2, stage 1)"),
        (
            2,
            "step 2 of phase low was skipped: no finite gradient from a.mp4 (unit 2, stage 1), b.mp4 (unit 2, stage 1)",
        ),
    ]
    skips.count(3, "low", pack, update(1.0, 1.0, norm=1.0), Alone())
    for done in (4, 5):
        skips.count(done, "low", pack, update(math.nan, 1.0), Alone())
    assert skips.total == 9
    with pytest.raises(TrainingDiverged, match=r"3 steps in a row .* from a\.mp4 \(unit 2, stage 1\); look at these"):
        skips.count(6, "low", pack, update(math.nan, 1.0), Alone())


def test_a_sentence_names_a_few_samples_and_counts_the_others() -> None:
    told: list[str] = []
    skips = Skips(1, 0, lambda done, says: told.append(says))
    skips.count(1, "low", [[sample(f"{n}.mp4") for n in range(20)]], update(*[math.nan] * 20), Alone())
    assert told[0].endswith("7.mp4 (unit 2, stage 1) and 12 more")
