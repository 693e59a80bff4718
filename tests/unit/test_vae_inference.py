"""The VAE without gradients on a CPU: the same frames as PyTorch's own choice gives, the same bits in any batch."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from framegrove.models.pretrained import VAE, embedded_model
from framegrove.models.vae import CausalVideoVae, State
from framegrove.models.vae_files import LatentNorm, load_vae, to_uint8
from framegrove.models.vae_tiling import decode_unit, decode_units

CLIPS = 3


@pytest.fixture(scope="module")
def shipped() -> tuple[CausalVideoVae, LatentNorm]:
    return load_vae(embedded_model() / VAE)


@pytest.fixture(scope="module")
def latents(shipped: tuple[CausalVideoVae, LatentNorm]) -> Tensor:
    return shipped[1].denormalise(torch.randn(CLIPS, 16, 2, 8, 8, generator=torch.Generator().manual_seed(0)))


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield int(request.param)
    torch.set_num_threads(before)


def _decode(vae: CausalVideoVae, latent: Tensor) -> Tensor:
    state: State | None = None
    parts = []
    for unit in latent.split(1, dim=2):
        frames, state = decode_unit(vae, unit, state)
        parts.append(frames)
    return torch.cat(parts, 2)


def test_frames_and_latents_move_by_rounding_only(shipped: tuple[CausalVideoVae, LatentNorm], latents: Tensor) -> None:
    vae, one = shipped[0], latents[:1]
    plain = _decode(vae, one)  # with gradients on, PyTorch chooses the convolution
    with torch.no_grad():
        ours = _decode(vae, one)
        encoded = vae.encode(plain.clamp(-1, 1)).mean
    torch.testing.assert_close(ours, plain, atol=2e-5, rtol=0)
    torch.testing.assert_close(encoded, vae.encode(plain.clamp(-1, 1)).mean, atol=5e-5, rtol=0)
    moved = (to_uint8(ours).int() - to_uint8(plain).int()).abs()
    assert moved.max() <= 1
    assert (moved > 0).float().mean() < 1e-3


def test_small_convolutions_at_batch_1_run_in_onednn(
    shipped: tuple[CausalVideoVae, LatentNorm], latents: Tensor
) -> None:
    with torch.no_grad(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        _decode(shipped[0], latents[:1])
    names = {event.key for event in profile.key_averages()}
    assert "aten::mkldnn_convolution" in names
    assert not any("slow_conv3d" in name for name in names)


def test_training_keeps_pytorchs_convolution(shipped: tuple[CausalVideoVae, LatentNorm], latents: Tensor) -> None:
    latent = latents[:1].clone().requires_grad_()
    frames, _ = shipped[0].decode_unit(latent[:, :, :1])
    frames.sum().backward()
    assert latent.grad is not None
    assert latent.grad[:, :, 0].abs().sum() > 0


def test_decoding_together_changes_no_bit(
    shipped: tuple[CausalVideoVae, LatentNorm], latents: Tensor, threads: int
) -> None:
    vae, units = shipped[0], latents.split(1)
    with torch.no_grad():
        alone = [decode_unit(vae, clip[:, :, :1]) for clip in units]
        first = decode_units(vae, [clip[:, :, :1] for clip in units], [None] * CLIPS)
        # Clips at their start and beyond it, in one call.
        mixed = decode_units(
            vae,
            [units[0][:, :, 1:], units[1][:, :, :1], units[2][:, :, 1:]],
            [first[0][1], None, first[2][1]],
        )
        later = [decode_unit(vae, clip[:, :, 1:], state) for clip, (_, state) in zip(units, alone, strict=True)]
    for (frames, state), (other, other_state) in zip(
        [*first, *mixed], [*alone, later[0], alone[1], later[2]], strict=True
    ):
        assert torch.equal(frames, other)
        assert all(torch.equal(a, b) for a, b in zip(state, other_state, strict=True))
        assert all(part.untyped_storage().nbytes() == part.nbytes for part in state)


def test_encoding_together_changes_no_bit(shipped: tuple[CausalVideoVae, LatentNorm], threads: int) -> None:
    video = torch.rand(CLIPS, 3, 9, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        together = shipped[0].encode(video)
        alone = [shipped[0].encode(clip) for clip in video.split(1)]
    assert torch.equal(together.mean, torch.cat([moments.mean for moments in alone]))
    assert torch.equal(together.logvar, torch.cat([moments.logvar for moments in alone]))


def test_with_gradients_units_are_decoded_one_by_one(
    shipped: tuple[CausalVideoVae, LatentNorm], latents: Tensor
) -> None:
    first = [clip[:, :, :1] for clip in latents[:2].split(1)]
    together = decode_units(shipped[0], first, [None, None])
    for (frames, _), latent in zip(together, first, strict=True):
        assert torch.equal(frames, decode_unit(shipped[0], latent)[0])
