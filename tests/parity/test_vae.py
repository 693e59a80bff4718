"""The causal VAE against recorded tensors of the authors' implementation: every `vae` case of a golden folder."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from framegrove.models.public import RELEASED_NORMS
from framegrove.models.vae import CausalVideoVae
from framegrove.models.vae_files import Affine, LatentNorm, public_vae_config, to_uint8
from framegrove.models.vae_tiling import decode_unit_tiled, encode_unit_tiled
from tests.parity.recorded import golden_of, scale_parameters

# What the reference takes when a case or the configuration does not say: frames, pixels, pixels per latent cell.
WINDOW, TILE, SCALE = 16, 256, 8


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    cases = golden_of(metafunc.config).cases("vae")
    chosen = {
        "whole": [n for n, c in cases.items() if c["op"] != "pipe_decode" and not c.get("tiling")],
        "tiled": [n for n, c in cases.items() if c.get("tiling")],
        "pipe": [n for n, c in cases.items() if c["op"] == "pipe_decode"],
    }
    for kind, names in chosen.items():
        if kind in metafunc.fixturenames:
            metafunc.parametrize(kind, names)


class Recorded:
    """The VAE's part of a set."""

    def __init__(self, config: pytest.Config) -> None:
        golden = golden_of(config)
        self.config: dict[str, Any] = golden.cfg["vae"]["config"]
        self.cases = golden.cases("vae")
        self.limits = golden.limits("vae")
        self.tensors = golden.tensors("vae_io")
        self.weights = golden.tensors("vae_weights")

    def vae(self, case: dict[str, Any]) -> CausalVideoVae:
        vae = CausalVideoVae(public_vae_config(self.config))
        vae.load_state_dict(self.weights)
        scale_parameters(vae, case)
        return vae.eval().requires_grad_(False)

    def input(self, case: dict[str, Any]) -> Tensor:
        return self.tensors[f"in.{case['input']}"]

    def close(self, actual: Tensor, name: str) -> None:
        self.limits.check(actual, self.tensors[name], name)


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Recorded:
    return Recorded(request.config)


def test_encodes_and_decodes_as_the_reference(golden: Recorded, whole: str) -> None:
    case = golden.cases[whole]
    vae, given = golden.vae(case), golden.input(case)
    options = case.get("kw", {})
    window = options.get("window_size", WINDOW) if options.get("temporal_chunk") else None
    if case["op"] == "encode":
        mean, logvar = _encode(vae, given, window)
        golden.close(mean, f"out.{whole}.mean")
        golden.close(logvar, f"out.{whole}.logvar")
    else:
        golden.close(_decode(vae, given, window), f"out.{whole}.sample")


def test_tiles_come_closer_to_the_untiled_result_than_the_reference(golden: Recorded, tiled: str) -> None:
    case = golden.cases[tiled]
    vae, given = golden.vae(case), golden.input(case)
    tile = max(case.get("kw", {}).get("tile_sample_min_size", TILE) // golden.config.get("downsample_scale", SCALE), 2)
    if case["op"] == "encode":
        moments, _ = encode_unit_tiled(vae, given, tile=tile)
        whole = vae.encode(given)
        pairs = [("mean", moments.mean, whole.mean), ("logvar", moments.logvar, whole.logvar)]
    else:
        pairs = [("sample", decode_unit_tiled(vae, given, tile=tile)[0], vae.decode(given))]
    for name, ours, untiled in pairs:
        theirs = golden.tensors[f"out.{tiled}.{name}"]
        assert ours.shape == untiled.shape
        if theirs.shape != untiled.shape:  # tiles of 4n + 1 cells and the like do not fit together there
            continue
        off = (theirs - untiled).square().mean()
        # Where one tile covers everything both are the untiled result, to rounding.
        assert (ours - untiled).square().mean() < off or off.sqrt() < golden.limits.atol


def test_decodes_normalised_latents_to_the_reference_frames(golden: Recorded, pipe: str) -> None:
    case = golden.cases[pipe]
    video = RELEASED_NORMS["mmdit"].video  # both released models share it
    video = Affine((case.get("video_shift", video.shift[0]),), case.get("video_scale", video.scale))
    norm = LatentNorm(Affine((case["image_shift"],), case["image_scale"]), video)
    given = golden.input(case)
    raw = norm.denormalise(given)
    if given.shape[2] > 1:  # the reference does this in place; a single image it leaves alone
        golden.close(raw, f"out.{pipe}.latent_denorm_inplace")
    frames = to_uint8(golden.vae(case).decode(raw)).flatten(0, 1)
    difference = frames.int() - golden.tensors[f"out.{pipe}.uint8"].int()
    assert difference.abs().max() <= 1


def _encode(vae: CausalVideoVae, video: Tensor, window: int | None) -> tuple[Tensor, Tensor]:
    if window is None:
        whole = vae.encode(video)
        return whole.mean, whole.logvar
    state, parts = None, []
    for chunk in _chunks(video, window):
        moments, state = vae.encode_unit(chunk, state)
        parts.append(moments)
    return torch.cat([p.mean for p in parts], 2), torch.cat([p.logvar for p in parts], 2)


def _decode(vae: CausalVideoVae, latent: Tensor, window: int | None) -> Tensor:
    if window is None:
        return vae.decode(latent)
    state, parts = None, []
    for chunk in _chunks(latent, window):
        frames, state = vae.decode_unit(chunk, state)
        parts.append(frames)
    return torch.cat(parts, 2)


def _chunks(x: Tensor, window: int) -> list[Tensor]:
    """The reference's windows: one frame more in the first."""
    first, rest = x[:, :, : window + 1], x[:, :, window + 1 :]
    return [first, *(rest.split(window, dim=2) if rest.shape[2] else ())]
