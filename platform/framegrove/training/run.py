"""A run in one process: from a configuration to a model folder, resumed where an earlier one stopped."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow.parquet as pq
import torch

from framegrove.config.train import SHIPPED, ModelConfig, PhaseConfig, TrainConfig
from framegrove.data.ingest import DataError, Pool, Shard, open_shards, stream
from framegrove.flow.schedule import PyramidSchedule
from framegrove.models.mmdit import fresh_mmdit
from framegrove.models.pretrained import Pipeline, load_pipeline, save_pipeline
from framegrove.models.text import TextEncoder
from framegrove.models.vae_files import load_vae
from framegrove.training import checkpoint
from framegrove.training.curriculum import check_sizes
from framegrove.training.curve import Curve
from framegrove.training.encode import vae_digest
from framegrove.training.engine import PlainEngine
from framegrove.training.loop import Hooks, Point, train
from framegrove.training.step import Trainable

MODEL, CHECKPOINTS = "model", "checkpoints"


@dataclasses.dataclass(frozen=True)
class Watch:
    """What a run tells whoever looks at it."""

    on_start: Callable[[int], None]  # steps done by an earlier run
    on_step: Callable[[int, float], None]
    on_point: Callable[[Point], None]


@dataclasses.dataclass(frozen=True, eq=False)
class Setup:
    """A checked run: the model to train and the shards of each phase."""

    config: TrainConfig
    pipeline: Pipeline
    shards: dict[str, tuple[Shard, ...]]

    @classmethod
    def of(cls, config: TrainConfig) -> Setup:
        """Open model and data, and check that they fit each other. Raises ValueError before anything is written."""
        shards = {phase.name: open_shards(config.data, phase.sizes) for phase in config.phases}
        every = list(dict.fromkeys(shard for of_phase in shards.values() for shard in of_phase))
        pipeline = starting_pipeline(config.model, every)
        check_sizes(
            config,
            pipeline.vae.config.spatial_factor,
            pipeline.transformer.config.patch_size,
            pipeline.recipe.pyramid.stages,
        )
        digest = vae_digest(pipeline.vae)
        for shard in every:
            if shard.vae != digest:
                raise DataError(
                    f"{shard.path} was encoded by another VAE than the model's: prepare the clips anew with "
                    "python -m jobs.prepare"
                )
        for phase in config.phases:
            longest = max(shard.units for shard in shards[phase.name])
            if longest < phase.units:
                raise DataError(
                    f"phase {phase.name} trains {phase.units} units, the longest clip in {config.data} has {longest}: "
                    "lower units or prepare longer clips"
                )
        return cls(config, pipeline, shards)

    @property
    def schedule(self) -> PyramidSchedule:
        """The pyramid of the model."""
        return PyramidSchedule(**self.pipeline.recipe.pyramid.model_dump())

    def trainable(self) -> Trainable:
        """The part of the model that is trained."""
        pipeline = self.pipeline
        return Trainable(pipeline.transformer, pipeline.text, self.config.model.train_text).train()

    def pool(self, phase: PhaseConfig, step: int) -> Pool:
        """The clips of a phase from a step of it on, for a single process."""
        shards, pool, seed = self.shards[phase.name], self.config.pool, self.config.seed
        available = sum(shard.clips for shard in shards)
        return Pool(
            lambda start: stream(shards, phase.sizes, seed, start=start), available, pool.clips, pool.refresh, step
        )


def run(config: TrainConfig, out: Path, watch: Watch) -> Path:
    """Train in this process, on a GPU if there is one; the model folder is ``out/model``.

    Goes on from the newest checkpoint in ``out``. Raises ValueError for what does not fit together.
    """
    setup = Setup.of(config)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with_muon = any(phase.matrix_learning_rate for phase in config.phases)
    engine = PlainEngine(setup.trainable(), config.precision, device, with_muon)
    resumed = checkpoint.newest(out / CHECKPOINTS)
    first_step = checkpoint.step_of(resumed, config) if resumed else 0
    if resumed:
        engine.load(resumed)
    out.mkdir(parents=True, exist_ok=True)
    curve = Curve(out, first_step)

    def save_checkpoint(step: int) -> None:
        checkpoint.save(out / CHECKPOINTS, step, config, engine.save)
        curve.draw()

    def add_point(point: Point) -> None:
        curve.add(dataclasses.asdict(point))
        watch.on_point(point)

    hooks = Hooks(watch.on_step, add_point, save_checkpoint, lambda phase: save_model(engine, setup, out))
    watch.on_start(first_step)
    train(config, engine, setup.pool, setup.schedule, setup.pipeline.latent_norm, hooks, first_step, curve.seconds)
    if first_step >= config.steps:
        save_model(engine, setup, out)
    return out / MODEL


def save_model(engine: PlainEngine, setup: Setup, out: Path) -> None:
    """Write the averaged weights as a model folder."""
    engine.swap_averaged()
    save_pipeline(setup.pipeline, out / MODEL, getattr(torch, _DTYPES[setup.config.save_as]))
    engine.swap_averaged()


_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def starting_pipeline(config: ModelConfig, shards: Sequence[Shard]) -> Pipeline:
    """The model of step 0: one that is continued, or a new one whose words are those of the data's captions."""
    if config.start is not None:
        return load_pipeline(None if config.start == SHIPPED else config.start)
    assert config.vae is not None
    vae, norm = load_vae(config.vae)
    captions = [text for s in shards for text in pq.read_table(s.path, columns=["caption"])["caption"].to_pylist()]
    words = sorted({word for caption in captions for word in caption.lower().split()})
    text = TextEncoder.fresh(config.text, [*words, *config.phrases])
    return Pipeline(fresh_mmdit(config.transformer), vae, norm, text, config.recipe)
