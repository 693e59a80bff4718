"""A world to train in that is small enough for tests: a tiny VAE, shards it is said to have encoded, three phases."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import nn

from framegrove.config.train import TrainConfig
from framegrove.config.vae import VaeConfig
from framegrove.data.schema import LatentClip, Rival, schema_of, table_of, to_table
from framegrove.digits import world
from framegrove.models.pretrained import save_pipeline
from framegrove.models.sources import digest_of
from framegrove.models.vae import CausalVideoVae
from framegrove.models.vae_files import Affine, LatentNorm, save_vae
from framegrove.training import curve
from framegrove.training.encode import vae_digest
from framegrove.training.setup import Setup
from tests.tiny import digits_recipe

TRANSFORMER = {
    "num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 8, "caption_projection_dim": 16,
    "pooled_projection_dim": 16, "joint_attention_dim": 16, "sample_size": 16, "pos_embed_max_size": 16,
    "max_num_frames": 8,
}  # fmt: skip
PHASE: dict[str, Any] = {"sizes": [[64, 64]], "batch": 6, "learning_rate": 3e-3, "warmup": 0, "ema": 0.9}


def make_world(folder: Path, widths: tuple[int, ...] = (4, 4, 4, 4), heldout: int = 0) -> Path:
    """``folder/vae``, of these ``widths``, and ``folder/clips``: 24 clips of smooth random latents in three shards.

    The ``heldout`` first ones are of the held-out split.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae = CausalVideoVae(
            VaeConfig(
                encoder_block_out_channels=widths, decoder_block_out_channels=widths, encoder_norm_num_groups=2,
                decoder_norm_num_groups=2, encoder_layers_per_block=(1,) * 4, decoder_layers_per_block=(1,) * 4,
            )
        )  # fmt: skip
    plain = Affine((0.0,) * 16, 1.0)
    save_vae(folder / "vae", vae, LatentNorm(plain, plain))
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    clips = []
    for index in range(24):
        rng = np.random.default_rng(index)
        latents = np.repeat(rng.standard_normal((16, 3, 1, 1)), 64, axis=2).reshape(16, 3, 8, 8).astype(np.float16)
        caption = world.caption(world.draw_objects(rng, split="train"))
        split = "heldout" if index < heldout else "train"
        clips.append(LatentClip(index, caption, 64, 64, 8.0, latents, split=split))
    for number in range(3):
        table = to_table(clips[8 * number : 8 * number + 8], vae_digest(vae))
        pq.write_table(table, folder / "clips" / f"{number}.parquet")
    return folder


def pair(seed: int, units: int = 3, **changes: Any) -> LatentClip:
    rng = np.random.default_rng(seed)
    own, other = (rng.standard_normal((16, n, 8, 8)).astype(np.float16) for n in (units, 1))
    rival = Rival(other, (0.9, 0.2), stage=2, cut=True, scores={"v/whole": (0.9, 0.2)})
    return LatentClip(seed, "a red 3 moves left and right", 64, 64, 8.0, own, rival=replace(rival, **changes))


def make_pair_world(folder: Path, heldout: int = 0) -> Path:
    """A world with a whole model in ``base``, whose weights all matter, and ``pairs`` that it is said to have made."""
    setup = Setup.of(make_config(make_world(folder, heldout=heldout)))
    pipeline = setup.pipeline
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(5)
        for parameter in pipeline.transformer.parameters():
            nn.init.normal_(parameter, std=0.15)
    save_pipeline(pipeline, folder / "base")
    made_by = digest_of(make_config(folder, model={"start": str(folder / "base")}).model.source)
    pairs = [pair(seed, units=1 + seed % 3) for seed in range(12)]
    (folder / "pairs").mkdir()
    pq.write_table(
        table_of(pairs, schema_of(setup.vae, made_by=made_by, pairs=True)), folder / "pairs" / "clips-00000.parquet"
    )
    return folder


def make_config(world: Path, **changes: Any) -> TrainConfig:
    """Three phases of 4, 4 and 6 steps, a checkpoint every 3 and a point every 2 steps."""
    model = {
        "start": None,
        "vae": str(world / "vae"),
        "transformer": TRANSFORMER,
        "text": {"layers": 1, "width": 16},
        "recipe": digits_recipe().model_dump(mode="json"),
    }
    phases = [
        PHASE | {"name": "image", "steps": 4},
        PHASE | {"name": "low", "units": 3, "steps": 4, "objective": {"stage_weights": [1, 2, 0]}},
        PHASE | {"name": "high", "units": 3, "steps": 6, "decay": 0.5, "objective": {"stage_weights": [1, 2, 2]}},
    ]
    given = {"data": str(world / "clips"), "model": model, "phases": phases, "checkpoint_every": 3, "log_every": 2}
    given["tracking"] = {"to": "none"}
    return TrainConfig.model_validate(given | changes)


def losses_of(out: Path) -> list[tuple[int, dict[str, float]]]:
    """The loss curve that a run has left, without its times."""
    return [(line["step"], line["losses"]) for line in curve.read(out / curve.LINES)]
