"""The generator as a plain object: no Ray in here."""

from __future__ import annotations

import io
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from actors.generator import Context, Generator, Job, TextRead
from actors.model_files import ModelFiles
from actors.pools import context_of
from framegrove.config.model import ModelSource
from framegrove.digits import world as digits
from framegrove.errors import UserError
from framegrove.flow.generation import generate, to_pixels
from framegrove.flow.sampler import StageLatent, packed
from framegrove.media.frames import MediaError
from framegrove.media.writing import encode_lossless
from framegrove.models.pretrained import load_source
from framegrove.models.vae_files import from_uint8
from framegrove.types import GenerationRequest, SampleWork, Sampling
from tests.public_folder import write_public_folder
from tests.tiny import save_tiny, tiny_pipeline

CONTEXT = Context("a red 3 moves left and right", "", seed=7, height=64, width=64, units=4)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def generator(model: Path) -> Generator:
    return Generator(ModelSource(name=str(model)))


def whole(path: tuple[int, ...], *others: tuple[int, ...]) -> SampleWork:
    return SampleWork((path, *others), 0, 2)


def grow(generator: Generator, path: tuple[int, ...]) -> list[Any]:
    """Sample a branch unit by unit; the flat result of the last one and the latents before it."""
    latents: list[StageLatent] = []
    state, result = None, ()
    for depth in range(len(path)):
        result = generator.sample(0, whole(path[: depth + 1]), CONTEXT, depth, state, *latents)
        latents.append(result[1])
        state = result[3]
    return [*result]


def test_units_of_one_and_eight_frames(generator: Generator) -> None:
    made, latent, frames, state, _ = generator.sample(1, whole((0,)), CONTEXT, 0, None)
    assert (made.steps, made.whole) == (6, True)
    assert made.ended >= made.started
    assert frames.shape == (1, 64, 64, 3)
    second = generator.sample(2, whole((0, 1), (0, 0)), CONTEXT, 1, state, latent)
    assert len(second) == 9
    assert second[2].shape == second[6].shape == (8, 64, 64, 3)
    assert not np.array_equal(second[2], second[6])


def test_large_frames_come_with_small_ones(generator: Generator) -> None:
    small = generator.sample(1, whole((0,)), replace(CONTEXT, small=32), 0, None)[4]
    assert small.shape == (1, 32, 32, 3)
    assert generator.sample(1, whole((0,)), CONTEXT, 0, None)[4] is None


def test_a_request_may_be_sampled_in_its_own_way(generator: Generator) -> None:
    own = replace(CONTEXT, sampling=Sampling(steps=1, guidance=1.0))
    jobs = [Job(n, whole((0,)), context, (), (), None) for n, context in enumerate((CONTEXT, own, CONTEXT))]
    usual, hurried, again = generator.sample_together(jobs)
    assert (usual.made.steps, hurried.made.steps) == (6, 3)
    assert torch.equal(usual.units[0].latent.x, again.units[0].latent.x)
    assert not torch.equal(usual.units[0].latent.x, hurried.units[0].latent.x)
    (alone,) = generator.sample_together([jobs[1]])
    assert torch.equal(alone.units[0].latent.x, hurried.units[0].latent.x)


def test_streamed_frames_are_those_of_the_whole_decode(generator: Generator) -> None:
    path = (0, 1, 0)
    latents, frames, state = [], [], None
    for depth in range(3):
        _, latent, shown, state, _ = generator.sample(0, whole(path[: depth + 1]), CONTEXT, depth, state, *latents)
        latents.append(latent)
        frames.append(shown)
    pipeline = tiny_pipeline()
    clean = torch.cat([latent.x for latent in latents], 1)
    with torch.no_grad():
        video = pipeline.vae.decode(pipeline.latent_norm.denormalise(clean)[None])
    at_once = to_pixels(video)[0]
    difference = np.abs(at_once.astype(int) - np.concatenate(frames).astype(int))
    assert difference.max() <= 1  # rounding
    assert (difference > 0).mean() < 1e-3


def test_root_0_is_the_unsearched_sample(generator: Generator) -> None:
    (single,) = generate(tiny_pipeline(), [CONTEXT.prompt], [CONTEXT.seed], units=3)
    assert np.array_equal(grow(generator, (0, 0, 0))[2], single.frames[9:])


def test_any_generator_makes_the_same_branch(generator: Generator, model: Path) -> None:
    first, second = grow(generator, (2, 0)), grow(Generator(ModelSource(name=str(model))), (2, 0))
    assert torch.equal(first[1].x, second[1].x)
    assert np.array_equal(first[2], second[2])


