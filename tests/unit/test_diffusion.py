"""Pipelines of diffusers behind their adapter: tiny random ones of the very classes, sampled segment by segment."""

from __future__ import annotations

import asyncio
import io
import json
import pickle
import shutil
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from actors.adapted import AdaptedGenerator, AdaptedPool, Job, card_of
from actors.pools import VerifierPool
from actors.searches import SearchRunner
from framegrove.config.base import validated
from framegrove.config.diffusion import DiffusionOptions
from framegrove.config.generator import AdaptedSource
from framegrove.config.model import ModelSource
from framegrove.config.search import SearchConfig
from framegrove.config.verifier import VerifierConfig
from framegrove.errors import UserError
from framegrove.flow.noise import HashNoise, generator_for
from framegrove.flow.sampler import CancelledSampling, StageLatent
from framegrove.generators.diffusion import Diffusion
from framegrove.generators.finding import adapter_of
from framegrove.generators.protocol import Frames, Task, Wanted
from framegrove.lineage import Mutation
from framegrove.media.pictures import read_picture
from framegrove.types import GenerationRequest, SampleWork, Sampling
from framegrove.types import Path as Branch
from jobs import generate
from jobs.console import any_source
from tests import readme
from tests.tiny_diffusers import write_tiny
from tests.unit.test_report import search_record

STEPS = 6
DPM = diffusers.CogVideoXDPMScheduler(
    prediction_type="v_prediction", clip_sample=False, timestep_spacing="trailing", rescale_betas_zero_snr=True
)
SCHEDULERS = {
    "euler": diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    "multistep": diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    ),
}
Written = dict[str, tuple[Path, dict[str, Any]]]


@pytest.fixture(scope="module", autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Written:
    written: Written = {}
    for kind, scheduler in [
        *((kind, None) for kind in ("cogvideox", "wan", "wan22", "ltx", "mochi", "hunyuan")),
        *((kind, None) for kind in ("cogvideox_image", "wan_image", "wan_clip", "ltx_image")),
        ("cogvideox", DPM),
        *(("wan", scheduler) for scheduler in SCHEDULERS.values()),
    ]:
        name = kind if scheduler is None else f"{kind}-{type(scheduler).__name__}"
        folder = tmp_path_factory.mktemp(name)
        written[name] = folder, write_tiny(folder, kind, scheduler)
    return written


def adapter(written: tuple[Path, dict[str, Any]], **more: Any) -> Diffusion:
    folder, options = written
    made = Diffusion(str(folder), **{**options, **more})
    made.load("cpu")
    return made


def picture() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.arange(48 * 40 * 3, dtype=np.uint8).reshape(48, 40, 3)).save(file, "PNG")
    return file.getvalue()


def wanted_of(made: Diffusion, **more: Any) -> Wanted:
    form = made.form
    image = picture() if form.needs_image else None
    usual = Wanted("a red cloud", 5, form.height, form.width, 1, form.first_frames, image=image)
    return replace(usual, **more)


def sampled(made: Diffusion, wanted: Wanted, stages: range, start: StageLatent | None = None) -> StageLatent:
    return sampled_all(made, [Task(wanted, (3,), (), start)], stages)[0]


def sampled_all(made: Diffusion, tasks: list[Task], stages: range) -> list[StageLatent]:
    return made.sample(tasks, stages, lambda: False, lambda: None)


def shown(made: Diffusion, wanted: Wanted, latent: StageLatent, path: Branch = (3,)) -> Frames:
    return made.decode([Task(wanted, path, ())], [latent])[0]


