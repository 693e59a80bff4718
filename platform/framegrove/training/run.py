"""A run: what is checked before it starts, what it leaves behind, and the whole of it in one process."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property, partial
from pathlib import Path

import pyarrow.parquet as pq
import torch
from torch import Tensor

from framegrove.config.model import AnyTransformerConfig, Recipe
from framegrove.config.train import CHECKPOINTS, MODEL, SHIPPED, ModelConfig, PhaseConfig, TrainConfig
from framegrove.data.ingest import ClipPool, DataError, Reader, Shard, clips_of, open_shards, stream
from framegrove.errors import UserError
from framegrove.files import patiently
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
from framegrove.models.transformers import build_transformer, fresh_transformer
from framegrove.models.vae import CausalVideoVae
from framegrove.models.vae_files import load_vae, read_vae
from framegrove.training import checkpoint
from framegrove.training.checkpoint import About
from framegrove.training.curriculum import Position, check_sizes
from framegrove.training.curve import Curve
from framegrove.training.encode import vae_digest
from framegrove.training.engine import PlainEngine
from framegrove.training.loop import Engine, Hooks, Point, train
from framegrove.training.resume import AnyEngine, History, asdict_of, at_hand, check, go_on
from framegrove.training.saver import Saver, new_session
from framegrove.training.step import Trainable

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def run(config: TrainConfig, out: Path, hooks: Hooks = Hooks()) -> Path:  # noqa: B008 - it is frozen
    """Train in this process, on a GPU if there is one; the model folder is ``out/model``.

    Continues from the newest undamaged checkpoint in ``out``, whichever engine and however many workers have written
    it. Raises UserError for what does not fit together, TrainingDiverged, and CheckpointFailed.
    """
    setup = Setup.of(config, out)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with_muon = any(phase.matrix_learning_rate for phase in config.phases)
    engine = PlainEngine(setup.trainable(), config.precision, device, with_muon)
    return train_to_the_end(setup, engine, out, hooks)


def train_to_the_end(setup: Setup, engine: AnyEngine, out: Path, hooks: Hooks, read: Reader | None = None) -> Path:
    """What a run does after it is set up, in one process and on every worker of a cluster alike.

    It goes on from the newest checkpoint in ``out``. Worker 0 writes the loss curve, its picture at every checkpoint,
    the history, and the model folder at the end of every phase. ``read`` is how clips are read where they do not all
    fit in memory.
    """
    config, folder = setup.config, out / CHECKPOINTS
    if engine.rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
    first_step = go_on(engine, out, config)
    saver = Saver(folder, engine, new_session(engine), config.keep_last, config.keep_best)
    curve = Curve(out, first_step) if engine.rank == 0 else None
    history = History(out)
    losses: dict[str, float] = {}

    def on_step(done: int, loss: float) -> None:
        saver.check()
        hooks.on_step(done, loss)

    def on_point(point: Point) -> None:
        losses.clear()
        losses.update(point.losses)
        if curve:
            patiently("writing the loss curve", partial(curve.add, dataclasses.asdict(point)))
        hooks.on_point(point)

    def on_checkpoint(step: int) -> bool | None:
        phase = Position.of(config, step - 1).phase.name
        held = asdict_of(config)
        saver.save(About(step, phase, held, engine.name, engine.world, setup.words, setup.vae, dict(losses)))
        if curve:
            patiently("drawing the loss curve", curve.draw)
        if engine.most(int(engine.rank == 0 and not (out / MODEL).exists())):
            setup.save_model(engine, out)  # so that the run's folder has all that going on elsewhere needs
        return hooks.on_checkpoint(step)

    def on_phase_end(phase: PhaseConfig) -> None:
        setup.save_model(engine, out)
        hooks.on_phase_end(phase)

    def on_skip(done: int, says: str) -> None:
        patiently("writing the history", partial(history.add, "skipped", done, says))
        hooks.on_skip(done, says)

    with saver:
        train(
            config,
            engine,
            setup.pools(engine.rank, engine.world, read),
            setup.schedule,
            setup.pipeline.latent_norm,
            dataclasses.replace(
                hooks,
                on_step=on_step,
                on_point=on_point,
                on_checkpoint=on_checkpoint,
                on_phase_end=on_phase_end,
                on_skip=on_skip,
            ),
            first_step,
            curve.seconds if curve else 0.0,
            curve.skipped if curve else 0,
        )
    if first_step >= config.steps:  # it was stopped after its last checkpoint, perhaps before the model was saved
        setup.save_model(engine, out)
    return out / MODEL


@dataclasses.dataclass(frozen=True, eq=False)
class Setup:
    """A checked run: the shards of each phase, and what its model is made of.

    Making one reads the sizes of all clips, which decide what each worker reads. It is sent to the workers as it is,
    so that they read nothing but the clips of their own share.
    """

    config: TrainConfig
    recipe: Recipe
    shards: dict[str, tuple[Shard, ...]]  # by the name of the phase
    words: tuple[str, ...]  # what a new text encoder reads; empty where an existing model is continued
    vae: str = ""  # digest of the VAE that encodes the latents

    @classmethod
    def of(cls, config: TrainConfig, out: Path | None = None) -> Setup:
        """Open the data, and check that it fits the model and the run in ``out``, which this goes on with.

        Raises UserError before anything is written.

        Of the shards only the columns of sizes are read, once for all phases of the same sizes, and for a new text
        encoder the captions. Of the model only the VAE is read: whoever starts a run on a cluster need not hold it all.
        """
        begun = checkpoint.newest(out / CHECKPOINTS) if out else None
        if out and begun:
            check(out, begun.about.config, config, begun.about.step)
            config = at_hand(config, out)
        opened = {sizes: open_shards(config.data, sizes) for sizes in {phase.sizes for phase in config.phases}}
        shards = {phase.name: opened[phase.sizes] for phase in config.phases}
        shape, vae, recipe = outline(config.model)
        check_sizes(config, vae.config.spatial_factor, shape.patch_size, recipe.pyramid.stages)
        digest = vae_digest(vae)
        if begun and begun.about.vae != digest:
            raise UserError(f"the run in {out} is of latents of another VAE than the model's: give another --out")
        for shard in (shard for of_sizes in opened.values() for shard in of_sizes):
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
        paths = {shard.path for of_sizes in opened.values() for shard in of_sizes}
        if begun:  # a vocabulary is that of the first data
            words = begun.about.words
        else:
            words = () if config.model.start is not None else (*_words_in(paths), *config.model.phrases)
        return cls(config, recipe, shards, words, digest)

    @cached_property
    def pipeline(self) -> Pipeline:
        """The model of step 0: one that is continued, or a new one."""
        model = self.config.model
        if model.start is not None:
            started = load_source(model.source, torch.bfloat16 if self.config.precision == "bf16" else None)
            if not model.fresh:
                return started
            return dataclasses.replace(started, transformer=fresh_transformer(started.transformer.config))
        vae, norm = load_vae(_vae_folder(model))
        text = TextEncoder.fresh(model.text, list(self.words))
        return Pipeline(fresh_transformer(model.shape), vae, norm, text, model.recipe)

    @cached_property
    def _buffers(self) -> dict[str, Tensor]:
        """The transformer's tables as they were loaded; an engine rounds its own."""
        transformer = self.pipeline.transformer
        trained = dict(transformer.named_parameters())
        return {name: value.clone() for name, value in transformer.state_dict().items() if name not in trained}

    @property
    def schedule(self) -> PyramidSchedule:
        """The pyramid of the model."""
        return PyramidSchedule.of(self.recipe.pyramid)

    def trainable(self) -> Trainable:
        """The part of the model that is trained, for the one engine of this process.

        The transformer is the pipeline's own, not a copy: the engine trains it in place, and may cut it to pieces.
        """
        text, train_text = self.pipeline.text, self.config.model.train_text
        _ = self._buffers  # copied now, before an engine can round them
        transformer = self.pipeline.transformer
        transformer.recompute = self.config.recompute
        return Trainable(transformer, copy.deepcopy(text) if train_text else text, train_text).train()

    def pools(
        self, rank: int = 0, world: int = 1, read: Reader | None = None
    ) -> Callable[[PhaseConfig, int], ClipPool]:
        """What opens the pool of a worker's clips of a phase, as it is at a step of the phase.

        ``read`` is for pools that move on through the clips; one that never moves is read once, by `read_shards`.
        """
        size, refresh, seed = self.config.pool.clips, self.config.pool.refresh, self.config.seed
        held: dict[object, ClipPool] = {}  # pools that never move are shared by phases

        def open_pool(phase: PhaseConfig, step: int) -> ClipPool:
            shards, sizes = self.shards[phase.name], frozenset(phase.sizes)
            if (shards, sizes) in held:
                return held[shards, sizes]
            available = clips_of(shards, rank, world, seed)
            reader = read if refresh and available > size else None
            pool = ClipPool(
                lambda start: stream(shards, sizes, seed, rank, world, start, reader), available, size, refresh, step
            )
            if not pool.refresh:
                held[shards, sizes] = pool
            return pool

        return open_pool

    def check_workers(self, workers: int) -> None:
        """Raise UserError where there are more workers than samples in a batch, or than clips."""
        for phase in self.config.phases:
            clips = sum(shard.clips for shard in self.shards[phase.name])
            if min(phase.batch, clips) < workers:
                raise UserError(
                    f"phase {phase.name}: a batch of {phase.batch} samples and {clips} clips cannot be shared by "
                    f"{workers} workers: use fewer of them"
                )

    def save_model(self, engine: Engine, out: Path) -> None:
        """Write the averaged weights as the model folder of a run. Every worker calls it, worker 0 writes."""
        averaged = engine.averaged_weights()
        if engine.rank == 0:
            patiently("writing the model", partial(self.write_model, averaged, out / MODEL))

    def write_model(self, averaged: Mapping[str, Tensor], folder: Path) -> None:
        """Write a model folder with these weights, by name, in place of the trained ones."""
        with torch.device("meta"):  # it takes the averaged weights over, and needs none of its own
            transformer = build_transformer(self.pipeline.transformer.config)
        prefix = "transformer."
        weights = {name.removeprefix(prefix): value for name, value in averaged.items() if name.startswith(prefix)}
        transformer.load_state_dict({**self._buffers, **weights}, assign=True)
        texts = {f"text.{name}": parameter for name, parameter in self.pipeline.text.named_parameters()}
        with torch.no_grad():
            for name in texts.keys() & averaged.keys():
                texts[name].copy_(averaged[name])
        averaged_pipeline = dataclasses.replace(self.pipeline, transformer=transformer)
        save_pipeline(averaged_pipeline, folder, _DTYPES[self.config.save_as])


def _words_in(paths: Iterable[Path]) -> list[str]:
    """All different words of the captions in some shards."""
    captions = [text for path in paths for text in pq.read_table(path, columns=["caption"])["caption"].to_pylist()]
    return sorted({word for caption in captions for word in caption.lower().split()})


def outline(model: ModelConfig) -> tuple[AnyTransformerConfig, CausalVideoVae, Recipe]:
    """Shape of the transformer, VAE and recipe of the model of step 0."""
    if model.start is None:
        return model.shape, read_vae(_vae_folder(model)), model.recipe
    folder = model_folder(model.source)
    _, shape, recipe = read_shape(folder, model.variant)
    return shape, read_vae(folder / VAE, allow_pickle=model.allow_pickle), recipe


def _vae_folder(model: ModelConfig) -> Path:
    return embedded_model() / VAE if model.vae == SHIPPED else Path(str(model.vae))
