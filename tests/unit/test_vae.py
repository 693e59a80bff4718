from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from framegrove.config.base import load
from framegrove.config.vae import VaeConfig, VaeTrainingConfig
from framegrove.errors import UserError
from framegrove.models.files import CONFIG_FILE, WEIGHTS_FILE
from framegrove.models.vae import CausalVideoVae, fold_patches, unfold_patches
from framegrove.models.vae_files import (
    NORM_FILE,
    Affine,
    LatentNorm,
    load_vae,
    save_vae,
    to_uint8,
)
from framegrove.models.vae_tiling import decode_flops, decode_unit_tiled, encode_unit_tiled

PUBLIC = VaeConfig(
    encoder_block_out_channels=(4, 8, 8, 8),
    decoder_block_out_channels=(4, 8, 8, 8),
    encoder_norm_num_groups=4,
    decoder_norm_num_groups=4,
)
PATCHED = VaeConfig(
    patch_size=2,
    encoder_block_out_channels=(4, 8, 8),
    encoder_layers_per_block=(1, 1, 1),
    encoder_spatial_down_sample=(True, True, False),
    encoder_temporal_down_sample=(True, True, True),
    encoder_time_kernels=(1, 3, 1),
    encoder_norm_num_groups=2,
    decoder_block_out_channels=(4, 8, 8),
    decoder_layers_per_block=(1, 2, 1),
    decoder_spatial_up_sample=(True, True, False),
    decoder_temporal_up_sample=(True, True, True),
    decoder_time_kernels=(3, 1, 1),
    decoder_norm_num_groups=4,
)


def _vae(config: VaeConfig) -> CausalVideoVae:
    torch.manual_seed(0)
    return CausalVideoVae(config).eval().requires_grad_(False)


@pytest.fixture(scope="module", params=[PUBLIC, PATCHED], ids=["public", "patched"])
def vae(request: pytest.FixtureRequest) -> CausalVideoVae:
    return _vae(request.param)


@pytest.mark.parametrize(("units", "height", "width"), [(1, 8, 8), (2, 16, 8), (3, 8, 24)])
def test_a_unit_is_eight_frames_and_eight_pixels_a_side(
    vae: CausalVideoVae, units: int, height: int, width: int
) -> None:
    frames = 1 + 8 * (units - 1)
    moments = vae.encode(torch.randn(2, 3, frames, height, width))
    assert moments.mean.shape == moments.logvar.shape == (2, 16, units, height // 8, width // 8)
    assert vae.decode(moments.mean).shape == (2, 3, frames, height, width)


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (2, 1), (1, 3), (3, 2)])
def test_streaming_equals_decoding_at_once(vae: CausalVideoVae, sizes: tuple[int, ...]) -> None:
    latent = torch.randn(2, 16, sum(sizes), 2, 3)
    state, parts = None, []
    for chunk in latent.split(sizes, dim=2):
        frames, state = vae.decode_unit(chunk, state)
        state = pickle.loads(pickle.dumps(state))  # it travels between actors
        parts.append(frames)
    assert parts[0].shape[2] == 1 + 8 * (sizes[0] - 1)
    torch.testing.assert_close(torch.cat(parts, 2), vae.decode(latent), atol=5e-5, rtol=0)


def test_streaming_equals_encoding_at_once(vae: CausalVideoVae) -> None:
    video = torch.randn(1, 3, 25, 16, 8)
    state, parts = None, []
    for chunk in video.split((1, 8, 16), dim=2):
        moments, state = vae.encode_unit(chunk, state)
        parts.append(moments.mean)
    torch.testing.assert_close(torch.cat(parts, 2), vae.encode(video).mean, atol=5e-5, rtol=0)


def test_the_state_keeps_its_size_and_its_content(vae: CausalVideoVae) -> None:
    _, early = vae.decode_unit(torch.randn(1, 16, 1, 2, 2))
    before = [tensor.clone() for tensor in early]
    _, late = vae.decode_unit(torch.randn(1, 16, 3, 2, 2), early)
    assert [tensor.shape for tensor in late] == [tensor.shape for tensor in early]
    assert all(torch.equal(a, b) for a, b in zip(early, before, strict=True))
    assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in late)


