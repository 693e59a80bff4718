"""Block noise has exactly the stated covariance; the noise pyramid stays white; a branch's noise is its own."""

from __future__ import annotations

import math

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
from framegrove.lineage import FRESH, Mutation


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


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 1), (2, 2)])
def test_a_doubled_latent_has_memory_of_its_own(size: tuple[int, int]) -> None:
    latent = torch.randn(4, 3, *size)
    before = latent.clone()
    doubled = double(latent)
    torch.testing.assert_close(doubled.mul_(2), double(2 * before), rtol=0, atol=0)
    assert torch.equal(latent, before)


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


def moments(parent: torch.Tensor, child: torch.Tensor) -> list[float]:
    """Mean and variance of the child, and its covariance with the parent."""
    return [child.mean().item(), child.var().item(), (parent * child).mean().item()]


@pytest.mark.parametrize(("initial", "jump"), [(30, 30), (90, 60), (60, 0), (0, 60)])
def test_mutated_noise_is_gaussian_and_correlated_with_its_parents(initial: int, jump: int) -> None:
    source, shape = HashNoise(), (16, 1, 128, 128)
    child, parent = (5, Mutation(2, 4, initial, jump).index), (5, 2)
    for strength, draw in ((initial, source.initial), (jump, lambda s, p, n: source.jump(s, p, 2, n))):
        kept = math.sqrt(1 - (strength / 100) ** 2)
        before, after = draw(3, parent, shape), draw(3, child, shape)
        assert moments(before, after) == pytest.approx([0, 1, kept], abs=0.01)
        assert torch.equal(before, after) == (strength == 0)
        fourth = (after**4).mean().item()
        assert fourth == pytest.approx(3, abs=0.05)  # that of a Gaussian


def test_mutated_jump_noise_has_the_covariance_of_block_noise() -> None:
    path = (Mutation(0, 0, 60, 60).index,)
    path = (Mutation(path[0], 1, 60, 30).index,)
    noise = HashNoise(gamma=-1 / 3).jump(3, path, 1, (16, 1, 64, 64))
    assert halve(noise).abs().max() < 1e-6  # the singular direction is exact
    blocks = HashNoise(gamma=-0.2).jump(3, path, 1, (64, 1, 64, 64)).reshape(64, 32, 2, 32, 2)
    blocks = blocks.permute(0, 1, 3, 2, 4).reshape(-1, 4)
    expected = torch.eye(4) * 1.2 - 0.2
    torch.testing.assert_close(blocks.T.cov(), expected, atol=0.02, rtol=0)


def test_a_lineage_is_mixed_generation_by_generation() -> None:
    source, shape = HashNoise(), (4, 1, 8, 8)
    first = Mutation(1, 0, 60, 60)
    second = Mutation(first.index, 2, 80, 80)
    expected = source.initial(9, (7, 1), shape)
    for mutation in (first, second):
        fresh = torch.randn(shape, generator=generator_for(9, (7, mutation.index), "noise"))
        expected = math.sqrt(1 - (mutation.initial / 100) ** 2) * expected + mutation.initial / 100 * fresh
    torch.testing.assert_close(source.initial(9, (7, second.index), shape), expected)
    assert not torch.equal(expected, source.initial(9, (8, second.index), shape))  # another branch, another noise


def test_noise_of_branches_without_mutation_has_not_changed() -> None:
    """Finished searches, caches and golden losses depend on it."""
    source, shape = HashNoise(), (1, 1, 2, 2)
    initial = torch.tensor([-0.987338125705719, -0.5520228147506714, 1.1906791925430298, -0.7840657234191895])
    assert torch.equal(source.initial(7, (2, 1), shape).flatten(), initial)
    jump = torch.tensor([-0.6958793997764587, 0.9141346216201782, 0.29470980167388916, -0.5129650235176086])
    assert torch.equal(source.jump(7, (2, 1), 1, shape).flatten(), jump)
    last = torch.randn(shape, generator=generator_for(7, (2, FRESH - 1), "noise"))
    assert torch.equal(source.initial(7, (2, FRESH - 1), shape), last)
