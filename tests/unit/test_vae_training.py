from __future__ import annotations

from pathlib import Path

import pytest
import torch

from framegrove.config.vae import VaeTrainingConfig
from framegrove.errors import UserError
from framegrove.models.vae_files import load_vae
from framegrove.training.muon import Muon, orthogonalised
from framegrove.training.vae import Record, TrainingDiverged, psnr, train
from tests.unit.test_vae import PATCHED

TINY = VaeTrainingConfig(
    model=PATCHED,
    steps=4,
    batch=2,
    full_batch=1,
    crop=16,
    pool=4,
    full_from=0.6,
    warmup=1,
    log_every=1,
    evaluate_every=2,
    evaluate_clips=1,
    final_clips=1,
    norm_clips=2,
    checkpoint_seconds=1e-6,
)


class Stopped(Exception):
    pass


def test_a_killed_training_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    undisturbed: list[Record] = []
    last = train(TINY, tmp_path / "a", undisturbed.append)

    def stop(record: Record) -> None:
        if record.step == 3:
            raise Stopped

    with pytest.raises(Stopped):
        train(TINY, tmp_path / "b", stop)
    resumed: list[Record] = []
    again = train(TINY, tmp_path / "b", resumed.append)

    assert [r.step for r in undisturbed] == [1, 2, 3, 4]
    assert [(r.step, r.loss, r.psnr_pair) for r in resumed] == [(r.step, r.loss, r.psnr_pair) for r in undisturbed[2:]]
    assert last.psnr_single == again.psnr_single
    (first, norm), (second, same) = (load_vae(tmp_path / x / "causal_video_vae") for x in "ab")
    assert norm == same
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert last.psnr_pair == pytest.approx(psnr(first, 1, 2), abs=1e-3)  # the figures are those of the saved weights

    with pytest.raises(UserError, match="of another configuration"):
        train(TINY.model_copy(update={"seed": 1}), tmp_path / "a", undisturbed.append)


def test_a_diverging_training_says_so(tmp_path: Path) -> None:
    wild = TINY.model_copy(update={"matrix_learning_rate": 1e30, "bfloat16": False})
    with pytest.raises(TrainingDiverged, match="lower the learning rates"):
        train(wild, tmp_path, lambda record: None)
    assert not (tmp_path / "causal_video_vae").exists()


def test_orthogonalised_keeps_directions_and_evens_out_their_strength() -> None:
    torch.manual_seed(0)
    for shape in ((8, 32), (32, 8)):
        matrix = torch.randn(shape)
        u, _, v = torch.linalg.svd(matrix, full_matrices=False)
        aligned = u.T @ orthogonalised(matrix) @ v.T
        assert ((aligned.diagonal() > 0.6) & (aligned.diagonal() < 1.3)).all()
        assert (aligned - aligned.diagonal().diag()).abs().max() < 0.1


def test_muon_finds_the_minimum() -> None:
    torch.manual_seed(0)
    target, weight = torch.randn(6, 4), torch.nn.Parameter(torch.zeros(6, 4))
    optimizer = Muon([weight], lr=0.05, momentum=0.9)
    for step in range(200):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / 200)
        optimizer.zero_grad()
        (weight - target).square().sum().backward()
        optimizer.step()
    assert (weight - target).abs().max() < 0.1
