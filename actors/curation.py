"""Preparation on a cluster, as one stream of Ray Data: decoded on CPUs, compared, described and encoded by actors.

    entries -> decode (tasks) -> [compare (one actor)] -> [describe (actors)] -> encode (actors) -> this process

Decoding goes on while clips are encoded, as far ahead as Ray's object store allows. What passes between the steps are
the outcomes of `framegrove.curation`, pickled, each clip in a block of its own unless it is small.
"""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy
from ray.exceptions import RayError

from actors.captions import CaptionStage, caption_environment
from framegrove.cluster.placement import require
from framegrove.cluster.priority import give_way
from framegrove.cluster.session import Cluster
from framegrove.config.curate import CaptionsConfig
from framegrove.curation.clip import Clip
from framegrove.curation.collecting import Outcome
from framegrove.curation.duplicates import DuplicateStage
from framegrove.curation.entries import Entry
from framegrove.curation.footage import Footage
from framegrove.errors import UserError
from framegrove.training.encode import EncoderFiles

_BLOCK_BYTES = 8 * 2**20  # a larger clip is a block of its own
_MOST_BLOCKS = 2000  # that the entries are distributed over
_DESCRIBED_TOGETHER = 8  # clips
_FILES_A_PROCESS = 200  # that a process decodes before it is replaced
_ADVICE = "Failed to apply UDF transform"  # what Ray Data appends to an error's message
_COLUMN = "pickled"


def room(footage: Footage) -> int:
    """The logical CPUs that a local cluster needs for these stages."""
    config = footage.config
    describing = config.captions.actors if config.captions and config.captions.model else 0
    return (config.decoders or os.cpu_count() or 1) + (config.encoders or 1) + describing + 1


def encoders(footage: Footage) -> int:
    """How many actors encode: as configured, or one a GPU."""
    return footage.config.encoders or max(1, int(ray.cluster_resources().get("GPU", 0)))


def outcomes(
    entries: Iterable[Entry], footage: Footage, kept: dict[int, bytes], files: EncoderFiles, cluster: Cluster
) -> Iterator[Outcome]:
    """What becomes of the entries, as it becomes known; ``kept`` are the hashes of clips that earlier runs have kept.

    Raises NoRoom where the cluster has no room, and UserError where a task or an actor has raised one.
    """
    config, gpu = footage.config, 1 if ray.cluster_resources().get("GPU") else 0
    encoding = {"CPU": 1.0, "GPU": float(gpu)} if gpu else {"CPU": 1.0}
    require(cluster, [*[encoding] * encoders(footage), {"CPU": 1.0}], purpose="encoding clips and decoding beside it")
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.target_max_block_size = _BLOCK_BYTES
    # Whoever compares clips must see them in the list's order, so that the same ones are kept in every run.
    context.execution_options.preserve_order = config.duplicates is not None
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what it would log is raised here as well

    rows = [{_COLUMN: pickle.dumps(entry)} for entry in entries]
    decoders = config.decoders or (os.cpu_count() if cluster.own else None)
    stream: Any = ray.data.from_items(rows, override_num_blocks=min(len(rows), _MOST_BLOCKS))
    given: dict[str, Any] = {"batch_size": 1, "batch_format": "pyarrow", "udf_modifying_row_count": True}
    stream = stream.map_batches(
        _decode,
        fn_kwargs={"footage": footage},
        num_cpus=1,
        concurrency=decoders,
        # What codecs leak goes with the process. And Ray Data would have the encoders decode, too, if both steps were
        # asked for alike.
        max_calls=_FILES_A_PROCESS,
        **given,
    )
    if config.duplicates is not None:
        stage = {"bits": config.duplicates.bits, "kept": kept}
        one = ActorPoolStrategy(size=1, max_tasks_in_flight_per_actor=1)
        stream = stream.map_batches(Comparing, fn_constructor_kwargs=stage, compute=one, num_cpus=0.1, **given)
    if config.captions is not None and config.captions.model is not None:
        stream = stream.map_batches(
            Describing,
            fn_constructor_kwargs={"config": config.captions},
            compute=ActorPoolStrategy(size=config.captions.actors),
            num_cpus=1,
            num_gpus=gpu,
            runtime_env={"env_vars": caption_environment(config.captions)},
            **(given | {"batch_size": _DESCRIBED_TOGETHER}),
        )
    stream = stream.map_batches(
        Encoding,
        fn_constructor_kwargs={"files": files},
        compute=ActorPoolStrategy(size=encoders(footage)),
        num_cpus=1,
        num_gpus=gpu,
        **given,
    )
    try:
        for batch in stream.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1):
            yield from _unpacked(batch)
    except RayError as error:
        cause = _user_error(error)
        if cause is None:
            raise
        raise cause from None


def _decode(batch: pa.Table, footage: Footage) -> Iterator[pa.Table]:
    for entry in _unpacked(batch):
        for outcome in footage.clips(entry):
            yield _packed(outcome)


class Comparing:
    """The one actor that compares clips with all before them.

    Lost with its memory, it must not come back without: the job fails, and the next run goes on.
    """

    def __init__(self, bits: int, kept: dict[int, bytes]) -> None:
        if ray.get_runtime_context().was_current_actor_reconstructed:
            raise RuntimeError("the actor that compares clips has died: run the command again, and it goes on")
        self._stage = DuplicateStage(bits, kept)

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        for outcome in _unpacked(batch):
            yield _packed(self._stage(outcome) if isinstance(outcome, Clip) else outcome)


class Describing:
    """An actor that describes clips, several at a time."""

    def __init__(self, config: CaptionsConfig) -> None:
        give_way()  # an engine takes whatever processors there are
        self._stage = CaptionStage(config)

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        found = list(_unpacked(batch))
        described = iter(self._stage.several([each for each in found if isinstance(each, Clip)]))
        for outcome in found:
            yield _packed(next(described) if isinstance(outcome, Clip) else outcome)


class Encoding:
    """An actor that encodes."""

    def __init__(self, files: EncoderFiles) -> None:
        self._encode = files.load()

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        for outcome in _unpacked(batch):
            yield _packed(self._encode(outcome) if isinstance(outcome, Clip) else outcome)


def _packed(each: object) -> pa.Table:
    return pa.table({_COLUMN: pa.array([pickle.dumps(each, protocol=5)], pa.large_binary())})


def _unpacked(batch: pa.Table) -> Iterator[Any]:
    for row in batch.column(_COLUMN):
        yield pickle.loads(row.as_buffer())


def _user_error(error: BaseException | None) -> UserError | None:
    """The mistake of a user at the bottom of a failure, if that is what it is."""
    while error is not None:
        # What Ray raises is of the cause's class as well, with a traceback for a message.
        if isinstance(error, UserError) and not isinstance(error, RayError):
            return UserError(str(error).partition(_ADVICE)[0].strip())
        error = getattr(error, "cause", None) or error.__cause__
    return None
