"""Whole videos from a small untrained pipeline: sizes, batching, progress, image-to-video, refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from framegrove.config.flow import GuidanceConfig, StepsConfig, latent_size
from framegrove.config.model import Recipe, TextConfig, TransformerConfig
from framegrove.config.vae import VaeConfig
from framegrove.errors import UserError
from framegrove.flow.generation import generate, sampler_of
from framegrove.flow.sampler import UnitTask
from framegrove.models.mmdit import MMDiT
from framegrove.models.pretrained import Pipeline
from framegrove.models.text import TextEncoder
from framegrove.models.vae import CausalVideoVae
from framegrove.models.vae_files import Affine, LatentNorm, to_uint8


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    torch.manual_seed(0)
    transformer = TransformerConfig(
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=8,
        caption_projection_dim=16,
        pooled_projection_dim=8,
        joint_attention_dim=8,
        sample_size=16,
        pos_embed_max_size=16,
    )
    narrow = {"layers_per_block": (1, 1, 1, 1), "block_out_channels": (8, 8, 8, 8), "norm_num_groups": 2}
    vae = VaeConfig(**{f"{side}_{key}": value for side in ("encoder", "decoder") for key, value in narrow.items()})
    recipe = Recipe(
        guidance=GuidanceConfig(first=2, others=1.5),
        steps=StepsConfig(first=(2, 1, 1), others=(1, 1, 1)),
        fps=8,
        height=64,
        width=64,
        units=3,
    )
    norm = LatentNorm(Affine((0.1,), 0.9), Affine((-0.2,), 1.1))
    text = TextEncoder.fresh(TextConfig(layers=1, width=8, heads=1), ["a", "red", "blue", "3"])
    return Pipeline(MMDiT(transformer).eval(), CausalVideoVae(vae).eval(), norm, text.eval(), recipe)


def test_text_to_video(pipeline: Pipeline) -> None:
    progress: list[tuple[int, int]] = []
    videos = generate(
        pipeline, ["a red 3", "a blue 3"], [1, 2], on_unit=lambda done, total: progress.append((done, total))
    )
    for video in videos:
        assert video.frames.shape == (17, 64, 64, 3)
        assert video.frames.dtype == np.uint8
        assert [tuple(latent.shape) for latent in video.latents] == [(16, 1, 8, 8)] * 3
    assert progress == [(2, 6), (4, 6), (6, 6)]
    assert (videos[0].frames != videos[1].frames).any()


def test_batches_change_nothing(pipeline: Pipeline) -> None:
    prompts, seeds = ["a red 3", "a blue 3", "3"], [1, 2, 3]
    together = generate(pipeline, prompts, seeds, units=2)
    apart = generate(pipeline, prompts, seeds, units=2, batch=1)
    for one, other in zip(together, apart, strict=True):
        torch.testing.assert_close(torch.stack(one.latents), torch.stack(other.latents), atol=1e-5, rtol=1e-5)


def test_a_plain_video_is_branch_zero_of_a_search(pipeline: Pipeline) -> None:
    (video,) = generate(pipeline, ["a red 3"], [9], units=1)
    text, empty = pipeline.text.encode(["a red 3", ""])
    with torch.no_grad():
        (latent,) = sampler_of(pipeline).sample([UnitTask(text, empty, (), (1, 8, 8), 9, (0,))])
    assert torch.equal(latent.x, video.latents[0])


def test_frames_are_the_decoded_latents(pipeline: Pipeline) -> None:
    (video,) = generate(pipeline, ["a red 3"], [4])
    with torch.no_grad():
        whole = pipeline.vae.decode(pipeline.latent_norm.denormalise(torch.cat(video.latents, dim=1)[None]))
    difference = to_uint8(whole)[0].numpy().astype(int) - video.frames.astype(int)
    assert np.abs(difference).max() <= 1


def test_image_to_video(pipeline: Pipeline) -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 128, 3), dtype=np.uint8)
    (video,) = generate(pipeline, ["a red 3"], [1], units=2, size=(64, 128), images=[image])
    assert video.frames.shape == (9, 64, 128, 3)
    clip = torch.from_numpy(image).permute(2, 0, 1)[None, :, None] / 127.5 - 1
    with torch.no_grad():
        expected = pipeline.latent_norm.normalise(pipeline.vae.encode(clip).mean)[0]
    torch.testing.assert_close(video.latents[0], expected, atol=1e-5, rtol=1e-5)


def test_what_does_not_fit_is_refused(pipeline: Pipeline) -> None:
    with pytest.raises(UserError, match=r"a video of 100x64 does not fit this model.*multiples of 64.*128x64"):
        generate(pipeline, ["3"], [0], size=(64, 100))
    with pytest.raises(ValueError, match="2 prompts need as many seeds, not 1"):
        generate(pipeline, ["3", "3"], [0])
    with pytest.raises(ValueError, match="units, not 0"):
        generate(pipeline, ["3"], [0], units=0)
    with pytest.raises(ValueError, match="a first frame must be uint8 of shape"):
        generate(pipeline, ["3"], [0], images=[np.zeros((32, 32, 3), dtype=np.uint8)])


def test_latent_size() -> None:
    assert latent_size(768, 1280, stages=3, patch=2, factor=8) == (96, 160)
    with pytest.raises(UserError, match="multiples of 64, for example 64x64"):
        latent_size(16, 32, stages=3, patch=2, factor=8)
