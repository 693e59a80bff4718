"""NOVA through its adapter, with a stand-in of its published interface: frames that are there are not made again."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from framegrove.config.base import ConfigError
from framegrove.config.generator import AdaptedSource
from framegrove.errors import UserError
from framegrove.flow.sampler import CancelledSampling, StageLatent
from framegrove.generators.finding import adapter_of
from framegrove.generators.nova import Nova, steps_of
from framegrove.generators.protocol import Task, Wanted
from framegrove.types import Path, Sampling, prefixes
from tests.tiny_nova import Pipeline

TINY = {"pipeline": "tests.tiny_nova:Pipeline", "width": 64, "height": 64, "latents": 3, "steps": 6}
WANTED = Wanted("a red kite", seed=5, height=64, width=64, units=3, frames=9)


def nova(**options: Any) -> Nova:
    found = adapter_of(AdaptedSource(kind="nova", where="tiny", options={**TINY, **options}))
    assert isinstance(found, Nova)
    found.load("cpu")
    return found


def sampled(generator: Nova, path: Path, history: tuple[StageLatent, ...]) -> StageLatent:
    (unit,) = generator.sample([Task(WANTED, path, history)], range(1), lambda: False, lambda: None)
    return unit


def grown(generator: Nova, path: Path) -> tuple[StageLatent, ...]:
    units: tuple[StageLatent, ...] = ()
    for prefix in prefixes(path):
        units += (sampled(generator, prefix, units),)
    return units


def test_frame_by_frame_it_makes_what_its_own_loop_makes() -> None:
    generator, pipe, path = nova(), Pipeline(), (1, 0, 2)
    units = grown(generator, path)
    make, paths = pipe.transformer.generate_frame, iter(prefixes(path))

    def with_own_numbers(states: dict[str, Any], inputs: dict[str, Any]) -> None:
        make(states, {**inputs, "generator": generator._generator(Task(WANTED, next(paths), ()))})

    pipe.transformer.generate_frame = with_own_numbers  # type: ignore[method-assign]
    whole = pipe(WANTED.prompt, 6, 25, 3, 5.0, 5.0, None, torch.Generator(), True, "latent").frames
    assert torch.equal(torch.stack([unit.x for unit in units], 1)[None], whole)


def test_only_the_new_frame_is_made_and_any_actor_makes_the_same() -> None:
    here, there = nova(), nova()
    history = grown(here, (0, 3))
    before = there._pipe.transformer.generated
    new = sampled(there, (0, 3, 1), history)
    assert there._pipe.transformer.generated == before + 1
    assert torch.equal(new.x, grown(here, (0, 3, 1))[-1].x)
    assert not torch.equal(new.x, sampled(here, (0, 3, 2), history).x)
    assert not new.x.is_inference()
    (first,), (third,) = (
        here.decode([Task(WANTED, (0,) * (n + 1), history[:n])], [unit])
        for n, unit in ((0, history[0]), (2, new))
    )  # fmt: skip
    assert first.shape == (1, 64, 64, 3)
    assert third.shape == (4, 64, 64, 3)


def test_a_frame_is_given_up_between_two_steps_and_priced_by_them() -> None:
    generator, steps = nova(), []
    with pytest.raises(CancelledSampling) as cancelled:
        generator.sample([Task(WANTED, (0,), ())], range(1), lambda: len(steps) == 2, lambda: steps.append(1))
    assert cancelled.value.steps == 2
    assert "generate_frame" not in vars(generator._pipe.transformer)
    assert "progress_bar" not in vars(generator._pipe.transformer)
    steps.clear()
    generator.sample([Task(WANTED, (0,), ())], range(1), lambda: False, lambda: steps.append(1))
    assert [len(steps)] == [steps_of(6, 16)] == list(generator.price(WANTED)[0].steps)
    assert steps_of(64, 1440) == 63, "the first step would predict less than half a patch"
    unguided = Wanted(**{**vars(WANTED), "sampling": Sampling(guidance=1.0)})
    assert 2 * generator.price(unguided)[0].step_flops[0] == generator.price(WANTED)[0].step_flops[0]


def test_what_cannot_be_made_is_told_in_a_sentence() -> None:
    with pytest.raises(UserError, match="a video of 32x64 cannot be made: this NOVA makes 64x64 alone"):
        nova().price(Wanted(**{**vars(WANTED), "width": 32}))
    with pytest.raises(ConfigError, match="makes videos of 64x64, not 768x480: set width and height"):
        nova(width=768, height=480)
    with pytest.raises(ConfigError, match="unknown key 'step', did you mean 'steps'"):
        nova(step=3)
    with pytest.raises(ConfigError, match=r"NOVA \(tiny\): the module diffnext.pipelines cannot be imported"):
        nova(pipeline="diffnext.pipelines:NOVAPipeline")
