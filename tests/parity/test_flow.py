"""The flow against recorded tensors of the authors' implementation: scheduler, block noise, targets, sampling.

Every case of a golden folder runs (--golden DIR), whatever its stages, shift, gamma, batch or frames per unit.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from framegrove.config.flow import GuidanceConfig, StepsConfig
from framegrove.config.model import TransformerConfig
from framegrove.flow.history import history_clips
from framegrove.flow.noise import mix_blocks, noise_pyramid, pyramid
from framegrove.flow.objective import Draws, StageBatch, sample_losses, stage_batch
from framegrove.flow.sampler import Sampler, StageLatent, UnitTask
from framegrove.flow.schedule import GRID, PyramidSchedule
from framegrove.models.mmdit import MMDiT
from framegrove.models.packed import Prefix, Sample, TextEmbedding
from framegrove.models.vae_files import Affine, LatentNorm

CORRUPTION = 1 / 3
DROPOUT = 0.1
VIDEO = Affine((-0.2343,), 1 / 3.0986)
NORMS = {
    "pyramid_mmdit": LatentNorm(Affine((0.1490,), 1 / 1.8415), VIDEO),
    "pyramid_flux": LatentNorm(Affine((-0.04,), 1 / 1.8726), VIDEO),
}


def _golden(config: pytest.Config) -> Path:
    return Path(config.getoption("--golden", default=None) or Path(__file__).parent / "golden")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    cfg = json.loads((_golden(metafunc.config) / "manifest.json").read_text(encoding="utf-8"))["cfg"]
    targets, sampling = cfg["targets"]["cases"], cfg["sampling"]["cases"]
    chosen = {
        "scheduler": list(cfg["scheduler"]["configs"]),
        "blocks": list(cfg["block_noise"]),
        "target": [name for name, case in targets.items() if case["op"] != "call"],
        "step": [name for name, case in targets.items() if case["op"] == "call"],
        "sampling": [name for name, case in sampling.items() if case["model_name"] == "pyramid_mmdit"],
    }
    for kind, names in chosen.items():
        if kind in metafunc.fixturenames:
            metafunc.parametrize(kind, names)


class Golden:
    """A folder of recorded tensors with its manifest."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        self.cfg: dict[str, Any] = manifest["cfg"]
        self.tolerance: dict[str, Any] = manifest["recommended_tolerances"]

    def tensors(self, name: str) -> dict[str, Tensor]:
        return load_file(self.folder / f"{name}.safetensors")

    def mmdit(self) -> MMDiT:
        transformer = MMDiT(TransformerConfig.from_public(self.cfg["mmdit"]["config"]))
        transformer.load_state_dict(self.tensors("mmdit_weights"))
        return transformer.eval()


@pytest.fixture(scope="module")
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(_golden(request.config))


