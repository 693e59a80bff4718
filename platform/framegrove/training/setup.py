"""What a run is made of, checked before it starts: its data, and its model at step 0."""

from __future__ import annotations

import copy
import dataclasses
import tempfile
from collections.abc import Iterable, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from torch import Tensor

from framegrove.config.model import AnyTransformerConfig, Recipe
from framegrove.config.train import CHECKPOINTS, MODEL, SHIPPED, ModelConfig, TrainConfig
from framegrove.data.ingest import Catalog, DataError, open_catalog
from framegrove.data.reading import ClipReader
from framegrove.data.schema import StoredText
from framegrove.errors import UserError
from framegrove.files import patiently
from framegrove.flow.schedule import PyramidSchedule
from framegrove.models import lora
from framegrove.models.pretrained import (
    VAE,
    Pipeline,
    copy_text,
    embedded_model,
    load_pipeline,
    load_source,
    read_outline,
    save_pipeline,
    transformer_at,
)
from framegrove.models.sources import digest_of, find_model
from framegrove.models.text import TextEncoder
from framegrove.models.transformers import Take, build_transformer, drop, fresh_transformer, keep
from framegrove.models.vae import CausalVideoVae
from framegrove.models.vae_files import load_vae, read_vae
from framegrove.training import checkpoint, heldout, samples, trackers, tuning
from framegrove.training.curriculum import PhaseClips, Position, StepPlan, check_sizes, plan_step
from framegrove.training.encode import vae_digest
from framegrove.training.feed import Feed
from framegrove.training.heldout import HeldOut
from framegrove.training.loop import Engine
from framegrove.training.plan import check_heads, check_workers
from framegrove.training.resume import at_hand, check
from framegrove.training.step import Copied, Trainable, WithoutAdapter
from framegrove.training.stored_text import stored_text

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclasses.dataclass(frozen=True, eq=False)
class Setup:
    """A checked run: the catalog of its clips, those of each phase, and what its model is made of.

    Making one reads the sizes of all clips. It is sent to the workers as it is, so that they read nothing but the clips
    of their own share.
    """

    config: TrainConfig
    recipe: Recipe
    words: tuple[str, ...]  # what a new text encoder reads; empty where an existing model is continued
    vae: str  # digest of the VAE that encodes the latents
    catalog: Catalog | None = None  # absent where only the model is wanted
    clips: tuple[PhaseClips, ...] = ()  # of each phase
    factor: int = 0  # pixels for one latent pixel, on each side
    heldout: HeldOut | None = None  # absent where the data has no such split
    no_caption: StoredText | None = None  # embeddings of the empty caption, where those of all clips are used

    @classmethod
    def of(cls, config: TrainConfig, out: Path | None = None) -> Setup:
        """Open the data, and check that it fits the model and the run in ``out``, which this continues.

        Raises UserError before anything is written.

        Of the shards only the columns of sizes are read, and for a new text encoder the captions. Of the model only the
        VAE is read: whoever starts a run on a cluster need not hold it all.
        """
        begun = checkpoint.newest(out / CHECKPOINTS) if out else None
        if out and begun:
            check(out, begun.about.config, config, begun.about.step)
            config = at_hand(config, out)
        catalog = open_catalog([given.path for given in config.data_sets])
        shape, vae, recipe = outline(config.model)
        _check_shape(config.model, shape)
        tuning.check(config.model.tune, shape)
        trackers.check(config.tracking)
        samples.scorer_of(config.samples)
        check_sizes(config, catalog, vae.config.spatial_factor, shape.patch_size, recipe.pyramid.stages)
        check_heads(config.sequence_parallel, shape)
        digest = vae_digest(vae)
        if begun and begun.about.vae != digest:
            raise UserError(f"the run in {out} is of latents of another VAE than the model's: give another --out")
        shard = catalog.shards[0]  # all are of one VAE
        if shard.vae != digest:
            raise DataError(
                f"{shard.path} was encoded by another VAE than the model's: prepare the clips anew with "
                "python -m jobs.prepare"
            )
        _check_pairs(config, catalog)
        weights = [given.weight for given in config.data_sets]
        name = ", ".join(given.path for given in config.data_sets)
        clips = tuple(PhaseClips.of(phase, catalog, weights, name) for phase in config.phases)
        if begun:  # a vocabulary is that of the first data
            words = begun.about.words
        else:
            paths = [shard.path for shard in catalog.shards]
            words = () if config.model.start is not None else (*_words_in(paths), *config.model.phrases)
        factor, held = vae.config.spatial_factor, HeldOut.of(config)
        no_caption = stored_text(config, [catalog, *([held.catalog] if held else [])])
        return cls(config, recipe, words, digest, catalog, clips, factor, held, no_caption)

    @cached_property
    def pipeline(self) -> Pipeline:
        """The model of step 0: one that is continued, or a new one."""
        return self._load(keep)

    def _load(self, take: Take) -> Pipeline:
        model = self.config.model
        if model.start is None:
            vae, norm = load_vae(_vae_folder(model))
            text = TextEncoder.fresh(model.text, list(self.words))
            return Pipeline(fresh_transformer(model.shape, take=take), vae, norm, text, model.recipe)
        text_dtype = torch.bfloat16 if self.config.precision == "bf16" else None
        if not model.fresh:
            return load_source(model.source, text_dtype, take, with_text=self.encodes)
        started = load_source(model.source, text_dtype, drop, with_text=self.encodes)
        return dataclasses.replace(started, transformer=fresh_transformer(started.transformer.config, take=take))

    @property
    def encodes(self) -> bool:
        """Whether prompts are encoded, so that the text encoders have to be there."""
        return (self.catalog is not None and self.no_caption is None) or not self._copies_text

    @property
    def _copies_text(self) -> bool:
        """Whether the text encoders in the model folder are those of the model that is continued."""
        return self.config.model.start is not None and not self.config.model.trains_text

    @cached_property
    def _buffers(self) -> dict[str, Tensor]:
        """The transformer's tables as they were loaded; an engine rounds its own."""
        transformer = self.pipeline.transformer
        trained = dict(transformer.named_parameters())
        return {name: value.clone() for name, value in transformer.state_dict().items() if name not in trained}

    @cached_property
    def _base(self) -> dict[str, Any]:
        """How an adapter names the model that is continued."""
        return lora.reference(self.config.model.source)

    @property
    def schedule(self) -> PyramidSchedule:
        """The pyramid of the model."""
        return PyramidSchedule.of(self.recipe.pyramid)

    def trainable(self, take: Take = keep) -> Trainable:
        """The part of the model that is trained, for the one engine of this process.

        The transformer is the pipeline's own, not a copy: the engine trains it in place, and may cut it to pieces.
        ``take`` is given its pieces while they are loaded, and may do that before all of them are there.
        """
        if "pipeline" not in vars(self):  # the property would load the whole
            vars(self)["pipeline"] = self._load(take)
        text, tune = self.pipeline.text, self.config.model.tune
        train_text = self.config.model.trains_text
        _ = self._buffers  # copied now, before an engine can round them
        if self._copies_text:
            _ = self._text  # found now, as the base of an adapter below
        transformer = self.pipeline.transformer
        if tune.lora is not None:
            _ = self._base  # read now: at the end of a long run the model may have been moved
        module = Trainable(transformer, copy.deepcopy(text) if train_text else text, train_text)
        if self.compares:
            vars(module)["reference"] = WithoutAdapter(transformer, text) if tune.lora is not None else self._copied()
        return tuning.restrict(module, tune, self.config.seed).train()

    def _copied(self) -> Copied:
        """The model of step 0, read a second time: an engine may have cut the first one to pieces by now."""
        source = self.config.model.source
        transformer = transformer_at(find_model(source), allow_pickle=source.allow_pickle).requires_grad_(False).eval()
        return Copied(transformer, copy.deepcopy(self.pipeline.text).requires_grad_(False))

    @property
    def compares(self) -> bool:
        """Whether pairs are learned from, which takes the model of step 0 for as long as the run lasts."""
        return any(phase.objective.preference is not None for phase in self.config.phases)

    def plan(self, step: int) -> StepPlan:
        """What all workers together are trained on in a step of the run."""
        assert self.catalog is not None
        position = Position.of(self.config, step)
        return self._plan(position, self.clips[position.phase_index], self.catalog, self.config.seed)

    def heldout_plan(self, phase_index: int) -> StepPlan:
        """What the held-out loss of a phase is measured on."""
        assert self.heldout is not None
        clips = self.heldout.clips[phase_index]
        assert clips is not None
        return self._plan(heldout.position(self.config, phase_index), clips, self.heldout.catalog, heldout.SEED)

    def _plan(self, position: Position, clips: PhaseClips, catalog: Catalog, seed: int) -> StepPlan:
        return plan_step(
            position,
            clips,
            catalog,
            self.schedule,
            seed,
            factor=self.factor,
            patch=self.pipeline.transformer.config.patch_size,
            text_tokens=self.pipeline.text.max_tokens,
            empty_tokens=None if self.no_caption is None else len(self.no_caption.tokens),
        )

    def feed(self, rank: int = 0, world: int = 1) -> Feed:
        """The samples of one of the workers."""
        config, catalog = self.config, self.catalog
        assert catalog is not None
        reader = self._reader(catalog, int(config.cache_gib * 2**30))
        given = self.schedule, self.pipeline.latent_norm, config.seed, config.steps, rank, world, self.no_caption
        return Feed(self.plan, reader, catalog.name, *given)

    def heldout_feed(self, rank: int = 0, world: int = 1) -> Feed | None:
        """The held-out samples of one of the workers, by the index of the phase; each is read when it is asked for."""
        if self.heldout is None:
            return None
        catalog = self.heldout.catalog
        reader = self._reader(catalog, 0)  # all that is wanted of it is asked for at once
        given = self.schedule, self.pipeline.latent_norm, heldout.SEED, 0, rank, world, self.no_caption
        return Feed(self.heldout_plan, reader, catalog.name, *given)

    def _reader(self, catalog: Catalog, cache: int) -> ClipReader:
        return ClipReader(catalog, cache, with_text=self.no_caption is not None)

    def check_workers(self, workers: int) -> None:
        """Raise UserError where the workers form no sequence groups, or are more than samples in a batch, or passes."""
        size = self.config.sequence_parallel
        check_workers(size, workers)
        workers //= size
        if self.heldout is not None and self.config.validate_on < workers:
            raise UserError(
                f"validate_on {self.config.validate_on} samples cannot be shared by {workers} workers: raise it"
            )
        for phase in self.config.phases:
            if phase.batch is not None and phase.batch < workers:
                raise UserError(
                    f"phase {phase.name}: a batch of {phase.batch} samples cannot be shared by {workers} workers: use "
                    "fewer of them"
                )
            passes = phase.batch_tokens and phase.batch_tokens // (phase.pack_tokens or 1)
            if passes is not None and passes < workers:
                raise UserError(
                    f"phase {phase.name}: a batch of {passes} passes (batch_tokens over pack_tokens) cannot be shared "
                    f"by {workers} workers: use fewer of them, or lower pack_tokens"
                )

    def save_model(self, engine: Engine, out: Path) -> None:
        """Write the averaged weights as the model folder of a run. Every worker calls it, worker 0 writes.

        The folder of a run that trains an adapter has the adapter alone, and says which model it is for.
        """
        averaged = engine.averaged_weights()
        if engine.rank == 0:
            patiently("writing the model", partial(self.write_model, averaged, out / MODEL))

    def write_model(self, averaged: Mapping[str, Tensor], folder: Path) -> None:
        """Write a model folder with these weights, by name, in place of the trained ones.

        The folder of a run that trains an adapter has the adapter alone, and says which model it is for.
        """
        tune = self.config.model.tune
        if tune.lora is not None:
            weights = {name.removeprefix(tuning.TRANSFORMER): value for name, value in averaged.items()}
            names = list(dict.fromkeys(name.partition(".lora_")[0] for name in weights))
            lora.save_adapter(folder, tune.lora, names, weights, self._base)
        else:
            save_text = partial(self._copy_text, folder) if self._copies_text else None
            save_pipeline(self.averaged_pipeline(averaged), folder, _DTYPES[self.config.save_as], save_text)

    def averaged_pipeline(self, averaged: Mapping[str, Tensor]) -> Pipeline:
        """The model with these weights, by name, in place of the trained ones; its text encoder and VAE are shared."""
        model = self.config.model
        if model.tune.lora is not None:  # what reads an adapter merges it with the model that it is for
            with tempfile.TemporaryDirectory() as folder:
                self.write_model(averaged, Path(folder) / MODEL)
                return load_pipeline(Path(folder) / MODEL, allow_pickle=model.allow_pickle)
        with torch.device("meta"):  # it takes the averaged weights over, and needs none of its own
            transformer = build_transformer(self.pipeline.transformer.config)
        prefix = tuning.TRANSFORMER
        weights = {name.removeprefix(prefix): value for name, value in averaged.items() if name.startswith(prefix)}
        if model.tune.parts:  # an engine may have cut the frozen weights to pieces, so they are read again
            source = model.source
            start = transformer_at(find_model(source), allow_pickle=source.allow_pickle)
            weights = {**start.state_dict(), **weights}
        transformer.load_state_dict({**weights, **self._buffers}, assign=True)
        texts = {f"text.{name}": parameter for name, parameter in self.pipeline.text.named_parameters()}
        with torch.no_grad():
            for name in texts.keys() & averaged.keys():
                texts[name].copy_(averaged[name])
        return dataclasses.replace(self.pipeline, transformer=transformer)

    def _copy_text(self, old: Path, folder: Path) -> None:
        """Copy the text encoders that the run began with, or those in its ``old`` folder where they are gone."""
        model = self.config.model
        copy_text(self._text if self._text.is_dir() else old, folder, allow_pickle=model.allow_pickle)

    @cached_property
    def _text(self) -> Path:
        """Where the text encoders lie that the model begins with."""
        return find_model(self.config.model.source).text


