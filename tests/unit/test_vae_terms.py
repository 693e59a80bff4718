"""The VAE's further terms: closed forms of the perceptual distance and of the adversarial losses."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from framegrove.errors import UserError
from framegrove.models.vae_files import Affine, LatentNorm, save_vae
from framegrove.training.adversarial import (
    Discriminator,
    PatchDiscriminator,
    balance,
    discriminator_loss,
    generator_loss,
)
from framegrove.training.perceptual import distance, load_perception, vgg_features
from tests.tiny import tiny_vae

CPU = torch.device("cpu")
WIDTHS = (4, 4, 6, 6, 8)  # of VGG16's groups, which are 64 to 512 wide


def test_the_distance_by_hand() -> None:
    """Two layers; at each place the vectors are (3, 4) and (5, 12) long, or at right angles."""
    mine = [torch.tensor([[3.0, 4.0]]).view(1, 2, 1, 1), torch.tensor([[[1.0, 2.0], [0.0, 0.0]]]).view(1, 2, 1, 2)]
    theirs = [torch.tensor([[5.0, 12.0]]).view(1, 2, 1, 1), torch.tensor([[[0.0, 2.0], [7.0, 0.0]]]).view(1, 2, 1, 2)]
    first = (3 / 5 - 5 / 13) ** 2 + (4 / 5 - 12 / 13) ** 2
    second = (1 + 1 + 0) / 2  # (1, 0) against (0, 1), and equal ones, on average
    assert float(distance(mine, theirs)) == pytest.approx(first + second, rel=1e-6)
    weights = [torch.tensor([2.0, 0.0]), torch.tensor([0.0, 3.0])]
    expected = 2 * (3 / 5 - 5 / 13) ** 2 + 3 / 2
    assert float(distance(mine, theirs, weights)) == pytest.approx(expected, rel=1e-6)
    scaled = [7 * layer for layer in mine]
    assert float(distance(scaled, mine)) == pytest.approx(0, abs=1e-6)  # only directions count


def vgg_weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    groups = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
    weights, inputs = {}, 3
    for width, group in zip(WIDTHS, groups, strict=True):
        for index in group:
            weights[f"features.{index}.weight"] = torch.randn(width, inputs, 3, 3, generator=generator) / inputs
            weights[f"features.{index}.bias"] = torch.randn(width, generator=generator)
            inputs = width
    return weights


def test_vgg_is_the_network_that_its_configuration_says() -> None:
    """Against torch's own layers in a row, tapped behind the last ReLU of each group."""
    weights = vgg_weights()
    layers: list[nn.Module] = []
    inputs = 3
    for width, count in zip(WIDTHS, (2, 2, 3, 3, 3), strict=True):
        for _ in range(count):
            layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU()]
            inputs = width
        layers.append(nn.MaxPool2d(2))
    network = nn.Sequential(*layers)
    network.load_state_dict({name.removeprefix("features."): value for name, value in weights.items()})
    video = torch.rand(2, 3, 3, 32, 32) * 2 - 1
    x = video.transpose(1, 2).reshape(6, 3, 32, 32)
    x = (x - torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1)) / torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1)
    expected = []
    for number, layer in enumerate(network):
        x = layer(x)
        if number in (3, 8, 15, 22, 29):
            expected.append(x)
    for ours, theirs in zip(vgg_features(weights)(video), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_features_are_vgg_with_or_without_lpips_or_a_vae(tmp_path: Path) -> None:
    weights = vgg_weights()
    save_file(weights, tmp_path / "vgg.safetensors")
    lpips = {f"lin{layer}.model.1.weight": torch.zeros(1, width, 1, 1) for layer, width in enumerate(WIDTHS)}
    save_file(weights | lpips, tmp_path / "lpips.safetensors")
    plain = Affine((0.0,), 1.0)
    save_vae(tmp_path / "vae", tiny_vae(), LatentNorm(plain, plain))
    video, other = torch.rand(2, 1, 3, 9, 32, 32) * 2 - 1
    for name, zero in (("vgg.safetensors", False), ("lpips.safetensors", True), ("vae", False)):
        perception = load_perception(str(tmp_path / name), CPU)
        moving = video.clone().requires_grad_()
        found = perception(moving, other)
        assert (found.item() == 0) == zero
        assert float(perception(video, video)) == pytest.approx(0, abs=1e-9)
        found.backward()
        assert moving.grad is not None
        assert bool(moving.grad.abs().max() > 0) != zero
    save_file(dict(list(lpips.items())[:2]) | weights, tmp_path / "some.safetensors")
    save_file({"features.0.weight": weights["features.0.weight"]}, tmp_path / "part.safetensors")
    for name, message in (
        ("some.safetensors", "holds some of LPIPS' weights, but not all"),
        ("part.safetensors", r"does not hold VGG16, as torchvision names it: features\.0\.bias is missing"),
        ("nowhere", "is neither a VAE's folder nor a safetensors file"),
    ):
        with pytest.raises(UserError, match=message):
            load_perception(str(tmp_path / name), CPU)


def test_the_hinge_losses_by_hand() -> None:
    real, made = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.0, 1.0])
    assert float(discriminator_loss(real, made)) == pytest.approx((0 + 0.5 + 2) / 3 + (0 + 1 + 2) / 3)
    assert float(generator_loss(made)) == pytest.approx(2 / 3)
    assert float(discriminator_loss(torch.full((4,), 1.5), torch.full((4,), -1.0))) == 0


def test_the_balance_is_the_ratio_of_the_gradients() -> None:
    last = torch.tensor([3.0, 4.0], requires_grad=True)
    loss, adversarial = last.square().sum(), (last * torch.tensor([0.6, 0.8])).sum()
    assert balance(loss, adversarial, last).item() == pytest.approx(10 / (1 + 1e-4))  # |2 (3, 4)| over |(0.6, 0.8)|
    assert balance(loss, 0 * adversarial, last).item() == 1e4
    (loss + adversarial).backward()  # both graphs are still there


def test_the_discriminator_judges_patches_and_learns_to_tell() -> None:
    torch.manual_seed(0)
    judge = Discriminator(3, 8, 3e-3, CPU)
    assert judge.network(torch.zeros(2, 3, 17, 64, 96)).shape == (2, 1, 5, 8, 12)
    assert judge.network(torch.zeros(1, 3, 1, 16, 16)).shape[2:] == (1, 2, 2)  # a picture has patches, too
    smooth = F.interpolate(torch.rand(2, 3, 3, 4, 4) * 2 - 1, (9, 32, 32), mode="trilinear")
    noisy = (smooth + 0.5 * torch.randn(smooth.shape)).requires_grad_()
    losses = [float(judge.learn(smooth, noisy)) for _ in range(60)]
    assert losses[0] == pytest.approx(2, abs=0.5)
    assert losses[-1] < 0.3
    assert noisy.grad is None  # it learns without teaching the one who made them
    judge.verdict(noisy).backward()
    better = noisy - 10 * noisy.grad / noisy.grad.norm()
    assert judge.verdict(better) < judge.verdict(noisy)


def test_a_judge_goes_on_to_the_bit() -> None:
    torch.manual_seed(0)
    first, second = Discriminator(3, 4, 1e-2, CPU), Discriminator(3, 4, 1e-2, CPU)
    real, made = torch.rand(2, 1, 3, 9, 16, 16)
    first.learn(real, made)
    second.load_state_dict(first.state_dict())
    assert float(first.learn(real, made)) == float(second.learn(real, made))
    assert math.isfinite(sum(float(p.abs().sum()) for p in second.network.parameters()))
    assert isinstance(second.network, PatchDiscriminator)