def called(folder: Path, wanted: Wanted, noise: torch.Tensor, **arguments: Any) -> Frames:
    """What the library makes by itself, in one uninterrupted call."""
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    if wanted.image is not None:
        arguments["image"] = Image.fromarray(read_picture(wanted.image, (wanted.height, wanted.width)))
    made = pipe(
        prompt=wanted.prompt,
        negative_prompt=wanted.sampling.negative or "",
        height=wanted.height,
        width=wanted.width,
        num_frames=wanted.frames,
        num_inference_steps=STEPS,
        latents=noise,
        generator=generator_for(wanted.seed, (3,), "steps"),
        output_type="np",
        **arguments,
    )
    return (255 * made.frames[0]).round().astype(np.uint8)


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("cogvideox", {}),
        ("cogvideox", {"call": {"use_dynamic_cfg": True}}),
        ("cogvideox-CogVideoXDPMScheduler", {}),
        ("cogvideox_image", {}),
        ("wan", {}),
        ("wan-FlowMatchEulerDiscreteScheduler", {}),
        ("wan-DPMSolverMultistepScheduler", {}),
        ("wan22", {"call": {"guidance_scale_2": 2.0}}),
        ("wan_image", {}),
        ("wan_clip", {}),
        ("ltx", {}),
        ("ltx_image", {}),
        ("mochi", {}),
        ("hunyuan", {"call": {"prompt_template": {"template": "{}", "crop_start": 0}, "true_cfg_scale": 2.0}}),
    ],
)
def test_a_video_in_segments_is_that_of_one_call(folders: Written, name: str, more: dict[str, Any]) -> None:
    """To the last bit, wherever the schedule is cut, each segment by another actor."""
    folder, _ = folders[name]
    first = adapter(folders[name], **more)
    wanted = wanted_of(first)
    arguments = {"max_sequence_length": 16, **more.get("call", {})}
    whole = sampled(first, wanted, range(3))
    plain = called(folder, wanted, first._noise(Task(wanted, (3,), ())), **arguments)
    np.testing.assert_array_equal(shown(first, wanted, whole), plain)
    assert plain.std() > 1
    for segments in ([1, 2, 3], STEPS):
        latent = None
        others = [adapter(folders[name], **more, segments=segments) for _ in range(2)]
        for stage in range(others[0].options.stages):
            made = others[stage % 2]
            latent = pickle.loads(pickle.dumps(sampled(made, wanted, range(stage, stage + 1), latent)))
            shown(made, wanted, latent)  # a look at it changes nothing
        assert latent is not None
        assert (latent.x - whole.x).abs().max() == 0
    assert latent.more == {}