def test_nothing_depends_on_what_comes_later(vae: CausalVideoVae) -> None:
    video, latent = torch.randn(1, 3, 17, 8, 8), torch.randn(1, 16, 3, 1, 1)
    later_video, later_latent = video.clone(), latent.clone()
    later_video[:, :, 9:] += 1
    later_latent[:, :, 2:] += 1
    assert torch.equal(vae.encode(video).mean[:, :, :2], vae.encode(later_video).mean[:, :, :2])
    assert not torch.equal(vae.encode(video).mean[:, :, 2], vae.encode(later_video).mean[:, :, 2])
    torch.testing.assert_close(vae.decode(latent)[:, :, :9], vae.decode(later_latent)[:, :, :9], atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 9, 20, 16), "20x16: both must be multiples of 8"),
        ((1, 3, 8, 16, 16), r"8 frames: the VAE takes 1 \+ 8 x n"),
        ((1, 1, 9, 16, 16), r"must be \(batch, 3, frames, height, width\)"),
        ((3, 9, 16, 16), r"must be \(batch, 3, frames, height, width\)"),
    ],
)
def test_impossible_videos_are_named(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _vae(PATCHED).encode(torch.zeros(shape))


def test_impossible_continuations_are_named() -> None:
    vae = _vae(PATCHED)
    _, state = vae.decode_unit(torch.randn(1, 16, 1, 2, 2))
    with pytest.raises(ValueError, match="state is of another clip"):
        vae.decode_unit(torch.randn(1, 16, 1, 3, 2), state)
    with pytest.raises(ValueError, match="latents must be"):
        vae.decode(torch.randn(1, 4, 1, 2, 2))
    _, state = vae.encode_unit(torch.randn(1, 3, 1, 16, 16))
    with pytest.raises(ValueError, match="7 frames cannot continue"):
        vae.encode_unit(torch.randn(1, 3, 7, 16, 16), state)


def test_patches_fold_and_unfold() -> None:
    x = torch.randn(2, 3, 2, 4, 6)
    folded = fold_patches(x, 2)
    assert folded.shape == (2, 12, 2, 2, 3)
    assert torch.equal(folded[:, 1, :, 0, 0], x[:, 0, :, 0, 1])  # channel, then row, then column
    assert torch.equal(unfold_patches(folded, 2), x)


@pytest.mark.parametrize("tile", [4, 6, 9])
def test_tiles_stream_and_leave_no_seam(tile: int) -> None:
    """A seam would be a column across which the difference from the untiled result jumps more than across others."""
    vae = _vae(PATCHED)
    latent = torch.randn(1, 16, 2, 12, 12)
    whole = vae.decode(latent)
    first, state = decode_unit_tiled(vae, latent[:, :, :1], tile=tile)
    rest, _ = decode_unit_tiled(vae, latent[:, :, 1:], state, tile=tile)
    tiled = torch.cat([first, rest], 2)
    assert tiled.shape == whole.shape
    jumps = (tiled - whole).diff(dim=-1).abs().mean(dim=(0, 1, 2, 3))
    assert jumps.max() < 2 * jumps.mean()


def test_flops_of_decoding_are_those_of_the_layers() -> None:
    vae = _vae(PATCHED)
    with FlopCounterMode(display=False) as first:
        _, state = vae.decode_unit(torch.randn(1, 16, 1, 4, 6))
    with FlopCounterMode(display=False) as later:
        vae.decode_unit(torch.randn(1, 16, 1, 4, 6), state)
    assert decode_flops(vae.config, (4, 6)) == (first.get_total_flops(), later.get_total_flops())
    with FlopCounterMode(display=False) as tiled:
        decode_unit_tiled(vae, torch.randn(1, 16, 1, 60, 80))
    assert decode_flops(vae.config, (60, 80))[0] == tiled.get_total_flops()


def test_tiles_encode_a_stream() -> None:
    vae, video = _vae(PATCHED), torch.randn(1, 3, 9, 40, 24)
    first, state = encode_unit_tiled(vae, video[:, :, :1], tile=3)
    rest, _ = encode_unit_tiled(vae, video[:, :, 1:], state, tile=3)
    assert rest.mean.shape == rest.logvar.shape == (1, 16, 1, 5, 3)
    at_once, _ = encode_unit_tiled(vae, video, tile=3)
    torch.testing.assert_close(torch.cat([first.mean, rest.mean], 2), at_once.mean, atol=5e-5, rtol=0)


def test_weights_in_bfloat16_decode_nearly_the_same() -> None:
    vae, latent = _vae(PATCHED), torch.randn(1, 16, 2, 4, 4)
    exact = vae.decode(latent)
    halved = vae.to(torch.bfloat16)
    first, state = halved.decode_unit(latent[:, :, :1])
    rest, _ = halved.decode_unit(latent[:, :, 1:], state)
    frames = torch.cat([first, rest], 2)
    assert (frames.dtype, state[0].dtype) == (torch.float32, torch.bfloat16)
    assert (frames - exact).norm() < 0.05 * exact.norm()
    assert halved.encode(torch.randn(1, 3, 9, 32, 32)).mean.dtype is torch.float32


def test_one_tile_is_the_whole() -> None:
    vae, latent = _vae(PATCHED), torch.randn(1, 16, 2, 3, 4)
    frames, _ = decode_unit_tiled(vae, latent, tile=4)
    torch.testing.assert_close(frames, vae.decode(latent), atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="at least 2"):
        decode_unit_tiled(vae, latent, tile=1)


def test_latents_are_normalised_by_kind_of_unit() -> None:
    norm = LatentNorm(Affine((1.0,), 2.0), Affine(tuple(range(16)), 0.5))
    latent = torch.randn(2, 16, 3, 2, 2)
    given = latent.clone()
    normal = norm.normalise(latent)
    assert torch.equal(normal[:, :, :1], (latent[:, :, :1] - 1) * 2)
    assert torch.equal(normal[:, 5, 1:], (latent[:, 5, 1:] - 5) * 0.5)
    assert torch.equal(norm.normalise(latent[:, :, 1:], first_unit_index=1), normal[:, :, 1:])
    assert torch.equal(norm.normalise(latent[0]), normal[0])
    torch.testing.assert_close(norm.denormalise(normal), latent, atol=1e-5, rtol=0)
    assert torch.equal(latent, given)


def test_measured_norm_centres_each_channel_and_scales_all_alike() -> None:
    latent = torch.randn(4, 16, 3, 4, 4) * torch.linspace(0.5, 4, 16).view(-1, 1, 1, 1) + 3
    norm = LatentNorm.measured(latent[:, :, :1], latent[:, :, 1:])
    normal = norm.normalise(latent)
    torch.testing.assert_close(normal[:, :, 1:].mean(dim=(0, 2, 3, 4)), torch.zeros(16), atol=1e-4, rtol=0)
    assert abs(float(normal[:, :, 1:].std()) - 1) < 0.01


def test_a_saved_folder_loads_the_same_model(tmp_path: Path) -> None:
    vae, norm = _vae(PATCHED), LatentNorm(Affine((0.1,) * 16, 0.5), Affine((0.2,) * 16, 0.3))
    save_vae(tmp_path / "vae", vae, norm)
    again, read = load_vae(tmp_path / "vae")
    assert read == norm
    assert again.config == vae.config
    assert all(torch.equal(a, b) for a, b in zip(vae.parameters(), again.parameters(), strict=True))
    with pytest.raises(UserError, match=r"config\.json is missing"):
        load_vae(tmp_path / "nothing")


def test_damaged_folders_are_named(tmp_path: Path) -> None:
    save_vae(tmp_path, _vae(PATCHED), LatentNorm(Affine((0.0,), 1.0), Affine((0.0,), 1.0)))
    weights, config, norm = tmp_path / WEIGHTS_FILE, tmp_path / CONFIG_FILE, tmp_path / NORM_FILE
    for path, content, message in (
        (norm, "{}", "does not hold shift and scale"),
        (weights, "nonsense", "cannot be read as safetensors"),
        (config, '{"encoder_act_fn": "relu"}', "encoder_act_fn is 'relu', only 'silu'"),
        (config, '{"encoder_norm_num_groups": 0}', "encoder_norm_num_groups must be greater than 0, not 0"),
        (config, "[", "cannot be read"),
    ):
        kept = path.read_bytes()
        path.write_text(content)
        with pytest.raises(UserError, match=message):
            load_vae(tmp_path)
        path.write_bytes(kept)
    load_vae(tmp_path)
    config.write_text(config.read_text().replace('"patch_size": 2', '"patch_size": 1'))
    with pytest.raises(UserError, match=r"has shape .*, config\.json asks for"):
        load_vae(tmp_path)


def test_frames_are_cut_to_bytes() -> None:
    video = torch.tensor([-2.0, -1.0, 0.0, 1.0, 3.0]).view(1, 1, 5, 1, 1).expand(1, 3, 5, 2, 4)
    frames = to_uint8(video)
    assert frames.shape == (1, 5, 2, 4, 3)
    assert frames[0, :, 0, 0, 0].tolist() == [0, 0, 127, 255, 255]


def test_the_shipped_configuration_loads_and_fits_the_digits_world() -> None:
    config = load(VaeTrainingConfig, "jobs/configs/digits_vae.yaml").model
    assert (config.spatial_factor, config.temporal_factor, config.encoder_out_channels) == (8, 8, 16)
    with torch.device("meta"):
        assert CausalVideoVae(config).encode(torch.empty(1, 3, 25, 64, 64)).mean.shape == (1, 16, 4, 8, 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decoder_spatial_up_sample": (True, False, False, False)}, "equally often"),
        ({"encoder_layers_per_block": (1, 1)}, "lists 2 blocks"),
        ({"encoder_norm_num_groups": 5}, "does not divide"),
        ({"encoder_out_channels": 8}, "must equal"),
    ],
)
def test_inconsistent_architectures_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VaeConfig(**change)  # type: ignore[arg-type]
