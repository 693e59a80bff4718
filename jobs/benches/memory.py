"""The bench of memory: 10,000 branches on real Ray actors, in an object store that holds a hundredth of them.

The actors sample and judge nothing, but what goes through the store is as large as a small model's: a generator returns
latents, frames and decoder states of random bytes, a verifier is handed all frames of a branch. Clients, dropping and
the bound on decoder states are those of any search; past the store's size, Ray moves what is kept to the disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from framegrove.config.model import ModelSource
from framegrove.config.search import SearchConfig
from framegrove.media.pictures import reduced
from framegrove.search.conductor import Conductor
from framegrove.search.policies import make_policy
from framegrove.search.prices import Prices
from framegrove.search.protocols import PanelMember
from framegrove.search.result import SearchResult
from framegrove.types import Cost, SampleWork, Scored, ScoreWork

if TYPE_CHECKING:
    import torch

    from actors.generator import Context
    from framegrove.cluster.supervise import ActorGroup
    from framegrove.evaluation.benches import Finding

POLICY = "tof"  # of all policies the one that keeps most
STORE = 2**28  # bytes of Ray's object store
WORKERS = 2  # generators, and as many verifiers
MARGIN = 2**30  # bytes by which all processes together may grow in a search, besides the store
_LATENT = (16, 48, 80)  # float32: 0.25 MB; what is under 0.1 MB never reaches the store
_FRAMES = (8, 192, 320, 3)  # uint8: 1.5 MB
_STATE = (2**18,)  # float32: 1 MB
_EVERY = 1.0  # seconds between two readings of the memory in use


def memory(device: torch.device, repeats: int) -> list[Finding]:
    """How much memory a search of 10,000 branches takes beside all that it makes; the arguments are not heeded."""
    import ray

    from framegrove.evaluation.benches import Finding

    ray.init(
        num_cpus=2 * WORKERS,
        object_store_memory=STORE,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    try:
        made, branches, grown = asyncio.run(_measured())
    finally:
        ray.shutdown()
    what = f"memory of a {POLICY} search of {branches:,} branches, beside all that it makes"
    aim = f"{(STORE + MARGIN) / 1e9:.1f} GB: the store of {STORE / 1e9:.2f} GB, and {MARGIN / 1e9:.1f} GB"
    return [Finding(what, grown / 1e9, "GB", made / 1e9, aim=aim, met=grown <= STORE + MARGIN)]


async def _measured() -> tuple[int, int, int]:
    """Bytes that the search makes, its branches, and bytes by which all processes together grew at most."""
    generators, verifiers = _group(_Generator), _group(_Verifier)
    await asyncio.gather(*(actor.ready.remote() for group in (generators, verifiers) for actor in group.actors))
    before = _in_use()
    with _watched() as peak:
        result = await _searched(generators, verifiers)
    made = sum(await asyncio.gather(*(actor.made.remote() for actor in generators.actors)))
    return made, len(result.nodes), peak[0] - before


def _group(worker: type[Any]) -> ActorGroup:
    import ray

    from framegrove.cluster.supervise import ActorGroup

    actor: Any = ray.remote(num_cpus=0)(worker)
    return ActorGroup(lambda _: actor.remote(), WORKERS)


async def _searched(generators: ActorGroup, verifiers: ActorGroup) -> SearchResult:
    from actors.clients import KeptStates, ObjectStore, RemoteGenerator, RemoteVerifier
    from actors.generator import Context
    from actors.model_files import ModelFiles
    from framegrove.evaluation.bench_conductor import BRANCHES, STAGES, UNITS, budget_for, simulated_flops
    from framegrove.flow.cost import SamplingCosts

    config = SearchConfig(policy=POLICY, budget=budget_for(POLICY, BRANCHES))
    policy, _ = make_policy(config, UNITS, STAGES, Prices(simulated_flops))
    context = Context("", "", 0, *_FRAMES[1:3], UNITS)
    model = ModelFiles.read(ModelSource())  # its costs are looked up, and nothing else of it
    costs = SamplingCosts(model.transformer, model.recipe, _LATENT[1:], 16, 16)
    states = KeptStates(STORE // 2)
    clients = {f"generator {n}": RemoteGenerator(generators, n, context, costs, states, config) for n in range(WORKERS)}
    judges = {f"verifier {n}": RemoteVerifier(verifiers, n, "", config) for n in range(WORKERS)}

    panel = {"verifier": PanelMember(judges, at_a_time=1)}
    return await Conductor(policy, clients, panel, config, release=ObjectStore().drop).run()


class _Generator:
    """Returns what is as large as what a generator samples (actors.generator.Generator)."""

    def __init__(self) -> None:
        self._random = np.random.default_rng(0)
        self._made = 0

    def ready(self) -> bool:
        return True

    def made(self) -> int:
        """Bytes returned so far."""
        return self._made

    def sample(self, number: int, work: SampleWork, context: Context, history: int, *inputs: Any) -> tuple[Any, ...]:
        from actors.generator import Made

        now = time.time()
        state_bytes = 4 * _STATE[0]
        parts: list[Any] = []
        for _ in work.paths:
            frames = np.frombuffer(self._random.bytes(int(np.prod(_FRAMES))), np.uint8).reshape(_FRAMES)
            parts += [self._floats(*_LATENT), frames, self._floats(*_STATE), reduced(frames, context.small)]
        self._made += sum(part.nbytes for part in parts)
        return (Made(1, now, time.time(), state_bytes=state_bytes), *parts)

    def cancel(self, number: int) -> None:
        """Too late, always."""

    def _floats(self, *shape: int) -> np.ndarray:
        return self._random.random(shape, dtype=np.float32)


class _Verifier:
    """Reads all frames of a branch, and scores it at random by its path (actors.verifier.Verifier)."""

    def ready(self) -> bool:
        return True

    def score(self, work: ScoreWork, prompt: str, *clip: np.ndarray) -> Scored:
        assert all(frames.shape == _FRAMES for frames in clip)
        digest = hashlib.blake2b(f"{work.path} {work.assessment}".encode()).digest()
        return Scored(work, (("right", digest[0] / 255),), Cost(0, 1))


@contextlib.contextmanager
def _watched() -> Iterator[list[int]]:
    """The most memory in use so far, in bytes, as long as the block lasts."""
    peak, over = [0], threading.Event()

    def look() -> None:
        while not over.wait(_EVERY):
            peak[0] = max(peak[0], _in_use())

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        over.set()
        watcher.join()


def _in_use() -> int:
    """Bytes of memory of this process and all that it has started; what they share is counted once (Linux only)."""
    import psutil

    own = psutil.Process()
    total = 0
    for process in (own, *own.children(recursive=True)):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            smaps = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
            total += 1024 * int(smaps.partition("\nPss:")[2].split()[0])
    return total