def test_a_lost_decoder_state_is_made_again(generator: Generator) -> None:
    _, first, _, state, _ = generator.sample(0, whole((0,)), CONTEXT, 0, None)
    _, second, _, after, _ = generator.sample(0, whole((0, 1)), CONTEXT, 1, state, first)
    with_state = generator.sample(0, whole((0, 1, 0)), CONTEXT, 2, after, first, second)
    without = generator.sample(0, whole((0, 1, 0)), CONTEXT, 2, None, first, second)
    assert np.array_equal(with_state[2], without[2])


def test_nothing_goes_on_after_the_last_unit(generator: Generator) -> None:
    assert grow(generator, (0, 0, 0))[3] is not None
    assert grow(generator, (0, 0, 0, 0))[3] is None


def test_prompts_are_read(generator: Generator) -> None:
    assert generator.read(CONTEXT, CONTEXT.prompt) == TextRead(8, 1, CONTEXT.prompt, None)
    with pytest.raises(UserError, match="shorten it"):
        generator.read(Context("a red 3 " * 40, "", 7, 64, 64, 4), "a red 3 " * 40)


def test_a_draft_and_its_refinement_are_the_whole_unit(generator: Generator) -> None:
    made, draft, preview, state, _ = generator.sample(3, SampleWork(((4,),), 0, 1), CONTEXT, 0, None)
    assert (made.steps, draft.stage, state) == (4 + 3, 1, None)  # two stages of two steps, and a preview's three
    assert preview.shape == (1, 64, 64, 3)
    _, refined, frames, after, _ = generator.sample(4, SampleWork(((4,),), 2, 2), CONTEXT, 0, None, draft)
    assert torch.equal(refined.x, generator.sample(5, whole((4,)), CONTEXT, 0, None)[1].x)
    assert frames.shape == (1, 64, 64, 3)
    assert after is not None


def test_seed_and_prompt_matter(generator: Generator) -> None:
    frames = grow(generator, (0,))[2]
    for other in (
        Context("a red 3 moves left and right", "", 8, 64, 64, 4),
        Context("a blue 9 moves up and down", "", 7, 64, 64, 4),
    ):
        assert not np.array_equal(frames, generator.sample(0, whole((0,)), other, 0, None)[2])


def test_works_of_several_searches_are_done_together(generator: Generator) -> None:
    """Of other prompts, depths and stages; each as it is alone, but for its rounding."""
    other = Context("a blue 9 moves up and down", "", 8, 64, 64, 4)
    _, first, _, state, _ = generator.sample(0, whole((0,)), CONTEXT, 0, None)
    _, second, *_ = generator.sample(0, whole((0, 1)), CONTEXT, 1, state, first)
    jobs = [
        Job(1, whole((0, 1, 0), (0, 1, 2)), CONTEXT, (first, second), (), None),
        Job(2, whole((3,)), other, (), (), None),
        Job(3, whole((0, 2)), CONTEXT, (first,), (), state),
        Job(4, SampleWork(((5,),), 0, 1), other, (), (), None),
    ]
    together = generator.sample_together(jobs)
    for job, done in zip(jobs, together, strict=True):
        (alone,) = generator.sample_together([job])
        assert done.made.whole
        assert done.made.steps == alone.made.steps
        assert len(done.units) == len(job.work.paths)
        for one, ours in zip(done.units, alone.units, strict=True):
            torch.testing.assert_close(one.latent.x, ours.latent.x, atol=2e-4, rtol=1e-4)
            assert np.abs(one.frames.astype(int) - ours.frames).max() <= 1
            assert (one.state is None) == (ours.state is None) == (job.number == 4)


def test_a_cancelled_work_stops_unless_it_shares_its_passes(generator: Generator) -> None:
    jobs = [Job(6, whole((0,)), CONTEXT, (), (), None), Job(7, whole((1,)), CONTEXT, (), (), None)]
    generator.cancel(6)
    assert all(done.made.whole for done in generator.sample_together(jobs))
    jobs = [job._replace(number=job.number + 2) for job in jobs]
    for job in jobs:
        generator.cancel(job.number)
    assert [(done.made.whole, done.units) for done in generator.sample_together(jobs)] == [(False, ())] * 2
    assert not generator._cancellations._numbers


def test_cancelled_before_it_comes_up(generator: Generator) -> None:
    generator.cancel(11)
    made, *units = generator.sample(11, whole((0,), (1,)), CONTEXT, 0, None)
    assert (made.whole, made.steps) == (False, 0)
    assert units == [None] * 8
    assert generator.sample(12, whole((0,)), CONTEXT, 0, None)[0].whole