def schedule_of(recorded: dict[str, Any]) -> PyramidSchedule:
    """The released configuration gives the correlation of a block without its sign."""
    stages = recorded["stages"]
    return PyramidSchedule(stages, recorded["shift"], -recorded["gamma"], tuple(recorded["stage_range"]))


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
        ratios = schedule.ratios(stage, golden.cfg["scheduler"]["n"][1])
        x = tensors[f"{scheduler}.euler.s{stage}.x0"]
        for step in range(len(ratios) - 1):
            x = x + (ratios[step + 1] - ratios[step]) * tensors[f"{scheduler}.euler.s{stage}.v{step}"]
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
    tensors = golden.tensors("block_noise")
    (name,) = [name for name in tensors if name.startswith("layout.noise_")]
    recorded, rows = tensors[name], tensors["layout.draw_rows"]
    *leading, height, width = recorded.shape
    patterns = mix_blocks(torch.eye(4).view(4, 4, 1, 1), 0.0).view(4, 4)  # uncorrelated: an orthogonal map
    white = (patterns @ rows.T).view(4, *leading, height // 2, width // 2)
    torch.testing.assert_close(mix_blocks(white, 0.0), recorded, atol=1e-3, rtol=0)


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
        corruption_B = draws.pop(0) * CORRUPTION
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
    per_unit = case.get("frame_per_unit", 1)
    if "units" in case:
        count = min(case["units"][stage], 1 + (clip.shape[2] - 1) // per_unit)
    else:  # the reference chose: as many frames as it recorded
        inputs = [t for key, t in tensors.items() if key.startswith(f"out.{name}.col{column}.input.")]
        count = 1 + (sum(t.shape[2] for t in inputs) - 1) // per_unit
    return list(clip[:, :, : 1 + (count - 1) * per_unit].split([1] + [per_unit] * (count - 1), dim=2))


def test_targets(target: str, golden: Golden) -> None:
    case, tensors = golden.cfg["targets"]["cases"][target], golden.tensors("targets_io")
    tolerance = {key: golden.tolerance["targets"][key] for key in ("atol", "rtol")}
    stages = case["sched"]["stages"]
    latents = tensors[f"in.{target}.latents"]
    draws = [tensors[f"draw.{target}.{index:02d}"] for index in range(case["n_draws"])]

    def close(actual: Tensor, name: str) -> None:
        expected = tensors.get(f"out.{target}.{name}")
        if expected is not None:
            torch.testing.assert_close(actual.to(expected.dtype), expected.reshape(actual.shape), **tolerance)

    if case["op"] == "vae_latent":
        latents = NORMS[case.get("model_name", "pyramid_mmdit")].normalise(latents)
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
    texts = _dropped_texts(tensors, step, draws.pop(0) <= DROPOUT)
    latents = NORMS[case.get("model_name", "pyramid_mmdit")].normalise(tensors[f"in.{step}.latents"])
    columns = columns_of(golden, step, latents, draws)
    samples, targets = [], []
    for row in range(columns[0].batch.noisy.shape[0]):
        for column in columns:
            batch = column.batch
            prefix = Prefix(texts[row * len(columns) + column.index], tuple(clip[row] for clip in batch.history))
            samples.append(Sample(prefix, batch.noisy[row], batch.timesteps_B[row].item()))
            targets.append(batch.velocity[row])
    transformer = golden.mmdit()
    loss = sample_losses(transformer(transformer.pack(samples)), targets).mean()
    loss.backward()
    expected = tensors[f"out.{step}.loss"].item()
    assert loss.item() == pytest.approx(expected, rel=golden.tolerance["targets"]["train_step_loss_rtol"])
    parameters = dict(transformer.named_parameters())
    for name in case["grads"]:
        gradient = tensors[f"out.{step}.grad.{name}"]
        allowed = 1e-5 * gradient.abs().max().item() + 1e-6
        torch.testing.assert_close(parameters[name].grad, gradient, atol=allowed, rtol=0)


def _dropped_texts(tensors: dict[str, Tensor], name: str, dropped: Tensor) -> list[TextEmbedding]:
    def text(embeds: str, mask: str, pooled: str, row: int | tuple[()]) -> TextEmbedding:
        valid = tensors[f"in.{name}.{mask}"][row].bool()
        return TextEmbedding(tensors[f"in.{name}.{embeds}"][row][valid], tensors[f"in.{name}.{pooled}"][row])

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
    case, tensors = golden.cfg["sampling"]["cases"][sampling], golden.tensors("sampling_io")
    schedule, given = schedule_of(case["sched"]), int(case["op"] == "i2v")
    per_unit, size = case.get("frame_per_unit", 1), (case["height"] // 8, case["width"] // 8)
    steps = StepsConfig(first=case["steps"], others=case["steps"] if given else case["video_steps"])
    noise = Recorded(tensors, sampling, schedule.stages, given, per_unit)
    sampler = Sampler(golden.mmdit(), schedule, _guidance(case), steps, noise)
    rows = range(case["batch"])
    positive, negative = (
        _texts(tensors, sampling, "pos", case["batch"]),
        _texts(tensors, sampling, "neg", case["batch"]),
    )
    units = case["temp"] // per_unit if given else 1 + (case["temp"] - 1) // per_unit
    histories: list[tuple[Tensor, ...]] = [() for _ in rows]
    if given:
        images = NORMS[case["model_name"]].normalise(tensors[f"in.{sampling}.image_posterior_sample"])
        histories = [(image,) for image in images.expand(case["batch"], *images.shape[1:])]
    for unit in range(given, units):
        shape = (1 if unit == 0 else per_unit, *size)
        tasks = [UnitTask(positive[row], negative[row], histories[row], shape, row, (0,) * (unit + 1)) for row in rows]
        latents: list[StageLatent] = []
        for stage in range(schedule.stages):
            starts = latents or [None for _ in rows]
            tasks = [replace(task, start=start) for task, start in zip(tasks, starts, strict=True)]
            latents = sampler.sample(tasks, range(stage, stage + 1))
            expected = tensors[f"out.{sampling}.u{unit - given}.s{stage}"]
            tolerance = {"atol": 5e-5, "rtol": 1e-4} if unit == 0 else _tolerance(golden)
            torch.testing.assert_close(torch.stack([latent.x for latent in latents]), expected, **tolerance)
        histories = [(*history, latent.x) for history, latent in zip(histories, latents, strict=True)]
    video = torch.stack([torch.cat(history, dim=1) for history in histories])
    torch.testing.assert_close(video, tensors[f"out.{sampling}.latents"], **_tolerance(golden))


def _tolerance(golden: Golden) -> dict[str, float]:
    return {key: golden.tolerance["sampling"][key] for key in ("atol", "rtol")}


def _guidance(case: dict[str, Any]) -> GuidanceConfig:
    """The reference decides by the first scale whether there is guidance at all."""
    first = max(case["guidance"], 0.0)
    linear = case.get("use_linear_guidance", case.get("linear_guidance", False))
    return GuidanceConfig(
        first=first,
        others=case["video_guidance"] if first > 0 else 0.0,
        decay=case.get("alpha", 0.5) if linear else None,
        floor=case.get("min_guidance_scale", 2.0),
    )


def _texts(tensors: dict[str, Tensor], name: str, side: str, batch: int) -> list[TextEmbedding]:
    embeds, masks, pooled = (
        tensors[f"in.{name}.{side}.{key}"] for key in ("prompt_embeds", "prompt_attention_mask", "pooled_prompt_embeds")
    )
    return [TextEmbedding(embeds[r][masks[r].bool()], pooled[r]) for r in (row % len(embeds) for row in range(batch))]
