"""Training the VAE: resumption, what it measures, and Muon for convolutions."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from framegrove.config.vae import VaeTrainingConfig
from framegrove.digits.clips import DigitsFrames
from framegrove.errors import UserError
from framegrove.models.vae_files import load_vae
from framegrove.training.muon import KernelMuon
from framegrove.training.skips import TrainingDiverged
from framegrove.training.vae import VaeStep, psnr, train
from framegrove.training.vae_clips import _crop
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
SOURCE = DigitsFrames(seed=0)


class Stopped(Exception):
    pass


def test_a_killed_training_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    undisturbed: list[VaeStep] = []
    last = train(TINY, SOURCE, tmp_path / "a", undisturbed.append)

    def stop(done: VaeStep) -> None:
        if done.step == 3:
            raise Stopped

    with pytest.raises(Stopped):
        train(TINY, SOURCE, tmp_path / "b", stop)
    resumed: list[VaeStep] = []
    again = train(TINY, SOURCE, tmp_path / "b", resumed.append)

    assert [r.step for r in undisturbed] == [1, 2, 3, 4]
    assert [(r.step, r.loss, r.psnr) for r in resumed] == [(r.step, r.loss, r.psnr) for r in undisturbed[2:]]
    assert last.psnr == again.psnr
    (first, norm), (second, same) = (load_vae(tmp_path / x / "causal_video_vae") for x in "ab")
    assert norm == same
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    logged = [
        [json.loads(line)["step"] for line in (tmp_path / x / "log.jsonl").read_text().splitlines()] for x in "ab"
    ]
    assert logged[0] == logged[1]
    train(TINY, SOURCE, tmp_path / "b")  # once more, when there is nothing left to do
    assert len((tmp_path / "b" / "log.jsonl").read_text().splitlines()) == len(logged[1])
    measured = psnr(first, SOURCE, "pair", 1)
    assert last.psnr["pair"] == pytest.approx(measured, abs=1e-3)  # the figures are those of the saved weights
    lines = [json.loads(line) for line in (tmp_path / "a" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 4]
    assert lines[-1]["psnr_single"] == pytest.approx(last.psnr["single"], abs=1e-6)

    with pytest.raises(UserError, match="of another configuration \\(its seed is 0 and here it is 1\\)"):
        train(TINY.model_copy(update={"seed": 1}), SOURCE, tmp_path / "a")
    (tmp_path / "a" / "checkpoint.pt").write_bytes(b"torn")
    with pytest.raises(UserError, match="not a readable checkpoint"):
        train(TINY, SOURCE, tmp_path / "a")


def test_a_dark_clip_is_cropped_anywhere() -> None:
    dark = np.zeros((9, 32, 32, 3), np.uint8)
    assert _crop(dark, 16, np.random.default_rng(0)).shape == (9, 16, 16, 3)


def test_a_diverging_training_says_so(tmp_path: Path) -> None:
    wild = TINY.model_copy(update={"matrix_learning_rate": 1e30, "bfloat16": False})
    with pytest.raises(TrainingDiverged, match="lower the learning rates"):
        train(wild, SOURCE, tmp_path)
    assert not (tmp_path / "causal_video_vae").exists()


def test_muon_moves_a_kernel_along_the_nearest_semi_orthogonal_matrix() -> None:
    torch.manual_seed(0)
    for shape in ((8, 2, 4, 2, 2), (32, 4, 1, 1, 2)):
        kernel = torch.nn.Parameter(torch.zeros(shape))
        gradient = torch.randn(shape)
        kernel.grad = gradient.clone()
        KernelMuon([kernel], lr=1.0).step()
        matrix = gradient.flatten(1)
        u, _, v = torch.linalg.svd(matrix, full_matrices=False)
        strength = max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5
        aligned = u.T @ -kernel.detach().flatten(1) @ v.T / strength
        assert ((aligned.diagonal() > 0.6) & (aligned.diagonal() < 1.3)).all()
        assert (aligned - aligned.diagonal().diag()).abs().max() < 0.1


def test_muon_finds_the_minimum_of_a_kernel_and_resumes() -> None:
    torch.manual_seed(0)
    target = torch.randn(6, 2, 2)

    def run(first: int, last: int, weight: torch.nn.Parameter, optimizer: KernelMuon) -> None:
        for step in range(first, last):
            optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / 300)
            weight.grad = None
            (weight - target).square().sum().backward()
            optimizer.step()

    weight = torch.nn.Parameter(torch.zeros(6, 2, 2))
    optimizer = KernelMuon([weight])
    run(0, 100, weight, optimizer)
    again = torch.nn.Parameter(weight.detach().clone())
    resumed = KernelMuon([again])
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # without a copy they would share momentum
    run(100, 300, weight, optimizer)
    run(100, 300, again, resumed)
    assert (weight - target).abs().max() < 0.1
    assert torch.equal(weight, again)
