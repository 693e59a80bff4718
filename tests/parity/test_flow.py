"""The flow against recorded tensors of the authors' implementation: scheduler, block noise, targets, sampling.

Every case of a golden folder runs (--golden DIR), whatever its stages, shift, gamma, batch or frames per unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from framegrove.config.flow import GuidanceConfig, StepsConfig
from framegrove.flow.history import history_clips
from framegrove.flow.noise import mix_blocks, noise_pyramid, pyramid
from framegrove.flow.objective import Draws, StageBatch, sample_losses, stage_batch
from framegrove.flow.sampler import Sampler, StageLatent, UnitTask
from framegrove.flow.schedule import GRID
from framegrove.models.packed import Prefix, Sample, TextEmbedding
from framegrove.models.public import RELEASED_NORMS
from framegrove.models.vae_files import LatentNorm
from tests.parity.recorded import TRANSFORMERS, Golden, assert_gradients, golden_of, part_of, schedule_of, text_of

# What the reference takes when a case does not say.
CORRUPTION, DROPOUT, STEPS = 1 / 3, 0.1, 28


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    golden = golden_of(metafunc.config)
    targets = golden.cases("targets")
    chosen = {
        "scheduler": list(golden.cfg.get("scheduler", {}).get("configs", {})),
        "blocks": list(golden.cfg.get("block_noise", {})),
        "target": [name for name, case in targets.items() if case["op"] != "call"],
        "step": [name for name, case in targets.items() if case["op"] == "call"],
        "sampling": list(golden.cases("sampling")),
    }
    for kind, names in chosen.items():
        if kind in metafunc.fixturenames:
            metafunc.parametrize(kind, names)


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Golden:
    return golden_of(request.config)


def norm_of(case: dict[str, Any]) -> LatentNorm:
    """The latents' normalisation of the released model that a case names."""
    return RELEASED_NORMS[part_of(case.get("model_name", ""))]


def option(case: dict[str, Any], names: Sequence[str], default: Any) -> Any:
    """A setting of a case under the first of these names, among its keyword arguments too."""
    for settings in (case, case.get("kw", {})):
        for name in names:
            if settings.get(name) is not None:
                return settings[name]
    return default


def setting(case: dict[str, Any], word: str, default: Any) -> Any:
    """A setting of a case whose name holds this word."""
    settings = {**case, **case.get("kw", {})}
    return next((value for name, value in settings.items() if word in name and value is not None), default)


def part_of_step(golden: Golden, case: dict[str, Any]) -> str:
    """The part that a training step is of: as its case says, or else the one that has the parameters it names."""
    if "model_name" in case:
        return part_of(case["model_name"])
    for part in TRANSFORMERS:
        if part in golden.cfg and set(case["grads"]) <= set(golden.tensors(f"{part}_weights")):
            return part
    return part_of(golden.cfg["targets"].get("dit", ""))


def test_scheduler(scheduler: str, golden: Golden) -> None:
    schedule = schedule_of(golden.cfg["scheduler"]["configs"][scheduler])
    tensors = golden.tensors("scheduler")
    sigmas, times = golden.tolerance["scheduler"]["sigmas_atol"], golden.tolerance["scheduler"]["timesteps_atol"]

    def close(actual: Any, name: str, atol: float) -> None:
        np.testing.assert_allclose(np.asarray(actual), tensors[f"{scheduler}.{name}"].numpy(), atol=atol, rtol=0)

    close(schedule.axis, "global_sigmas", sigmas)
    close(schedule.axis * GRID, "global_timesteps", times)
    close([schedule.start_sigma(stage) for stage in range(schedule.stages)], "start_sigmas", sigmas)
    close([schedule.end_sigma(stage) for stage in range(schedule.stages)], "end_sigmas", sigmas)
    for stage in range(schedule.stages):
        close(schedule.training_timesteps(stage), f"timesteps_per_stage.{stage}", times)
        close(schedule.training_ratios(), f"sigmas_per_stage.{stage}", sigmas)
        for steps in golden.cfg["scheduler"]["n"]:
            close(schedule.timesteps(stage, steps), f"set_timesteps.n{steps}.s{stage}.timesteps", times)
            close(schedule.ratios(stage, steps), f"set_timesteps.n{steps}.s{stage}.sigmas", sigmas)
        chain = f"{scheduler}.euler.s{stage}"
        ratios = schedule.ratios(stage, sum(name.startswith(f"{chain}.v") for name in tensors))
        x = tensors[f"{chain}.x0"]
        for step in range(len(ratios) - 1):
            x = x + (ratios[step + 1] - ratios[step]) * tensors[f"{chain}.v{step}"]
            close(x, f"euler.s{stage}.x{step + 1}", sigmas)