def _check_pairs(config: TrainConfig, catalog: Catalog) -> None:
    """Raise UserError where there are pairs and nobody says how to learn from them, or they are another model's."""
    shards = [catalog.shards[number] for number in sorted(set(catalog.shard_N[catalog.pair_N].tolist()))]
    compares = [phase for phase in config.phases if phase.objective.preference is not None]
    if not shards:
        if compares:
            raise DataError(
                f"phase {compares[0].name} learns from pairs (objective.preference), and there are none in "
                f"{', '.join(given.path for given in config.data_sets)}: collect some with python -m jobs.collect"
            )
        return
    if len(compares) < len(config.phases):
        phase = next(phase for phase in config.phases if phase not in compares)
        raise UserError(
            f"{shards[0].path} holds pairs, and phase {phase.name} does not say how to learn from them: set its "
            "objective.preference, or leave the folder out"
        )
    if config.model.start is None or config.model.fresh:
        raise UserError("pairs are learned from by the model that sampled them: name it as model.start")
    digest = digest_of(config.model.source)
    for shard in shards:
        if shard.made_by != digest:
            raise DataError(
                f"the pairs in {shard.path} were sampled by another model than model.start: collect them anew with "
                "python -m jobs.collect, or start from that model"
            )


def _words_in(paths: Iterable[Path]) -> list[str]:
    """All different words of the captions in some shards."""
    captions = [text for path in paths for text in pq.read_table(path, columns=["caption"])["caption"].to_pylist()]
    return sorted({word for caption in captions for word in caption.lower().split()})


def outline(model: ModelConfig) -> tuple[AnyTransformerConfig, CausalVideoVae, Recipe]:
    """Shape of the transformer, VAE and recipe of the model of step 0."""
    if model.start is None:
        return model.shape, read_vae(_vae_folder(model)), model.recipe
    place = find_model(model.source)
    _, shape, recipe = read_outline(place)
    return shape, read_vae(place.vae, allow_pickle=model.allow_pickle), recipe


def _vae_folder(model: ModelConfig) -> Path:
    return embedded_model() / VAE if model.vae == SHIPPED else Path(str(model.vae))


def _check_shape(model: ModelConfig, there: AnyTransformerConfig) -> None:
    """Raise UserError where a shape is asked for beside a model to continue from, and it is not that model's."""
    key = "flux" if model.flux is not None else "transformer"
    for name, usual in type(model.shape)():
        wanted, found = getattr(model.shape, name), getattr(there, name, None)
        if wanted not in (usual, found):  # a configuration that was written down has all the usual values in it
            raise UserError(
                f"model.{key}.{name} is {wanted}, and {found} in the model that is continued: leave it out, it "
                "is of new models alone"
            )
