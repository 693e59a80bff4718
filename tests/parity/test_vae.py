"""The causal VAE against recorded tensors of the authors' implementation: every `vae` case of a golden folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from framegrove.config.vae import VaeConfig
from framegrove.models.vae import CausalVideoVae
from framegrove.models.vae_files import Affine, LatentNorm, to_uint8
from framegrove.models.vae_tiling import decode_unit_tiled, encode_unit_tiled

VIDEO = {"shift": -0.2343, "scale": 1 / 3.0986}  # both released variants


def _golden(config: pytest.Config) -> Path:
    return Path(config.getoption("--golden"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    manifest = json.loads((_golden(metafunc.config) / "manifest.json").read_text(encoding="utf-8"))
    cases = manifest["cfg"].get("vae", {}).get("cases", {})
    chosen = {
        "whole": [n for n, c in cases.items() if c["op"] != "pipe_decode" and not c.get("tiling")],
        "tiled": [n for n, c in cases.items() if c.get("tiling")],
        "pipe": [n for n, c in cases.items() if c["op"] == "pipe_decode"],
    }
    for kind, names in chosen.items():
        if kind in metafunc.fixturenames:
            metafunc.parametrize(kind, names)


class Golden:
    def __init__(self, folder: Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        self.config: dict[str, Any] = manifest["cfg"]["vae"]["config"]
        self.cases: dict[str, Any] = manifest["cfg"]["vae"]["cases"]
        self.tolerance: dict[str, Any] = manifest["recommended_tolerances"]["vae"]
        self.tensors = load_file(folder / "vae_io.safetensors")
        self.weights = load_file(folder / "vae_weights.safetensors")

    def vae(self, case: dict[str, Any]) -> CausalVideoVae:
        vae = CausalVideoVae(VaeConfig.model_validate(self.config))
        vae.load_state_dict(self.weights)
        with torch.no_grad():
            for key, factor in case.get("scale_params", {}).items():
                for name, parameter in vae.named_parameters():
                    if f".{key}." in f".{name}":
                        parameter.mul_(factor)
        return vae.eval().requires_grad_(False)

    def input(self, case: dict[str, Any]) -> Tensor:
        return self.tensors[f"in.{case['input']}"]

    def close(self, actual: Tensor, name: str) -> None:
        expected = self.tensors[name]
        torch.testing.assert_close(actual, expected, atol=self.tolerance["atol"], rtol=self.tolerance["rtol"])


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(_golden(request.config))


def test_encodes_and_decodes_as_the_reference(golden: Golden, whole: str) -> None:
    case = golden.cases[whole]
    vae, given = golden.vae(case), golden.input(case)
    window = case.get("kw", {}).get("window_size") if case.get("kw", {}).get("temporal_chunk") else None
    if case["op"] == "encode":
        mean, logvar = _encode(vae, given, window)
        golden.close(mean, f"out.{whole}.mean")
        golden.close(logvar, f"out.{whole}.logvar")
    else:
        golden.close(_decode(vae, given, window), f"out.{whole}.sample")


def test_tiles_come_closer_to_the_untiled_result_than_the_reference(golden: Golden, tiled: str) -> None:
    case = golden.cases[tiled]
    vae, given = golden.vae(case), golden.input(case)
    tile = case["kw"]["tile_sample_min_size"] // vae.config.spatial_factor
    if case["op"] == "encode":
        moments, _ = encode_unit_tiled(vae, given, tile=tile)
        whole = vae.encode(given)
        pairs = [("mean", moments.mean, whole.mean), ("logvar", moments.logvar, whole.logvar)]
    else:
        pairs = [("sample", decode_unit_tiled(vae, given, tile=tile)[0], vae.decode(given))]
    for name, ours, untiled in pairs:
        theirs = golden.tensors[f"out.{tiled}.{name}"]
        assert (ours - untiled).square().mean() < (theirs - untiled).square().mean()


def test_decodes_normalised_latents_to_the_reference_frames(golden: Golden, pipe: str) -> None:
    case = golden.cases[pipe]
    video = Affine((case.get("video_shift", VIDEO["shift"]),), case.get("video_scale", VIDEO["scale"]))
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
