"""Training of the small verifier: its configuration, resumption, and what it leaves behind."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from framegrove.config.base import load
from framegrove.digits.config import JointPhase, VerifierPhase, VerifierTraining
from framegrove.digits.verifier_metrics import evaluate, evaluate_scenes, save
from framegrove.digits.verifier_scenes import draw_scene
from framegrove.digits.verifier_training import PHASES, VerifierRun
from framegrove.errors import UserError
from tests.unit.test_digits_verifier_model import TINY

CONFIGS = Path(__file__).resolve().parents[2] / "jobs" / "configs"


def tiny_training(steps: int = 2) -> VerifierTraining:
    phase = VerifierPhase(steps=steps, batch=4, learning_rate=1e-3)
    return VerifierTraining(
        model=TINY,
        windows=phase,
        frames=phase,
        reading=phase,
        joint=JointPhase(**phase.model_dump()),
        checkpoint_every=1,
        heldout_clips=10,
        generated_clips=0,
    )


def test_the_shipped_configuration_loads() -> None:
    assert load(VerifierTraining, CONFIGS / "digits_verifier.yaml").joint.steps > 0


def test_too_few_regenerated_clips_are_refused() -> None:
    changes = ["joint.regenerated=5"]
    with pytest.raises(UserError, match="regenerated is 5, it must be 0 or at least the batch, 12"):
        load(VerifierTraining, CONFIGS / "digits_verifier.yaml", changes)


def test_training_continues_where_it_stopped_bit_for_bit(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop_in_joint(done: object) -> None:
        if done.phase == "joint":  # type: ignore[attr-defined]
            raise Stop

    whole = VerifierRun(tiny_training(), tmp_path / "whole")
    whole.train()
    broken = VerifierRun(tiny_training(), tmp_path / "broken")
    with pytest.raises(Stop):
        broken.train(stop_in_joint)
    resumed = VerifierRun(tiny_training(), tmp_path / "broken")
    resumed.train()
    for name, weight in whole.finished().state_dict().items():
        assert torch.equal(weight, resumed.finished().state_dict()[name]), name
    lines = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert {line["phase"] for line in lines} == set(PHASES)
    with pytest.raises(UserError, match="of another configuration \\(its seed is 0 and here it is 1\\)"):
        VerifierRun(tiny_training().model_copy(update={"seed": 1}), tmp_path / "whole")
    later = tiny_training().model_copy(update={"checkpoint_every": 7})
    assert VerifierRun(later, tmp_path / "whole").seconds == whole.seconds


def test_a_trained_verifier_is_saved_with_its_metrics(tmp_path: Path) -> None:
    run = VerifierRun(tiny_training(), tmp_path)
    model = run.finished()
    heldout = evaluate(model, run.packer, clips=10)
    rng = np.random.default_rng(0)
    generated = evaluate_scenes(model, run.packer, [draw_scene(rng, shown=4) for _ in range(3)])
    for _ in range(2):  # the second time in place of the first
        save(run, model, heldout, generated, tmp_path / "model", "python -m jobs.train_verifier")
    figures = json.loads((tmp_path / "model" / "metrics.json").read_text())
    assert figures["held-out"]["balanced_accuracy"].keys() == set(heldout.aspects)
    assert sum(kind["asked"] for kind in figures["generated"]["by_kind"].values()) <= 3 * 12
    text = (tmp_path / "model" / "README.md").read_text()
    assert "python -m jobs.train_verifier" in text
    assert heldout.markdown() in text
    assert generated.markdown() in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
