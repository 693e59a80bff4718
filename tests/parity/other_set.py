"""Writes a recorded set of other configurations than the authors': two and four stages, several frames a unit, shift,
weak correlation, other heads, layers and channels, batches, linear guidance, a training step of the FLUX-style model.

What the flow does is worked out by plain implementations of the released procedures, sample by sample and clip by
clip; transformers and VAE are ours, run one sample at a time, since their numbers are held by the authors' set.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from framegrove.config.model import read_transformer_config
from framegrove.models.public import RELEASED_NORMS
from framegrove.models.transformers import Transformer, build_transformer
from framegrove.models.vae import CausalVideoVae
from framegrove.models.vae_files import public_vae_config
from tests.parity.plain import (
    POOLED,
    TEXT,
    Schedule,
    Tensors,
    double,
    gradients,
    half,
    past,
    random,
    text,
    texts,
    twice,
    velocity,
)

TWO = {"shift": 2.5, "stages": 2, "stage_range": [0, 0.4, 1], "gamma": 0.2}
FOUR = {"shift": 1.0, "stages": 4, "stage_range": [0, 0.25, 0.5, 0.75, 1], "gamma": 1 / 3}
CHANNELS = 6
MMDIT = {
    "sample_size": 16,
    "in_channels": CHANNELS,
    "num_layers": 3,
    "attention_head_dim": 12,
    "num_attention_heads": 3,
    "caption_projection_dim": 36,
    "pooled_projection_dim": POOLED,
    "pos_embed_max_size": 14,
    "joint_attention_dim": TEXT,
}
FLUX = {
    "_class_name": "PyramidFluxTransformer",
    "patch_size": 1,
    "in_channels": 4 * CHANNELS,
    "num_layers": 1,
    "num_single_layers": 3,
    "attention_head_dim": 20,
    "num_attention_heads": 2,
    "joint_attention_dim": TEXT,
    "pooled_projection_dim": POOLED,
    "axes_dims_rope": [4, 8, 8],
}
HALVES = (
    ("encoder", "spatial_down"),
    ("encoder", "temporal_down"),
    ("decoder", "spatial_up"),
    ("decoder", "temporal_up"),
)
VAE = {
    "_class_name": "CausalVideoVAE",
    "downsample_scale": 4,
    "encoder_down_block_types": ["DownEncoderBlockCausal3D"] * 3,
    "decoder_up_block_types": ["UpDecoderBlockCausal3D"] * 3,
    "encoder_layers_per_block": [1, 1, 1],
    "decoder_layers_per_block": [1, 1, 1],
    "encoder_block_out_channels": [4, 6, 8],
    "decoder_block_out_channels": [4, 6, 8],
    **{f"{half}_{axis}_sample": [True, True, False] for half, axis in HALVES},
    "encoder_norm_num_groups": 2,
    "decoder_norm_num_groups": 2,
}
TOLERANCES = {
    "scheduler": {"sigmas_atol": 1e-6, "timesteps_atol": 1e-3},
    "block_noise": {"atol": 1e-6},
    **{name: {"atol": 1e-5, "rtol": 1e-5} for name in ("mmdit_pred", "flux_pred")},
    "vae": {"atol": 5e-5, "rtol": 1e-4},
    "targets": {"atol": 2e-6, "rtol": 2e-6, "train_step_loss_rtol": 1e-5},
    "sampling": {"atol": 3e-4, "rtol": 1e-4},
}


def write_other_set(folder: Path) -> Path:
    """Write the set; the same one every time."""
    files: dict[str, Tensors] = {}
    cfg: dict[str, Any] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        models = {}
        for part, config in (("mmdit", MMDIT), ("flux", FLUX)):
            models[part] = random(build_transformer(read_transformer_config(config)))
            files[f"{part}_weights"] = models[part].state_dict()
            files[f"{part}_io"], cases = _transformer_cases(models[part])
            cfg[part] = {"config": config, "cases": cases}
        files["scheduler"], cfg["scheduler"] = _scheduler_tables()
        files["block_noise"], cfg["block_noise"] = _block_tables()
        files["targets_io"], cfg["targets"] = _targets(models["flux"])
        files["sampling_io"], cfg["sampling"] = _sampling(models)
        files["vae_weights"], files["vae_io"], cfg["vae"] = _vae_cases()
    folder.mkdir(parents=True, exist_ok=True)
    for name, tensors in files.items():
        kept = {key: tensor.detach().clone().contiguous() for key, tensor in tensors.items()}
        save_file(kept, folder / f"{name}.safetensors")
    manifest = {"cfg": cfg, "recommended_tolerances": TOLERANCES}
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return folder


def _scheduler_tables() -> tuple[Tensors, dict[str, Any]]:
    counts, tensors = [2, 5], {}
    for name, config in (("two", TWO), ("four", FOUR)):
        plan = Schedule(**config)
        tensors |= {f"{name}.global_sigmas": plan.axis, f"{name}.global_timesteps": plan.axis * 1000}
        tensors |= {f"{name}.start_sigmas": double(plan.start), f"{name}.end_sigmas": double(plan.end)}
        for stage in range(plan.stages):
            tensors[f"{name}.timesteps_per_stage.{stage}"] = double(plan.times[stage])
            tensors[f"{name}.sigmas_per_stage.{stage}"] = double(plan.ratios)
            for count in counts:
                times, ratios = plan.steps(stage, count)
                tensors[f"{name}.set_timesteps.n{count}.s{stage}.timesteps"] = double(times)
                tensors[f"{name}.set_timesteps.n{count}.s{stage}.sigmas"] = double(ratios)
            x = tensors[f"{name}.euler.s{stage}.x0"] = torch.randn(1, 2, 1, 2, 2)
            for step in range(3):
                v = tensors[f"{name}.euler.s{stage}.v{step}"] = torch.randn(1, 2, 1, 2, 2)
                ratios = plan.steps(stage, 3)[1]
                x = tensors[f"{name}.euler.s{stage}.x{step + 1}"] = x + (ratios[step + 1] - ratios[step]) * v
    return tensors, {"configs": {"two": TWO, "four": FOUR}, "n": counts}


def _block_tables() -> tuple[Tensors, dict[str, Any]]:
    rows = torch.randn(2 * 3 * 1 * 2 * 3, 4)
    blocks = rows.view(2, 3, 1, 2, 3, 2, 2)
    tensors: Tensors = {"layout.draw_rows": rows}
    tensors["layout.noise_2x3x1x4x6"] = blocks.transpose(4, 5).reshape(2, 3, 1, 4, 6)
    for name, config in (("two", TWO), ("four", FOUR)):
        gamma = config["gamma"]
        covariance = torch.eye(4, dtype=torch.float64) * (1 + gamma) - gamma
        tensors |= {f"{name}.cov": covariance, f"{name}.eigvals": torch.linalg.eigvalsh(covariance)}
        tensors[f"{name}.alpha_beta"] = double(Schedule(**config).jumps)
    return tensors, {"two": TWO, "four": FOUR}


def _transformer_cases(model: Transformer) -> tuple[Tensors, dict[str, Any]]:
    """One case of three samples in two stages, with gradients."""
    shapes = [[[2, 2, 2], [1, 4, 4], [1, 4, 4]], [[1, 8, 4]]]
    rows, keys = 3 * len(shapes), ("encoder_hidden_states", "encoder_attention_mask", "pooled_projections")
    tensors = texts("in.mixed", rows, *keys)
    tensors["in.mixed.timestep_ratio"] = torch.rand(rows) * 1000
    loss = torch.zeros(())
    for stage, clips in enumerate(shapes):
        for number, shape in enumerate(clips):
            tensors[f"in.mixed.sample.s{stage}.c{number}"] = torch.randn(3, CHANNELS, *shape)
        out = []
        for batch in range(3):
            row = batch * len(shapes) + stage
            own = [tensors[f"in.mixed.sample.s{stage}.c{number}"][batch] for number in range(len(clips))]
            own_text, time = text(tensors, "in.mixed", row, *keys), tensors["in.mixed.timestep_ratio"][row].item()
            out.append(velocity(model, own_text, own[:-1], own[-1], time))
        tensors[f"out.mixed.pred.s{stage}"] = torch.stack(out)
        loss = loss + tensors[f"out.mixed.pred.s{stage}"].square().sum()
    tensors["out.mixed.loss_sumsq"] = loss[None]
    grads = ["transformer_blocks.0.attn.to_q.weight", "context_embedder.bias", "proj_out.weight"]
    tensors |= gradients(model, loss, "out.mixed", grads)
    return tensors, {"mixed": {"batch": 3, "stages": shapes, "grads": grads}}


def _targets(flux: Transformer) -> tuple[Tensors, dict[str, Any]]:
    cases: dict[str, Any] = {
        "wide": {"op": "noise", "units": [2, 3], "sample_ratios": [1, 2], "sched": TWO, "frame_per_unit": 2},
        "deep": {"op": "noise", "units": [4, 5, 5, 5], "sample_ratios": [1, 1, 1, 1], "sched": FOUR},
        "step": {"op": "call", "units": [1, 2], "sample_ratios": [1, 1], "sched": TWO},
    }
    tensors: Tensors = {}
    for name, case in cases.items():
        case["temporal"] = True
        columns, per_unit = sum(case["sample_ratios"]), case.get("frame_per_unit", 1)
        latents = torch.randn(2 * columns, CHANNELS, 1 + 4 * per_unit, 16, 16)
        tensors[f"in.{name}.latents"] = latents
        draws: list[Tensor] = []
        if case["op"] == "call":
            _training_step(flux, tensors, name, case, draws)
        else:
            _columns(tensors, name, case, latents, draws)
        case["n_draws"] = len(draws)
        tensors |= {f"draw.{name}.{number:02d}": draw for number, draw in enumerate(draws)}
    return tensors, {"cases": cases, "dit": "the step: that of its parameters"}


def _columns(tensors: Tensors, name: str, case: dict[str, Any], latents: Tensor, draws: list[Tensor]) -> list[Any]:
    """Inputs and targets of each column of a batch; returned are (clips, target, timesteps)."""
    plan, per_unit = Schedule(**case["sched"]), case.get("frame_per_unit", 1)

    def draw(tensor: Tensor) -> Tensor:
        draws.append(tensor)
        return tensor

    noises = [draw(torch.randn_like(latents))]
    levels = [latents]
    for _ in range(plan.stages - 1):
        noises.insert(0, half(noises[0]) * 2)
        levels.insert(0, half(levels[0]))
    stages = [stage for stage, count in enumerate(case["sample_ratios"]) for _ in range(count)]
    result = []
    for column, stage in enumerate(stages):
        rows = slice(column, None, len(stages))
        clean, noise = levels[stage][rows].double(), noises[stage][rows].double()
        start, end = plan.start[stage], plan.end[stage]
        from_point = noise
        if stage:
            from_point = start * noise + (1 - start) * twice(levels[stage - 1][rows]).double()
        to_point = end * noise + (1 - end) * clean
        index = (draw(torch.rand(len(clean))) * 1000).long().clamp(0, 999)
        strength = draw(torch.rand(len(clean)))[:, None, None, None, None] / 3
        ratio = torch.from_numpy(plan.ratios)[index][:, None, None, None, None]
        units = case["units"][stage]
        frames = 1 + (units - 1) * per_unit
        kept = slice(frames - (per_unit if units > 1 else 1), frames)
        clips = [(ratio * from_point + (1 - ratio) * to_point)[:, :, kept].float()]
        earlier = [level[rows][:, :, : kept.start] for level in levels]
        for clip in reversed(past(earlier, stage, units - 1, per_unit)):
            clips.insert(0, strength * draw(torch.randn_like(clip)) + (1 - strength) * clip)
        target = (from_point - to_point)[:, :, kept].float()
        times = torch.from_numpy(plan.times[stage])[index].float()
        for number, clip in enumerate(clips):
            tensors[f"out.{name}.col{column}.input.c{number}"] = clip
        tensors |= {f"out.{name}.col{column}.target": target, f"out.{name}.col{column}.timestep": times}
        result.append((clips, target, times))
    return result


def _training_step(model: Transformer, tensors: Tensors, name: str, case: dict[str, Any], draws: list[Tensor]) -> None:
    latents = tensors[f"in.{name}.latents"]
    keys = ("prompt_embeds", "prompt_attention_mask", "pooled_prompt_embeds")
    tensors |= texts(f"in.{name}", len(latents), *keys)
    null = ("null.prompt_embed", "null.prompt_attention_mask", "null.pooled_prompt_embed")
    tensors.update({key: tensor[0] for key, tensor in texts(f"in.{name}", 1, *null).items()})
    draws.append(torch.tensor([0.5, 0.05, 0.9, 0.3]))  # the second prompt is dropped
    norm = RELEASED_NORMS["flux"]
    first = (latents[:, :, :1] - norm.image.shift[0]) * norm.image.scale
    later = (latents[:, :, 1:] - norm.video.shift[0]) * norm.video.scale
    columns = _columns(tensors, name, case, torch.cat([first, later], dim=2), draws)
    losses = []
    for row in range(len(latents)):
        clips, target, times = columns[row % len(columns)]
        index = row // len(columns)
        prompt = text(tensors, f"in.{name}", (), *null) if row == 1 else text(tensors, f"in.{name}", row, *keys)
        own = [clip[index] for clip in clips]
        answer = velocity(model, prompt, own[:-1], own[-1], times[index].item())
        losses.append((answer - target[index]).square().mean())
    loss = torch.stack(losses).mean()
    case["grads"] = ["x_embedder.weight", "single_transformer_blocks.1.attn.to_v.weight", "norm_out.linear.bias"]
    tensors[f"out.{name}.loss"] = loss[None]
    tensors.update(gradients(model, loss, f"out.{name}", case["grads"]))


def _sampling(models: dict[str, Transformer]) -> tuple[Tensors, dict[str, Any]]:
    cases: dict[str, Any] = {
        "linear": {
            "op": "t2v", "model_name": "pyramid_mmdit", "batch": 2, "temp": 5, "frame_per_unit": 2, "sched": TWO,
            "steps": [2, 3], "video_steps": [3, 1], "guidance": 4.0, "video_guidance": 9.0,
            "use_linear_guidance": True, "alpha": 1.5, "min_guidance_scale": 2.0,
        },
        "against": {
            "op": "t2v", "model_name": "pyramid_flux", "batch": 1, "temp": 3, "sched": TWO,
            "steps": 2, "video_steps": [1, 1], "guidance": 3.0, "video_guidance": 0.0,
        },
        "given": {
            "op": "i2v", "model_name": "pyramid_flux", "batch": 1, "temp": 4, "sched": FOUR,
            "steps": [1, 2, 1, 2], "guidance": 0.0, "video_guidance": 5.0,
        },
    }  # fmt: skip
    tensors: Tensors = {}
    for name, case in cases.items():
        with torch.no_grad():
            _sampled(models[case["model_name"].removeprefix("pyramid_")], tensors, name, case)
    return tensors, {"cases": cases, "mmdit": "mmdit_weights", "flux": "flux_weights"}


def _sampled(model: Transformer, tensors: Tensors, name: str, case: dict[str, Any]) -> None:
    """Unit after unit, stage after stage, each sample and each side of the guidance by itself."""
    plan, per_unit, batch = Schedule(**case["sched"]), case.get("frame_per_unit", 1), case["batch"]
    keys = ("prompt_embeds", "prompt_attention_mask", "pooled_prompt_embeds")
    for side in ("pos", "neg"):
        tensors |= texts(f"in.{name}.{side}", batch, *keys)
    noise = tensors[f"in.{name}.initial_noise"] = torch.randn(batch, CHANNELS, case["temp"], 16, 16)
    for _ in range(plan.stages - 1):
        noise = half(noise) * 2
    done: list[Tensor] = []
    given = int(case["op"] == "i2v")
    if given:
        image = tensors[f"in.{name}.image_posterior_sample"] = torch.randn(1, CHANNELS, 1, 16, 16)
        norm = RELEASED_NORMS["flux"].image
        done.append((image - norm.shift[0]) * norm.scale)
    frames = [1] * (1 - given) + [per_unit] * ((case["temp"] - 1) // per_unit)
    starts = np.cumsum([0, *frames]).tolist()
    for call, count in enumerate(frames):
        unit, x = call + given, noise[:, :, starts[call] : starts[call] + count]
        scale = case["guidance"] if unit == 0 else case["video_guidance"]
        if case.get("use_linear_guidance"):
            scale = max(case["guidance"] - case["alpha"] * unit, case["min_guidance_scale"])
        for stage in range(plan.stages):
            if stage:
                larger = twice(x)
                block, (alpha, beta) = torch.randn_like(larger), plan.jumps[stage]
                tensors[f"draw.{name}.block_noise.{call * (plan.stages - 1) + stage - 1:02d}"] = block
                x = alpha * larger + beta * block
            levels = [torch.cat(done, dim=2)] if done else []
            for _ in range(plan.stages - 1 if done else 0):
                levels.insert(0, half(levels[0]))
            history = past(levels, stage, unit, per_unit)
            wanted = case["steps"] if unit == 0 or given else case["video_steps"]
            times, ratios = plan.steps(stage, wanted if isinstance(wanted, int) else wanted[stage])
            for step, time in enumerate(times):
                velocities = []
                for row in range(batch):
                    clips = [clip[row] for clip in history]
                    positive = velocity(model, text(tensors, f"in.{name}.pos", row, *keys), clips, x[row], time)
                    if case["guidance"] > 0:
                        negative = velocity(model, text(tensors, f"in.{name}.neg", row, *keys), clips, x[row], time)
                        positive = negative + scale * (positive - negative)
                    velocities.append(positive)
                x = x + (ratios[step + 1] - ratios[step]) * torch.stack(velocities)
            tensors[f"out.{name}.u{call}.s{stage}"] = x
        done.append(x)
    tensors[f"out.{name}.latents"] = torch.cat(done, dim=2)


def _vae_cases() -> tuple[Tensors, Tensors, dict[str, Any]]:
    vae: CausalVideoVae = random(CausalVideoVae(public_vae_config(VAE))).requires_grad_(False)
    tensors = {"in.x": torch.rand(2, 3, 17, 16, 24) * 2 - 1, "in.z": torch.randn(2, 16, 3, 2, 3)}
    moments, video = vae.encode(tensors["in.x"]), vae.decode(tensors["in.z"])
    cases: dict[str, Any] = {
        "plain": {"op": "encode", "input": "x"},
        "chunked": {"op": "encode", "input": "x", "kw": {"temporal_chunk": True}},
        "decoded": {"op": "decode", "input": "z", "kw": {"temporal_chunk": True, "window_size": 1}},
        "one_tile": {"op": "decode", "input": "z", "tiling": True, "kw": {}},
    }
    for name, case in cases.items():
        if case["op"] == "encode":
            tensors |= {f"out.{name}.mean": moments.mean, f"out.{name}.logvar": moments.logvar}
        else:
            tensors[f"out.{name}.sample"] = video
    return vae.state_dict(), tensors, {"config": VAE, "cases": cases}
