"""Training of the small verifier: its configuration, resumption, and what it leaves behind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import Idefics3ForConditionalGeneration, PreTrainedTokenizerFast

from framegrove.config.base import load
from framegrove.config.engine import shipped_folder
from framegrove.digits.config import JointPhase, VerifierPhase, VerifierTraining
from framegrove.digits.sibling_files import shard_file, write_groups
from framegrove.digits.verifier_metrics import evaluate, save
from framegrove.digits.verifier_training import PHASES, VerifierRun
from framegrove.errors import UserError
from framegrove.verification.views import View
from tests.unit.test_digits_siblings import group_of
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
    )


@pytest.mark.parametrize("name", ["digits_verifier", "digits_verifier_siblings"])
def test_the_shipped_configurations_load(name: str) -> None:
    assert load(VerifierTraining, CONFIGS / f"{name}.yaml").joint.steps > 0


def test_a_run_starts_from_a_verifier_and_learns_from_siblings(tmp_path: Path) -> None:
    start = tmp_path / "start"
    shutil.copytree(shipped_folder(), start)
    words = (start / "tokenizer.json").read_text()
    assert words.count('"now"') == 1
    (start / "tokenizer.json").write_text(words.replace('"now"', '"then"'))
    write_groups(shard_file(tmp_path, 0), [group_of(depth, [3, None]) for depth in (0, 2, 5)])
    none = VerifierPhase(steps=0, batch=2, learning_rate=1e-4)
    config = VerifierTraining(
        start=str(start),
        reading=none,
        windows=none,
        frames=none,
        joint=JointPhase(steps=3, batch=2, learning_rate=1e-4, siblings=str(tmp_path)),
        heldout_clips=10,
    )
    run = VerifierRun(config, tmp_path / "run")
    shipped = Idefics3ForConditionalGeneration.from_pretrained(shipped_folder(), dtype=torch.float32)
    known = PreTrainedTokenizerFast.from_pretrained(start).get_vocab()
    assert set(run.packer.word_ids) - set(known) == {"now"}
    for word, at in known.items():
        if word == "then":
            continue
        ours, theirs = (model.get_input_embeddings().weight for model in (run.model, shipped))
        assert torch.equal(ours[run.packer.word_ids[word]], theirs[at]), word
    assert torch.equal(
        run.model.model.connector.modality_projection.proj.weight,
        shipped.model.connector.modality_projection.proj.weight,
    )
    run.train()
    assert run.siblings is not None
    assert run.siblings.count((View.UNIT, 6)) == (2, 2)
    with pytest.raises(UserError, match="no verifier to start from"):
        VerifierRun(config.model_copy(update={"start": str(tmp_path / "none")}), tmp_path / "other")
    with pytest.raises(UserError, match="another architecture"):
        VerifierRun(config.model_copy(update={"model": TINY}), tmp_path / "other")


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
    for _ in range(2):  # the second time in place of the first
        save(run, model, heldout, tmp_path / "model", "python -m jobs.train_verifier")
    figures = json.loads((tmp_path / "model" / "metrics.json").read_text())
    assert figures["held-out"]["balanced_accuracy"].keys() == set(heldout.aspects)
    text = (tmp_path / "model" / "README.md").read_text()
    assert "python -m jobs.train_verifier" in text
    assert heldout.markdown() in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
