"""What may change when a run goes on, what may not, and what its history says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from framegrove.config.train import TrainConfig
from framegrove.training.resume import OtherRun, asdict_of, changes, check
from tests.tiny_training import make_config

WORLD = Path("somewhere")  # three phases of 4, 4 and 6 steps


def phases(**changed: Any) -> list[dict[str, Any]]:
    """The phases, with changes by index and key, as in ``_1_steps=5``."""
    found = [phase.model_dump(mode="json") for phase in make_config(WORLD).phases]
    for where, value in changed.items():
        _, index, key = where.split("_", 2)
        found[int(index)][key] = value
    return found


def went_on(step: int, **changed: Any) -> TrainConfig:
    ours = make_config(WORLD, **changed)
    check(Path("out"), asdict_of(make_config(WORLD)), ours, step)
    return ours


@pytest.mark.parametrize(
    ("step", "changed"),
    [
        (6, {"zero": 3, "precision": "fp32", "checkpoint_every": 1, "log_every": 1, "recompute": True}),
        (6, {"data": "elsewhere"}),
        (6, {"phases": phases(_1_learning_rate=1e-5, _1_warmup=2, _1_ema=0.5, _0_learning_rate=1e-5)}),
        (6, {"phases": phases(_1_steps=2)}),  # which are done
        (6, {"phases": phases(_1_steps=40)}),
        (6, {"phases": phases(_2_batch=12, _2_units=2, _2_name="other")}),  # has not begun
        (6, {"phases": phases()[:2]}),
        (14, {"phases": phases(_2_steps=20)}),  # more steps on a finished run
        (14, {"phases": [*phases(), phases()[2] | {"name": "more"}]}),
    ],
)
def test_what_may_change(step: int, changed: dict[str, Any]) -> None:
    went_on(step, **changed)


@pytest.mark.parametrize(
    ("step", "changed", "message"),
    [
        (6, {"seed": 3}, "the run in out is 6 steps along with seed 0, which cannot become 3 now: keep it"),
        (6, {"phases": phases(_0_batch=7)}, r"phases\.0\.batch 6, which cannot become 7"),
        (6, {"phases": phases(_1_batch=7)}, r"phases\.1\.batch 6, which cannot become 7"),
        (6, {"phases": [phases()[1], phases()[0], phases()[2]]}, r"phases\.0\.name \"image\""),
        (6, {"phases": phases()[:1]}, r"phases\.1\.name \"low\", which cannot become null"),
        (6, {"phases": phases(_0_steps=5)}, r"has done 4 steps of phase image: phases\.0\.steps must be 4, not 5"),
        (6, {"phases": phases(_1_steps=1)}, r"has done 2 steps of phase low: phases\.1\.steps must be at least 2"),
        (9, {"phases": phases(_1_objective={"stage_weights": [1, 1, 1]})}, r"phases\.1\.objective\.stage_weights"),
        (
            6,
            {"phases": [phase | {"matrix_learning_rate": 0.1} for phase in phases()]},
            r"phases\.0\.matrix_learning_rate null",
        ),
        (1, {"model": {"start": "shipped"}}, "model.transformer"),
    ],
)
def test_what_would_be_another_run(step: int, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(OtherRun, match=message):
        went_on(step, **changed)


def test_nothing_is_fixed_before_the_first_step_but_what_makes_the_model() -> None:
    went_on(0, phases=phases(_0_batch=7, _0_name="other", _1_steps=9))


def test_changes_are_told_by_key() -> None:
    ours = make_config(WORLD, zero=2, phases=phases(_1_learning_rate=1e-5, _2_steps=7))
    assert changes(asdict_of(make_config(WORLD)), asdict_of(ours)) == {
        "phases.1.learning_rate": (3e-3, 1e-5),
        "phases.2.steps": (6, 7),
        "zero": (1, 2),
    }
    assert json.loads(json.dumps(asdict_of(ours))) == asdict_of(ours)