@pytest.mark.parametrize(
    "name",
    ["cogvideox", "cogvideox-CogVideoXDPMScheduler", "wan", "wan-FlowMatchEulerDiscreteScheduler", "ltx", "mochi"],
)
def test_a_preview_is_the_video_that_the_step_leads_to(folders: Written, name: str) -> None:
    """The first step of all solvers is DDIM's: x' = s'/s x + (a' - a s'/s) clean, where x is a clean + s noise."""
    made = adapter(folders[name], segments=STEPS)
    wanted = wanted_of(made)
    noise = made._noise(Task(wanted, (3,), ()))
    after = sampled(made, wanted, range(1))
    scheduler = made._pipe.scheduler
    if name.startswith("cogvideox"):
        first = int(scheduler.timesteps[0])
        signal = scheduler.alphas_cumprod[torch.tensor([first, first - 1000 // STEPS])].sqrt()
        spread = (1 - signal**2).sqrt()
    else:
        level = scheduler.sigmas[:2] if name != "mochi" else 1 - scheduler.sigmas[:2]
        signal, spread = 1 - level, level
    ratio = spread[1] / spread[0]
    expected = ratio * noise + (signal[1] - signal[0] * ratio) * after.more["clean"]
    if "DPM" in name:  # draws noise at each step
        factor = (1 - (signal[0] * spread[1] / (signal[1] * spread[0])) ** 2).sqrt()
        drawn = torch.randn(noise.shape, generator=generator_for(5, (3,), "steps"))
        ratio = ratio * signal[0] * spread[1] / (signal[1] * spread[0])
        expected = ratio * noise + (signal[1] - signal[0] * ratio) * after.more["clean"] + spread[1] * factor * drawn
    torch.testing.assert_close(after.x, expected.to(after.x.dtype), atol=2e-5, rtol=1e-4)


def test_a_preview_comes_closer_to_the_video(folders: Written) -> None:
    made = adapter(folders["ltx_image"], segments=STEPS)
    wanted = wanted_of(made)
    whole = shown(made, wanted, sampled(made, wanted, range(STEPS))).astype(int)
    latent, apart = None, []
    for stage in range(STEPS - 1):
        latent = sampled(made, wanted, range(stage, stage + 1), latent)
        apart.append(np.abs(shown(made, wanted, latent).astype(int) - whole).mean())
    assert apart[-1] < 0.7 * apart[0]


@pytest.mark.parametrize(
    "sampling",
    [Sampling(negative="blue"), Sampling(guidance=2.0), Sampling(steps=9)],
    ids=["negative", "guidance", "steps"],
)
def test_what_a_request_says_takes_effect(folders: Written, sampling: Sampling) -> None:
    made = adapter(folders["wan"])
    usual, other = wanted_of(made), wanted_of(made, sampling=sampling)
    videos = [shown(made, wanted, sampled(made, wanted, range(3))) for wanted in (usual, other)]
    assert not np.array_equal(*videos)


def test_size_and_length_are_those_asked_for(folders: Written) -> None:
    made = adapter(folders["wan"])
    wanted = wanted_of(made, height=32, width=48, frames=6)  # the VAE makes 5 or 9
    assert shown(made, wanted, sampled(made, wanted, range(3))).shape == (6, 32, 48, 3)
    assert made.price(wanted)[0].step_flops > made.price(wanted_of(made))[0].step_flops


def test_steps_are_cut_in_proportion(folders: Written) -> None:
    made = adapter(folders["wan"])
    assert made.price(wanted_of(made, sampling=Sampling(steps=12)))[0].steps == (2, 4, 6)
    with pytest.raises(UserError, match="2 steps cannot be cut into 3 segments"):
        made.price(wanted_of(made, sampling=Sampling(steps=2)))
    assert DiffusionOptions().ends(50) == (10, 25, 50)
    assert DiffusionOptions(segments=4).ends(50) == (12, 25, 38, 50)
    assert DiffusionOptions(segments=(1, 1, 98)).ends(3) == (1, 2, 3)


def test_branches_of_one_work_may_share_their_passes(folders: Written) -> None:
    alone, together = (adapter(folders["cogvideox-CogVideoXDPMScheduler"], batch=batch) for batch in (1, 2))
    wanted = wanted_of(alone)
    tasks = [Task(wanted, (number,), ()) for number in range(3)]
    plain = sampled_all(alone, tasks, range(3))
    whole = sampled_all(together, tasks, range(3))
    begun = sampled_all(together, tasks, range(1))
    parted = sampled_all(
        together, [replace(task, start=it) for task, it in zip(tasks, begun, strict=True)], range(1, 3)
    )
    for one, batched, resumed in zip(plain, whole, parted, strict=True):
        torch.testing.assert_close(one.x, batched.x, atol=1e-4, rtol=1e-3)
        assert (batched.x - resumed.x).abs().max() == 0


@pytest.mark.parametrize("name", ["cogvideox", "wan", "wan22", "ltx", "mochi", "hunyuan"])
def test_works_of_several_searches_share_their_passes(folders: Written, name: str) -> None:
    """Each has its own prompts, as if it were alone."""
    folder, options = folders[name]
    prompts = [("a red cloud", None), ("blue sea", "fog")]
    alone = adapter(folders[name])
    videos = [wanted_of(alone, prompt=text, sampling=Sampling(negative=negative)) for text, negative in prompts]
    works = [SampleWork(((number,),), 0, 2) for number in range(2)]
    generator = AdaptedGenerator(
        AdaptedSource(kind="diffusers", where=str(folder), options={**options, "batch": 2}), pack=2
    )
    jobs = [
        Job(number, work, wanted, (Task(wanted, work.paths[0], ()),))
        for number, (work, wanted) in enumerate(zip(works, videos, strict=True))
    ]
    for job, done in zip(jobs, generator.sample_together(jobs), strict=True):
        assert done.made.steps == STEPS, "a step of both"
        torch.testing.assert_close(
            done.units[0][0].x, sampled_all(alone, list(job.tasks), range(3))[0].x, atol=1e-4, rtol=1e-3
        )


def test_a_branch_carries_nothing_of_those_beside_it(folders: Written) -> None:
    made = adapter(folders["wan"], batch=2)
    tasks = [Task(wanted_of(made), (number,), ()) for number in range(2)]
    for stages in (range(1), range(3)):
        together, alone = (sampled_all(made, some, stages)[0] for some in (tasks, tasks[:1]))
        # But for the names of storages, which are numbers of more or fewer digits.
        assert len(pickle.dumps(together)) == pytest.approx(len(pickle.dumps(alone)), abs=100)


def test_packing_is_for_those_who_gain_by_it(folders: Written) -> None:
    folder, options = folders["wan"]
    mosts = [
        AdaptedGenerator(
            AdaptedSource(kind="diffusers", where=str(folder), options={**options, **more}), pack=4
        )._packer._most
        for more in ({}, {"batch": 3})
    ]
    assert mosts == [1, 3]


def test_weights_in_pickles_are_not_read(folders: Written, tmp_path: Path) -> None:
    folder, options = folders["wan"]
    shutil.copytree(folder, tmp_path / "wan")
    weights = tmp_path / "wan" / "transformer" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(UserError, match=r"cannot be read: .*safetensors"):
        adapter((tmp_path / "wan", options))


def test_prices_are_counted_once_for_each_shape(folders: Written) -> None:
    made = adapter(folders["cogvideox"])
    first = made.price(wanted_of(made, sampling=Sampling(guidance=3.0)))
    for sampling in (Sampling(guidance=7.5), Sampling(guidance=3.0, steps=9), Sampling(guidance=3.0, negative="fog")):
        assert made.price(wanted_of(made, sampling=sampling))[0].step_flops == first[0].step_flops
    assert len(made._spent) == 1
    unguided = made.price(wanted_of(made, sampling=Sampling(guidance=1.0)))
    assert unguided[0].step_flops[0] == first[0].step_flops[0] / 2
    assert made.price(wanted_of(made)) == first, "the pipeline's own guidance"


def test_a_request_is_opened_for_its_own_length_and_off_the_event_loop(
    folders: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, options = folders["wan"]
    threads = []

    def found(source: AdaptedSource) -> Any:
        threads.append(threading.current_thread())
        return adapter_of(source)

    monkeypatch.setattr("actors.adapted.adapter_of", found)
    pool = AdaptedPool(AdaptedSource(kind="diffusers", where=str(folder), options=options))

    async def opened() -> Any:
        request = GenerationRequest("a cloud", 0, 1, 16, 16, frames=5)
        await pool.check(request)
        return await pool.open(request, [], None, SearchConfig())  # type: ignore[arg-type]

    assert asyncio.run(opened()).lengths == (5,), "what a verifier will be shown"
    assert len(threads) == 1
    assert threads[0] is not threading.main_thread()


def test_steps_are_counted_for_all_branches_together(folders: Written) -> None:
    made = adapter(folders["ltx"])
    wanted, steps = wanted_of(made), []
    made.sample([Task(wanted, (number,), ()) for number in range(3)], range(2), lambda: False, lambda: steps.append(1))
    assert len(steps) == 3


def test_a_mutated_branch_stays_close_to_its_sibling(folders: Written) -> None:
    made = adapter(folders["cogvideox-CogVideoXDPMScheduler"])
    wanted = wanted_of(made)
    mutated = Mutation(3, 0, 10, 0).index
    videos = sampled_all(made, [Task(wanted, (path,), ()) for path in (3, mutated, 4)], range(3))
    near, far = ((videos[0].x - other.x).abs().mean() for other in videos[1:])
    assert 0 < near < 0.5 * far


def test_a_cancelled_work_ends_at_its_next_step(folders: Written) -> None:
    made = adapter(folders["wan"])
    wanted, steps = wanted_of(made), []
    task = Task(wanted, (3,), ())
    whole = sampled(made, wanted, range(3))
    with pytest.raises(CancelledSampling) as cancelled:
        made.sample([task], range(3), lambda: len(steps) == 2, lambda: steps.append(1))
    assert cancelled.value.steps == 2
    assert (sampled(made, wanted, range(3)).x - whole.x).abs().max() == 0


def test_noise_is_the_hash_of_seed_and_path(folders: Written) -> None:
    made = adapter(folders["wan"])
    noise = made._noise(Task(wanted_of(made), (3,), ()))
    assert torch.equal(noise[0], HashNoise().initial(5, (3,), tuple(noise.shape[1:])))


@pytest.mark.parametrize(
    "name", ["cogvideox", "cogvideox_image", "wan", "wan22", "wan_clip", "ltx", "mochi", "hunyuan"]
)
def test_prices_are_those_of_a_real_run(folders: Written, name: str) -> None:
    made = adapter(folders[name])
    long = "clouds over a sea of clouds"  # prompts are priced at their full length, and Mochi's are not padded to that
    wanted = wanted_of(made, prompt=long, sampling=Sampling(negative=long))
    (price,) = made.price(wanted)
    assert price.steps == (1, 2, 3)
    begun = sampled(made, wanted, range(1))
    counters = []
    for network, run in (
        (made._pipe.transformer, lambda: sampled(made, wanted, range(1, 2), begun)),
        (made._pipe.vae.decoder, lambda: shown(made, wanted, begun)),
    ):
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            run()
        named = next(key for key in counter.flop_counts if key == type(network).__name__)
        counters.append(sum(counter.flop_counts[named].values()))
    assert price.step_flops[0] == counters[0] / 2
    assert price.decoding == pytest.approx(counters[1], rel=0.05)  # with the convolution in front of the decoder


def refusal(folder: Path | str, **options: Any) -> str:
    with pytest.raises(UserError) as refused:
        adapter_of(AdaptedSource(kind="diffusers", where=str(folder), options=options))
    return str(refused.value)


def test_mistakes_are_told_in_a_sentence(folders: Written, tmp_path: Path) -> None:
    folder, _ = folders["wan"]
    assert "unknown key 'guidance', did you mean 'guidance_scale'" in refusal(folder, guidance=3)
    assert "must add up to the 7 steps" in refusal(folder, steps=7, segments=[1, 2, 3])
    assert "WanPipeline is not called with guidance_rescale" in refusal(folder, call={"guidance_rescale": 1})
    assert "cannot be searched: choose one of CogVideoXPipeline" in refusal(folder, pipeline="AnimateDiffPipeline")
    assert "HeunDiscreteScheduler cannot be searched along: use one of" in refusal(
        folder, scheduler="HeunDiscreteScheduler"
    )
    assert "its noise cannot be drawn again" in refusal(
        folder, scheduler="FlowMatchEulerDiscreteScheduler", scheduler_config={"stochastic_sampling": True}
    )
    assert "has no shift, leave that out" in refusal(folder, scheduler_config={"shift": 3})
    assert "from a picture are denoised one by one, leave batch out" in refusal(folders["wan_image"][0], batch=2)
    assert "give a folder that is there, or a hub id" in refusal(tmp_path / "nothing")
    assert "the hub cannot be reached" in refusal("nobody/nothing")
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "HunyuanVideoFramepackPipeline"}))
    assert "is a HunyuanVideoFramepackPipeline of diffusers, which cannot be searched" in refusal(tmp_path)
    (tmp_path / "model_index.json").write_text("{")
    assert "has no model_index.json that can be read" in refusal(tmp_path)


def test_a_picture_is_asked_for_where_it_is_needed(folders: Written) -> None:
    folder, options = folders["wan_image"]
    card = card_of(AdaptedSource(kind="diffusers", where=str(folder), options=options))
    with pytest.raises(UserError, match="begin with a picture: give one"):
        card.check(GenerationRequest("a cloud", 0, 1, 16, 16))


def test_without_the_package_the_extra_is_named(folders: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    assert "pip install framegrove[diffusers]" in refusal(folders["wan"][0])


def test_a_folder_of_a_pipeline_is_known_for_one(folders: Written, tmp_path: Path) -> None:
    folder, _ = folders["ltx"]
    assert any_source(str(folder), None, "bfloat16", allow_pickle=False) == AdaptedSource(
        kind="diffusers", where=str(folder), options={"dtype": "bfloat16"}
    )
    with pytest.raises(UserError, match="--variant and --allow-pickle are for pyramidal models"):
        any_source(str(folder), "384p", "float32", allow_pickle=False)
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusion3Pipeline"}))
    for name in (str(tmp_path), str(tmp_path / "nothing"), "nobody/nothing", None):
        assert isinstance(any_source(name, None, "float32", allow_pickle=False), ModelSource)


def test_a_hub_model_is_told_by_its_index(folders: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, options = folders["wan"]
    fetched = []

    def download(repo: str, name: str, revision: str | None) -> str:
        fetched.append((repo, name, revision))
        return str(folder / name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    source = any_source("owner/wan@1234abc", None, "float32", allow_pickle=False)
    assert isinstance(source, AdaptedSource)
    assert (source.kind, source.where, source.called) == ("diffusers", "owner/wan@1234abc", "wan@1234abc")
    assert set(fetched) == {("owner/wan", "model_index.json", "1234abc")}
    made = Diffusion(source.where, **options)
    assert made.price(wanted_of(made))[0].steps == (1, 2, 3)
    assert made.identity()["files"] == folder.name, "the commit, in the hub's cache"
    assert not any("safetensors" in name for _, name, _ in fetched)


def test_the_plan_says_what_a_model_takes(folders: Written, tmp_path: Path) -> None:
    folder, options = folders["wan22"]
    file = tmp_path / "wan.yaml"
    file.write_text(json.dumps({"kind": "diffusers", "where": str(folder), "options": options}))
    result = CliRunner().invoke(generate.app, ["--plan", "--model", str(file), "--budget", "8x"])
    assert result.exit_code == 0, result.output
    made = adapter(folders["wan22"])
    needs, (price,) = made.needs(wanted_of(made)), made.price(wanted_of(made))
    pipe = made._pipe
    assert needs.weights == {
        name: sum(weight.numel() for weight in part.parameters())
        for name, part in pipe.components.items()
        if isinstance(part, torch.nn.Module)
    }
    assert needs.width == 4
    said = " ".join(result.output.split())
    assert "transformer_2" in said
    assert "a video of 9 frames of 16x16, in 6 evaluations of the network" in said
    assert f"a search at 8x: {8 * (6 * price.step_flops[0] + price.decoding) / 1e9:.3g} GFLOPs" in said
    latent = sampled(made, wanted_of(made), range(1))
    carried = sum(tensor.nbytes for tensor in (latent.x, *latent.more.values()))
    assert needs.latent == pytest.approx(carried, rel=0.02)  # but for the index of the step
    for given, sentence in (("--size=17x33", "are multiples of 16"), ("--units=3", "makes 1 to 1")):
        refused = CliRunner().invoke(generate.app, ["--plan", "--model", str(file), given])
        assert (refused.exit_code, sentence in " ".join(refused.output.split())) == (1, True)
    missing = CliRunner().invoke(generate.app, ["--prompt", "a cloud"])
    assert "--out is missing" in missing.output


def test_the_plan_of_any_other_model_says_what_it_costs() -> None:
    result = CliRunner().invoke(generate.app, ["--plan", "--budget", "2x"])
    assert result.exit_code == 0, result.output
    assert "a search at 2x: " in result.output


def test_the_options_in_readme_are_options() -> None:
    found = [yaml.safe_load(block.text) for block in readme.blocks("yaml")]
    kept = [given for given in found if given.get("kind") == "diffusers"]
    assert len(kept) == 2
    for given in kept:
        validated(DiffusionOptions, validated(AdaptedSource, given, "README").options, "README")


def test_what_no_video_can_go_on_from_is_not_kept(folders: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    """For each video of a remote server these would be all of its pixels."""
    folder, options = folders["wan"]
    source = AdaptedSource(kind="diffusers", where=str(folder), options=options)
    runner = SearchRunner(AdaptedPool(source), [VerifierPool(VerifierConfig(kind="signals"))])

    async def search(*given: Any, **how: Any) -> Any:
        return search_record()

    monkeypatch.setattr(runner, "search", search)
    made = asyncio.run(runner.run(GenerationRequest("a cloud", 0, 1, 16, 16)))
    assert "thumbnail.webp" in made.files
    assert "latents.safetensors" not in made.files
