"""A run: what is checked before it starts, what it leaves, and the whole of it in one process."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import pyarrow.parquet as pq
import torch

from framegrove.config.model import AnyTransformerConfig, Recipe
from framegrove.config.train import CHECKPOINTS, MODEL, SHIPPED, ModelConfig, PhaseConfig, TrainConfig
from framegrove.data.ingest import DataError, Pool, Reader, Shard, clips_of, open_shards, stream
from framegrove.errors import UserError
from framegrove.flow.schedule import PyramidSchedule
from framegrove.models.pretrained import (
    VAE,
    Pipeline,
    embedded_model,
    load_source,
    model_folder,
    read_shape,
    save_pipeline,
)
from framegrove.models.text import TextEncoder
from framegrove.models.transformers import fresh_transformer
from framegrove.models.vae import CausalVideoVae
from framegrove.models.vae_files import load_vae, read_vae
from framegrove.training import checkpoint
from framegrove.training.curriculum import check_sizes
from framegrove.training.curve import Curve
from framegrove.training.encode import vae_digest
from framegrove.training.engine import PlainEngine
from framegrove.training.loop import Engine, Hooks, Point, train
from framegrove.training.step import Trainable


@dataclasses.dataclass(frozen=True)
class Watch:
    """What a run tells whoever looks at it."""

    on_start: Callable[[int], None]  # steps done by an earlier run
    on_step: Callable[[int, float], None]
    on_point: Callable[[Point], None]


@dataclasses.dataclass(frozen=True, eq=False)
class Setup:
    """A checked run: the shards of each phase, the recipe of its model, and the model itself once it is asked for."""

    config: TrainConfig
    recipe: Recipe
    shards: dict[str, tuple[Shard, ...]]

    @classmethod
    def of(cls, config: TrainConfig) -> Setup:
        """Open the data, and check that it fits the model. Raises UserError before anything is written.

        Of the model only its VAE is read: whoever starts a run on a cluster need not hold the rest.
        """
        shards = {phase.name: open_shards(config.data, phase.sizes) for phase in config.phases}
        shape, vae, recipe = _outline(config.model)
        check_sizes(config, vae.config.spatial_factor, shape.patch_size, recipe.pyramid.stages)
        digest = vae_digest(vae)
        for shard in (shard for of_phase in shards.values() for shard in of_phase):
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
        return cls(config, recipe, shards)

    @cached_property
    def pipeline(self) -> Pipeline:
        """The model of step 0."""
        every = dict.fromkeys(shard for of_phase in self.shards.values() for shard in of_phase)
        return starting_pipeline(self.config, list(every))

    @property
    def schedule(self) -> PyramidSchedule:
        """The pyramid of the model."""
        return PyramidSchedule.of(self.recipe.pyramid)

    def trainable(self) -> Trainable:
        """A copy of the part of the model that is trained, which engines may cut to pieces; frozen text is shared."""
        text, train_text = self.pipeline.text, self.config.model.train_text
        transformer = copy.deepcopy(self.pipeline.transformer)
        transformer.recompute = self.config.recompute
        return Trainable(transformer, copy.deepcopy(text) if train_text else text, train_text).train()

    def pools(self, rank: int = 0, world: int = 1, read: Reader | None = None) -> Callable[[PhaseConfig, int], Pool]:
        """What opens a worker's clips of a phase, from a step of it on."""
        size, refresh, seed = self.config.pool.clips, self.config.pool.refresh, self.config.seed
        whole: dict[object, Pool] = {}  # where all clips are held for good, phases share them

        def open_pool(phase: PhaseConfig, step: int) -> Pool:
            shards, sizes = self.shards[phase.name], frozenset(phase.sizes)
            if (shards, sizes) in whole:
                return whole[shards, sizes]
            available = clips_of(shards, rank, world, seed)
            pool = Pool(
                lambda start: stream(shards, sizes, seed, rank, world, start, read), available, size, refresh, step
            )
            if not pool.refresh:
                whole[shards, sizes] = pool
            return pool

        return open_pool

    def check_workers(self, workers: int) -> None:
        """Raise UserError where so many workers cannot share the work."""
        for phase in self.config.phases:
            clips = sum(shard.clips for shard in self.shards[phase.name])
            if min(phase.batch, clips) < workers:
                raise UserError(
                    f"phase {phase.name}: a batch of {phase.batch} samples and {clips} clips cannot be shared by "
                    f"{workers} workers: use fewer of them"
                )

    def save_model(self, engine: Engine, out: Path) -> None:
        """Write the averaged weights as the model folder of a run; called by all workers."""
        averaged = engine.averaged_weights()
        if engine.rank == 0:
            parts = torch.nn.ModuleDict({"transformer": self.pipeline.transformer, "text": self.pipeline.text})
            parameters = dict(parts.named_parameters())
            with torch.no_grad():
                for name, weight in averaged.items():
                    parameters[name].copy_(weight)
            save_pipeline(self.pipeline, out / MODEL, getattr(torch, _DTYPES[self.config.save_as]))


def run(config: TrainConfig, out: Path, watch: Watch) -> Path:
    """Train in this process, on a GPU if there is one; the model folder is ``out/model``.

    Goes on from the newest checkpoint in ``out``. Raises UserError for what does not fit together.
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

    hooks = Hooks(watch.on_step, add_point, save_checkpoint, lambda phase: setup.save_model(engine, out))
    watch.on_start(first_step)
    train(config, engine, setup.pools(), setup.schedule, setup.pipeline.latent_norm, hooks, first_step, curve.seconds)
    if first_step >= config.steps:
        setup.save_model(engine, out)
    return out / MODEL


_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def starting_pipeline(config: TrainConfig, shards: Sequence[Shard]) -> Pipeline:
    """The model of step 0: one that is continued, or a new one whose words are those of the data's captions."""
    model = config.model
    if model.start is not None:
        started = load_source(model.source, torch.bfloat16 if config.precision == "bf16" else None)
        if not model.fresh:
            return started
        return dataclasses.replace(started, transformer=fresh_transformer(started.transformer.config))
    vae, norm = load_vae(_vae_folder(model))
    captions = [text for s in shards for text in pq.read_table(s.path, columns=["caption"])["caption"].to_pylist()]
    words = sorted({word for caption in captions for word in caption.lower().split()})
    text = TextEncoder.fresh(model.text, [*words, *model.phrases])
    return Pipeline(fresh_transformer(model.shape), vae, norm, text, model.recipe)


def _outline(model: ModelConfig) -> tuple[AnyTransformerConfig, CausalVideoVae, Recipe]:
    """Shape of the transformer, VAE and recipe of the model of step 0."""
    if model.start is None:
        return model.shape, read_vae(_vae_folder(model)), model.recipe
    folder = model_folder(model.source)
    _, shape, recipe = read_shape(folder, model.variant)
    return shape, read_vae(folder / VAE, allow_pickle=model.allow_pickle), recipe


def _vae_folder(model: ModelConfig) -> Path:
    return embedded_model() / VAE if model.vae == SHIPPED else Path(str(model.vae))
