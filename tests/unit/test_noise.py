"""Block noise has exactly the stated covariance; the noise pyramid stays white; a branch's noise is its own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from framegrove.flow.noise import (
    HashNoise,
    block_noise,
    double,
    generator_for,
    halve,
    mix_blocks,
    noise_pyramid,
    pyramid,
)


@given(st.floats(-1 / 3, 0.0))
def test_block_covariance_is_exact_for_any_gamma(gamma: float) -> None:
    """The map from white noise is linear: pushing unit vectors through it gives the covariance without sampling."""
    units = torch.eye(16, dtype=torch.float64).reshape(16, 4, 2, 2).transpose(0, 1)
    root = mix_blocks(units, gamma).reshape(16, 16)
    block = torch.arange(16).reshape(4, 4)
    expected = torch.eye(16, dtype=torch.float64)
    for row in (0, 2):
        for column in (0, 2):
            members = block[row : row + 2, column : column + 2].flatten()
            for one in members:
                for other in members:
                    if one != other:
                        expected[one, other] = gamma
    torch.testing.assert_close(root.T @ root, expected, atol=1e-12, rtol=0)


def test_three_draws_are_enough_where_the_covariance_is_singular() -> None:
    root = mix_blocks(torch.eye(3, dtype=torch.float64).reshape(3, 3, 1, 1), -1 / 3).reshape(3, 4)
    expected = torch.eye(4, dtype=torch.float64) * 4 / 3 - torch.full((4, 4), 1 / 3, dtype=torch.float64)
    torch.testing.assert_close(root.T @ root, expected, atol=1e-12, rtol=0)


def test_singular_noise_sums_to_zero_in_each_block() -> None:
    noise = block_noise((2, 3, 1, 8, 6), generator_for(0, (1,)), -1 / 3)
    assert halve(noise).abs().max() < 1e-6
    assert noise.var().item() == pytest.approx(1, abs=0.15)


def test_odd_sizes_and_wrong_gammas_are_refused() -> None:
    with pytest.raises(ValueError, match="even height and width, not 3x4"):
        block_noise((3, 4), None, -1 / 3)
    with pytest.raises(ValueError, match="between -1/3 and 0"):
        block_noise((4, 4), None, 1 / 3)


def test_noise_pyramid_is_white_and_nested() -> None:
    noise = torch.randn(64, 1, 64, 64, generator=generator_for(0, ()))
    coarse, middle, fine = noise_pyramid(noise, 3)
    assert fine is noise
    torch.testing.assert_close(middle, 2 * torch.nn.functional.avg_pool2d(fine, 2))
    assert [level.std().item() for level in (coarse, middle)] == pytest.approx([1, 1], abs=0.02)


def test_pyramid_refuses_what_cannot_be_halved() -> None:
    with pytest.raises(ValueError, match="6x8 cannot be halved 2 times: height and width must be multiples of 4"):
        pyramid(torch.zeros(1, 6, 8), 3)


def test_doubling_then_halving_changes_nothing() -> None:
    latent = torch.randn(2, 3, 1, 4, 6)
    assert torch.equal(double(latent)[..., ::2, 1::2], latent)
    torch.testing.assert_close(halve(double(latent)), latent)


def test_noise_is_a_function_of_seed_path_and_purpose() -> None:
    def draw(seed: int, path: tuple[int, ...], *labels: str | int) -> torch.Tensor:
        return torch.randn(8, generator=generator_for(seed, path, *labels))

    first = draw(3, (0, 1), "jump", 1)
    assert torch.equal(first, draw(3, (0, 1), "jump", 1))
    for other in (draw(4, (0, 1), "jump", 1), draw(3, (1, 0), "jump", 1), draw(3, (0, 1), "jump", 2), draw(3, (0, 1))):
        assert not torch.equal(first, other)


def test_hash_noise_does_not_touch_global_random_state() -> None:
    source = HashNoise()
    before = torch.get_rng_state()
    assert torch.equal(source.initial(7, (2, 0), (4, 1, 8, 8)), source.initial(7, (2, 0), (4, 1, 8, 8)))
    assert torch.equal(source.jump(7, (2,), 1, (4, 1, 8, 8)), source.jump(7, (2,), 1, (4, 1, 8, 8)))
    assert torch.equal(torch.get_rng_state(), before)
