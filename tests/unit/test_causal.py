"""Chunk-wise causal generators: a branch's cache is its units' own parts of it, shared with all who have them too."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from actors.adapted import AdaptedFiles
from framegrove.config.base import ConfigError
from framegrove.config.generator import AdaptedSource
from framegrove.flow.sampler import CancelledSampling, StageLatent
from framegrove.generators.causal import Causal, Noise
from framegrove.generators.finding import adapter_of
from framegrove.generators.protocol import ListedCosts, Task, Wanted
from framegrove.lineage import Mutation
from framegrove.types import GenerationRequest, Path, prefixes
from tests.tiny_causal import LAYERS, TIMES, WIDTH, TinyCausal

WANTED = Wanted("a red kite", seed=3, height=32, width=32, units=4, frames=29)
TOKENS = 32  # of a chunk


def adapter(**options: Any) -> Causal:
    found = Causal("nowhere", model="tests.tiny_causal:TinyCausal", **options)
    found.load("cpu")
    return found


def sampled(generator: Causal, paths: list[Path], history: tuple[StageLatent, ...] = ()) -> list[StageLatent]:
    tasks = [Task(WANTED, path, history) for path in paths]
    with torch.no_grad():
        return generator.sample(tasks, range(1), lambda: False, lambda: None)


def grown(generator: Causal, path: Path) -> list[StageLatent]:
    units: list[StageLatent] = []
    for prefix in prefixes(path):
        units += sampled(generator, [prefix], tuple(units))
    return units


def travelled(unit: StageLatent) -> StageLatent:
    """As a search gets it that was interrupted and goes on elsewhere."""
    tensors = load(save({"x": unit.x, **unit.more}))
    return StageLatent(unit.stage, tensors.pop("x"), tensors)


def without_cache(path: Path, attended: Any) -> list[Tensor]:
    """The latents of a branch by whole passes over all chunks so far, behind a mask, without any cache."""
    model = TinyCausal("nowhere")
    model.load("cpu")
    text = model.encode(WANTED.prompt, WANTED.sampling)
    clean: list[Tensor] = []
    for index, prefix in enumerate(prefixes(path)):
        chunks = torch.arange(index + 1).repeat_interleave(TOKENS)
        sees = torch.tensor([[c == r or c in attended(r) for c in range(index + 1)] for r in range(index + 1)])
        mask = sees[chunks][:, chunks]
        noise, x = Noise(WANTED.seed, prefix), Noise(WANTED.seed, prefix).normal((TOKENS, WIDTH))
        for number, time in enumerate(TIMES):
            times = torch.where(chunks == index, time, 0.0)
            places = torch.arange(TOKENS).repeat(index + 1)
            angle = (0.3 * chunks + 0.1 * places)[:, None] * model.place
            h = torch.cat([*clean, x]) + text + times[:, None] * model.time + torch.sin(angle)
            h = h[None]
            for layer in model.layers:
                h, _, _ = layer(h, torch.empty(0, WIDTH), torch.empty(0, WIDTH), mask)
            later = TIMES[number + 1] if number + 1 < len(TIMES) else 0.0
            x = (1 - later) * h[0, -TOKENS:] + later * noise.normal((TOKENS, WIDTH), number + 1)
        clean.append(x)
    return clean


@pytest.mark.parametrize("options", [{}, {"window": 1}, {"window": 1, "sinks": 1}, {"window": 2}])
def test_chunks_over_a_cache_are_those_of_whole_passes(options: dict[str, int]) -> None:
    generator = adapter(**options)
    units = grown(generator, (1, 0, 2, 5))
    expected = without_cache((1, 0, 2, 5), generator.attended)
    for unit, latent in zip(units, expected, strict=True):
        torch.testing.assert_close(unit.x, latent, atol=2e-5, rtol=0)
    if options == {"window": 1}:
        whole = grown(adapter(), (1, 0, 2, 5))
        assert torch.equal(units[1].x, whole[1].x)
        assert not torch.equal(units[2].x, whole[2].x), "a window leaves something out"


def test_a_window_keeps_the_latest_chunks_and_the_first_ones() -> None:
    assert [adapter(window=2, sinks=1).attended(index) for index in range(6)] == [
        (), (0,), (0, 1), (0, 1, 2), (0, 2, 3), (0, 3, 4),
    ]  # fmt: skip
    assert adapter(window=2).attended(5) == (3, 4)
    assert adapter().attended(3) == (0, 1, 2)


def test_siblings_that_share_a_cache_are_those_that_had_one_each() -> None:
    together, alone = adapter(), adapter()
    history = tuple(grown(together, (0, 1)))
    children = [(0, 1, child) for child in range(3)]
    shared = sampled(together, children, history)
    for path, child in zip(children, shared, strict=True):
        own = grown(alone, path)[-1]  # its past computed again, for it alone
        assert child.more.keys() == own.more.keys()
        torch.testing.assert_close(child.x, own.x, atol=2e-6, rtol=0)  # batched products round otherwise
        for name, tensor in own.more.items():
            torch.testing.assert_close(child.more[name], tensor, atol=1 if name == "frames" else 2e-6, rtol=0)
    assert not torch.equal(shared[0].x, shared[1].x)
    for path, child in zip(children, shared, strict=True):  # one by one over the shared cache: to the last bit
        (again,) = sampled(together, [path], history)
        assert torch.equal(again.x, grown(alone, path)[-1].x)
        torch.testing.assert_close(again.x, child.x, atol=2e-6, rtol=0)


def test_another_actor_goes_on_to_the_last_bit() -> None:
    history = tuple(grown(adapter(), (2, 0)))
    (here,) = sampled(adapter(), [(2, 0, 1)], history)
    (there,) = sampled(adapter(), [(2, 0, 1)], tuple(map(travelled, history)))
    assert torch.equal(here.x, there.x)
    assert all(torch.equal(tensor, there.more[name]) for name, tensor in here.more.items())


def test_a_unit_keeps_its_own_part_of_the_cache_and_no_more() -> None:
    units = grown(adapter(), (0, 0, 0, 0))
    for unit in units:
        kept = {name: tensor for name, tensor in unit.more.items() if name.startswith("kv/")}
        assert len(kept) == 2 * LAYERS
        assert all(tensor.shape == (TOKENS, WIDTH) for tensor in kept.values())
        assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in unit.more.values())
    sizes = [sum(tensor.nbytes for name, tensor in unit.more.items() if name != "frames") for unit in units]
    assert len(set(sizes)) == 1, "however long the branch is"


def test_the_decoder_goes_on_where_it_was() -> None:
    generator = adapter()
    units = grown(generator, (0, 0, 0))
    frames = generator.decode([Task(WANTED, (0,), ())] * 3, units)
    assert [clip.shape for clip in frames] == [(5, 32, 32, 3), (8, 32, 32, 3), (8, 32, 32, 3)]
    jumps = [np.abs(np.diff(clip.astype(int), axis=0)).mean(axis=(1, 2, 3)) for clip in frames]
    across = np.abs(frames[1][0].astype(int) - frames[0][-1]).mean()
    assert 0 < across <= 1.5 * max(jump.max() for jump in jumps)


def test_a_chunk_is_given_up_between_two_steps_and_costs_what_was_done() -> None:
    generator, steps = adapter(), []
    with pytest.raises(CancelledSampling) as cancelled:
        generator.sample([Task(WANTED, (0,), ())], range(1), lambda: len(steps) == 2, lambda: steps.append(1))
    assert cancelled.value.steps == 2
    costs = ListedCosts(tuple(generator.price(WANTED)))
    assert costs.unit(0).nfe == len(TIMES) + 1
    assert costs.unit(0, most_steps=2).nfe == 2
    assert [price.step_flops[0] for price in costs.units] == sorted({price.step_flops[0] for price in costs.units})
    windowed = adapter(window=1).price(WANTED)
    assert windowed[3] == windowed[1], "no dearer beyond the window"


def test_works_of_several_searches_are_counted_once() -> None:
    generator, steps = adapter(), []
    history = tuple(grown(generator, (0,)))
    tasks = [Task(WANTED, (0, 1), history), Task(WANTED, (0, 2), tuple(map(travelled, history)))]
    made = generator.sample(tasks, range(1), lambda: False, lambda: steps.append(1))
    assert len(steps) == len(TIMES) + 1
    for path, unit in zip(((0, 1), (0, 2)), made, strict=True):
        assert torch.equal(unit.x, sampled(generator, [path], history)[0].x)


def test_what_cannot_be_used_is_told_in_a_sentence() -> None:
    def source(**options: Any) -> AdaptedSource:
        return AdaptedSource(kind="causal", where="weights", options=options)

    model = {"model": "tests.tiny_causal:TinyCausal"}
    assert AdaptedFiles(source(**model)).native.lengths(3) == (5, 8, 8)
    for options, sentence in (
        ({}, "weights: framegrove.generators.causal:Causal cannot be made with these options"),
        ({"model": "tests.nowhere:Model"}, "the module tests.nowhere cannot be imported"),
        ({"model": "tests.tiny_causal:Layer"}, "tests.tiny_causal:Layer has no form and no identity"),
        ({**model, "window": -1}, "window must be a whole number of chunks, 0 or more, not -1"),
        ({**model, "sinks": 1}, "sinks are kept beside a window"),
        ({**model, "wieghts": 1}, "cannot be made with these options"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            adapter_of(source(**options))
    prints = {AdaptedFiles(source(**model, **more)).fingerprint() for more in ({}, {"window": 1}, {"weights": 1})}
    assert len(prints) == 3
    request = GenerationRequest("a kite", seed=0, height=32, width=32, units=2)
    assert AdaptedFiles(source(**model)).costs(request).unsearched(2).nfe == 2 * (len(TIMES) + 1)


def test_a_mutated_chunk_stays_close_to_its_sibling() -> None:
    """Few-step models draw noise at each step: were all of that fresh, it would hardly be a mutation."""
    generator = adapter()
    near = Mutation(3, 0, 10, 0).index
    assert torch.equal(Noise(5, (3,)).normal((4,), 2), Noise(5, (near,)).normal((4,), 2))
    (unit,), (close,), (far,) = (sampled(generator, [(path,)]) for path in (3, near, 4))
    assert 0 < (unit.x - close.x).abs().mean() < 0.5 * (unit.x - far.x).abs().mean()