def test_block_noise(blocks: str, golden: Golden) -> None:
    schedule = schedule_of(golden.cfg["block_noise"][blocks])
    tensors, atol = golden.tensors("block_noise"), golden.tolerance["block_noise"]["atol"]
    root = mix_blocks(torch.eye(4, dtype=torch.float64).view(4, 4, 1, 1), schedule.gamma).view(4, 4)
    torch.testing.assert_close(root.T @ root, tensors[f"{blocks}.cov"], atol=atol, rtol=0)
    eigenvalues = torch.linalg.eigvalsh(root.T @ root)
    torch.testing.assert_close(eigenvalues, tensors[f"{blocks}.eigvals"].sort().values, atol=atol, rtol=0)
    for stage in range(1, schedule.stages):
        expected = tensors[f"{blocks}.alpha_beta"][stage]
        assert schedule.jump(stage) == pytest.approx(expected.tolist(), abs=atol)


def test_block_layout(golden: Golden) -> None:
    """The four entries of a recorded draw are the pixels of one of our 2x2 blocks."""
    if "block_noise" not in golden.cfg:
        pytest.skip("no block noise in this set")
    tensors = golden.tensors("block_noise")
    (name,) = [name for name in tensors if name.startswith("layout.noise_")]
    recorded, rows = tensors[name], tensors["layout.draw_rows"]
    *leading, height, width = recorded.shape
    patterns = mix_blocks(torch.eye(4).view(4, 4, 1, 1), 0.0).view(4, 4)  # uncorrelated: an orthogonal map
    white = (patterns @ rows.T).view(4, *leading, height // 2, width // 2)
    torch.testing.assert_close(mix_blocks(white, 0.0), recorded, atol=1e-5, rtol=0)


@dataclass
class Column:
    """One column of a recorded training batch: samples index::columns, all of one stage."""

    index: int
    stage: int
    batch: StageBatch


def columns_of(golden: Golden, name: str, latents: Tensor, draws: list[Tensor]) -> list[Column]:
    """Our training samples from the recorded draws, taken in the order in which the reference made them."""
    case, tensors = golden.cfg["targets"]["cases"][name], golden.tensors("targets_io")
    schedule = schedule_of(case["sched"])
    noise = draws.pop(0)
    stages = [stage for stage, count in enumerate(case["sample_ratios"]) for _ in range(count)]
    columns = []
    for index, stage in enumerate(stages):
        clips = _units(case, tensors, name, index, stage, latents[index :: len(stages)])
        noises = _units(case, tensors, name, index, stage, noise[index :: len(stages)])
        steps_B = (draws.pop(0) * GRID).long().clamp(max=GRID - 1)
        corruption_B = draws.pop(0) * option(case, ["corrupt_ratio"], CORRUPTION)
        history_noises = tuple(draws.pop(0) for _ in history_clips(clips[:-1], stage, schedule.stages))
        drawn = Draws(noises[-1], steps_B, corruption_B, history_noises)
        columns.append(Column(index, stage, stage_batch(clips, stage, schedule, drawn)))
    assert not draws
    return columns


def _units(
    case: dict[str, Any], tensors: dict[str, Tensor], name: str, column: int, stage: int, clip: Tensor
) -> list[Tensor]:
    """The units of a clip (B, C, T, h, w) that this column is about: one frame, then frame_per_unit each."""
    if not case["temporal"]:
        return [clip]
    recorded = [t.shape[2] for key, t in tensors.items() if key.startswith(f"out.{name}.") and key.endswith(".target")]
    per_unit = option(case, ["frame_per_unit"], max(recorded, default=1))
    if "units" in case:
        count = min(case["units"][stage], 1 + (clip.shape[2] - 1) // per_unit)
    else:  # the reference chose: as many frames as it recorded
        inputs = [t for key, t in tensors.items() if key.startswith(f"out.{name}.col{column}.input.")]
        count = 1 + (sum(t.shape[2] for t in inputs) - 1) // per_unit
    return list(clip[:, :, : 1 + (count - 1) * per_unit].split([1] + [per_unit] * (count - 1), dim=2))


def test_targets(target: str, golden: Golden) -> None:
    case, tensors = golden.cfg["targets"]["cases"][target], golden.tensors("targets_io")
    limits = golden.limits("targets")
    stages = case["sched"]["stages"]
    latents = tensors[f"in.{target}.latents"]
    draws = [tensors[f"draw.{target}.{index:02d}"] for index in range(case["n_draws"])]

    def close(actual: Tensor, name: str) -> None:
        expected = tensors.get(f"out.{target}.{name}")
        if expected is not None:
            limits.check(actual.to(expected.dtype), expected.reshape(actual.shape), f"{target} {name}")

    if case["op"] == "vae_latent":
        latents = norm_of(case).normalise(latents)
        close(latents, "latents_normalised")
    for stage, (level, noise) in enumerate(zip(pyramid(latents, stages), noise_pyramid(draws[0], stages), strict=True)):
        close(level, f"latent_pyramid.s{stage}")
        close(noise, f"noise_pyramid.s{stage}")
    compared = 0
    for column in columns_of(golden, target, latents, draws):
        name = f"col{column.index}"
        close(column.batch.velocity, f"{name}.target")
        close(column.batch.timesteps_B, f"{name}.timestep")
        close(column.batch.ratios_B, f"{name}.ratio")
        for place, clip in enumerate((*column.batch.history, column.batch.noisy)):
            close(clip, f"{name}.input.c{place}")
            compared += 1
    assert compared == sum(key.startswith(f"out.{target}.") and ".input." in key for key in tensors)


def test_training_step(step: str, golden: Golden) -> None:
    """Text dropping, targets, the packed forward, the loss and gradients, in one."""
    case, tensors = golden.cfg["targets"]["cases"][step], golden.tensors("targets_io")
    draws = [tensors[f"draw.{step}.{index:02d}"] for index in range(case["n_draws"])]
    texts = _dropped_texts(tensors, step, draws.pop(0) <= option(case, ["cfg_rate"], DROPOUT))
    part = part_of_step(golden, case)
    latents = tensors[f"in.{step}.latents"]
    latents = norm_of({"model_name": part}).normalise(latents if latents.ndim == 5 else latents[:, :, None])
    columns = columns_of(golden, step, latents, draws)
    samples, targets = [], []
    for row in range(columns[0].batch.noisy.shape[0]):
        for column in columns:
            batch = column.batch
            prefix = Prefix(texts[row * len(columns) + column.index], tuple(clip[row] for clip in batch.history))
            samples.append(Sample(prefix, batch.noisy[row], batch.timesteps_B[row].item()))
            targets.append(batch.velocity[row])
    transformer = golden.transformer(part)
    loss = sample_losses(transformer(transformer.pack(samples)), targets).mean()
    loss.backward()
    expected = tensors[f"out.{step}.loss"].item()
    assert loss.item() == pytest.approx(expected, rel=golden.tolerance["targets"]["train_step_loss_rtol"])
    assert_gradients(transformer, {name: tensors[f"out.{step}.grad.{name}"] for name in case["grads"]}, "training_step")


def _dropped_texts(tensors: dict[str, Tensor], name: str, dropped: Tensor) -> list[TextEmbedding]:
    def text(embeds: str, mask: str, pooled: str, row: int | tuple[()]) -> TextEmbedding:
        return text_of(*(tensors[f"in.{name}.{key}"][row] for key in (embeds, mask, pooled)))

    return [
        text("null.prompt_embed", "null.prompt_attention_mask", "null.pooled_prompt_embed", ())
        if drop
        else text("prompt_embeds", "prompt_attention_mask", "pooled_prompt_embeds", row)
        for row, drop in enumerate(dropped.tolist())
    ]


@dataclass
class Recorded:
    """A noise source that replays what the reference drew; the seed of a task is its row in the batch.

    The reference numbers its draws by generation call: with a given first frame, unit 1 is call 0.
    """

    tensors: dict[str, Tensor]
    name: str
    stages: int
    given: int
    per_unit: int

    def initial(self, seed: int, path: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
        call = len(path) - 1 - self.given
        first = call * self.per_unit if self.given or call == 0 else 1 + (call - 1) * self.per_unit
        return self.tensors[f"in.{self.name}.initial_noise"][seed, :, first : first + shape[1]]

    def jump(self, seed: int, path: tuple[int, ...], stage: int, shape: tuple[int, ...]) -> Tensor:
        number = (len(path) - 1 - self.given) * (self.stages - 1) + stage - 1
        return self.tensors[f"draw.{self.name}.block_noise.{number:02d}"][seed]


def test_sampling(sampling: str, golden: Golden) -> None:
    case, tensors = golden.cases("sampling")[sampling], golden.tensors("sampling_io")
    schedule, given = schedule_of(case["sched"]), int(case["op"] == "i2v")
    part, rows = part_of(case["model_name"]), range(case["batch"])
    recorded = [t.shape[2] for key, t in tensors.items() if key.startswith(f"out.{sampling}.u") and key.endswith(".s0")]
    per_unit = option(case, ["frame_per_unit"], max(recorded))
    size = tuple(tensors[f"in.{sampling}.initial_noise"].shape[-2:])
    first = _per_stage(option(case, ["steps"], STEPS), schedule.stages)
    others = first if given else _per_stage(option(case, ["video_steps"], STEPS), schedule.stages)
    steps = StepsConfig(first=first, others=others)
    noise = Recorded(tensors, sampling, schedule.stages, given, per_unit)
    transformer = golden.transformer(part, weights=golden.cfg["sampling"].get(part))
    sampler = Sampler(transformer, schedule, _guidance(case), steps, noise)
    positive, negative = _texts(tensors, sampling, len(rows))
    units = case["temp"] // per_unit if given else 1 + (case["temp"] - 1) // per_unit
    histories: list[tuple[Tensor, ...]] = [() for _ in rows]
    if given:
        images = norm_of(case).normalise(tensors[f"in.{sampling}.image_posterior_sample"])
        histories = [(image,) for image in images.expand(len(rows), *images.shape[1:])]
    for unit in range(given, units):
        shape = (1 if unit == 0 else per_unit, *size)
        tasks = [UnitTask(positive[row], negative[row], histories[row], shape, row, (0,) * (unit + 1)) for row in rows]
        latents: list[StageLatent] = []
        for stage in range(schedule.stages):
            starts = latents or [None for _ in rows]
            tasks = [replace(task, start=start) for task, start in zip(tasks, starts, strict=True)]
            latents = sampler.sample(tasks, range(stage, stage + 1))
            expected = tensors[f"out.{sampling}.u{unit - given}.s{stage}"]
            limits = golden.limits("sampling")
            if unit == 0:  # the manifest's note: errors grow along the chain, the first unit is held to less
                limits = replace(limits, kind="sampling_unit_0", atol=min(limits.atol, 5e-5))
            limits.check(
                torch.stack([latent.x for latent in latents]), expected, f"{sampling} unit {unit} stage {stage}"
            )
        histories = [(*history, latent.x) for history, latent in zip(histories, latents, strict=True)]
    video = torch.stack([torch.cat(history, dim=1) for history in histories])
    golden.limits("sampling").check(video, tensors[f"out.{sampling}.latents"], f"{sampling} latents")


def _per_stage(steps: int | list[int], stages: int) -> tuple[int, ...]:
    """The reference takes one number for all stages, too."""
    return (steps,) * stages if isinstance(steps, int) else tuple(steps)


def _guidance(case: dict[str, Any]) -> GuidanceConfig:
    """The reference decides by the first scale whether there is guidance at all; its defaults are filled in."""
    first = max(option(case, ["guidance", "guidance_scale"], 7.0), 0.0)
    others = option(case, ["video_guidance", "video_guidance_scale"], 4.0 if case["op"] == "i2v" else 7.0)
    linear = setting(case, "linear", False)
    decay = setting(case, "alpha", 0.5) if linear else None
    return GuidanceConfig(first=first, others=others, decay=decay, floor=setting(case, "min_guidance", 2.0))


def _texts(tensors: dict[str, Tensor], name: str, batch: int) -> tuple[list[TextEmbedding], list[TextEmbedding]]:
    """(prompts, negative prompts) of a batch; without guidance there may be no negative ones, and none is read."""

    def side(key: str) -> list[TextEmbedding]:
        keys = ("prompt_embeds", "prompt_attention_mask", "pooled_prompt_embeds")
        recorded = [tensors[f"in.{name}.{key}.{part}"] for part in keys]
        return [text_of(*(tensor[row % len(tensor)] for tensor in recorded)) for row in range(batch)]

    positive = side("pos")
    return positive, side("neg") if f"in.{name}.neg.prompt_embeds" in tensors else positive