def test_a_cancellation_that_comes_too_late_is_forgotten(generator: Generator) -> None:
    generator.sample(21, whole((0,)), CONTEXT, 0, None)
    generator.cancel(21)
    assert not generator._cancellations._numbers
    generator.cancel(23)
    generator.sample(22, whole((0,)), CONTEXT, 0, None)
    assert generator._cancellations._numbers == {23}
    assert not generator.sample(23, whole((0,)), CONTEXT, 0, None)[0].whole


def test_cancelled_on_the_way(tmp_path: Path) -> None:
    generator = Generator(ModelSource(name=str(save_tiny(tmp_path / "slow", steps=400))))
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.extend(generator.sample(1, whole((0,)), CONTEXT, 0, None)))
    thread.start()
    threading.Event().wait(0.3)
    generator.cancel(1)
    thread.join(timeout=30)
    assert not results[0].whole
    assert results[0].steps < 1200


def test_a_given_image_is_unit_0(generator: Generator) -> None:
    encoded = io.BytesIO()
    Image.fromarray(digits.clip(seed=1, index=0).frames[0]).resize((200, 120)).save(encoded, "PNG")
    unit = generator.given(CONTEXT, encoded.getvalue())
    assert unit.latent.x.shape == (16, 1, 8, 8)
    assert unit.frames.shape == (1, 64, 64, 3)
    made, _, frames, *_ = generator.sample(1, whole((0, 3)), CONTEXT, 1, unit.state, unit.latent)
    assert made.whole
    assert frames.shape == (8, 64, 64, 3)
    with pytest.raises(MediaError, match="the image is not a picture"):
        generator.given(CONTEXT, b"no image")


def test_a_given_clip_is_gone_on_from_like_a_video_made_here(generator: Generator) -> None:
    frames = np.ascontiguousarray(digits.clip(seed=1, index=0).frames[:17])
    units = generator.after_clip(CONTEXT, encode_lossless(frames, 8))
    whole_clip = from_uint8(torch.from_numpy(frames[None]))
    pipeline = generator._pipeline
    encoded = pipeline.latent_norm.normalise(pipeline.vae.encode(whole_clip).mean)[0]
    torch.testing.assert_close(torch.cat([unit.latent.x for unit in units], dim=1), encoded, rtol=1e-4, atol=1e-4)
    again = generator.gone_on(packed([unit.latent for unit in units]))
    assert len(units) == len(again) == 3
    for one, other in zip(units, again, strict=True):
        assert np.array_equal(one.frames, other.frames)
        assert one.state is not None
    history = [unit.latent for unit in units]
    made, _, after, *_ = generator.sample(1, whole((0, 0, 0, 2)), CONTEXT, 3, units[-1].state, *history)
    assert made.whole
    assert after.shape == (8, 64, 64, 3)
    with pytest.raises(ValueError, match="a clip must be uint8"):
        generator.after_clip(replace(CONTEXT, width=128), encode_lossless(frames, 8))


def test_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no model folder at"):
        Generator(ModelSource(name=str(tmp_path / "nowhere")))


@pytest.mark.parametrize(("kind", "variant"), [("sd3", "384p"), ("miniflux", "image")])
def test_a_public_model_is_searched_with_its_released_prompts(kind: str, variant: str, tmp_path: Path) -> None:
    folder = write_public_folder(tmp_path / kind, kind, (variant, "768p"))
    source = ModelSource(name=str(folder), variant=variant, dtype="bfloat16")
    files = ModelFiles.read(source)
    request = GenerationRequest("a red balloon", seed=3, units=2, height=64, width=64)
    context = context_of(files, request)
    assert context.prompt.startswith("a red balloon, ")
    assert "blurry" in context.negative
    generator = Generator(source)
    read = generator.read(context, request.prompt)
    assert min(read.tokens, read.negative_tokens) > 1
    assert (read.readable, read.unread) == (request.prompt, None)
    (plain,) = generate(load_source(source), [request.prompt], [3], units=2, size=(64, 64))
    _, first, frames, state, _ = generator.sample(0, whole((0,)), context, 0, None)
    assert np.array_equal(frames, plain.frames[:1])
    _, _, frames, *_ = generator.sample(0, whole((0, 0)), context, 1, state, first)
    assert np.array_equal(frames, plain.frames[1:])
    other = ModelFiles.read(ModelSource(name=str(folder), variant="768p"))
    assert (other.recipe.height, files.recipe.height) == (768, 384 if variant == "384p" else 1024)
    assert other.fingerprint() != files.fingerprint()
