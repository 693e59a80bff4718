"""What all tests share: a quiet offline environment, one Ray cluster for those that need it, and --golden."""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

# Before anything imports torch, transformers or ray: tests are small, and threads that wait for each other crawl where
# other work shares the cores; and there may be no network.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # not 2: until a run's end is seen
if shutil.which("nvidia-smi") is None:
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from framegrove.cluster.session import Cluster

# Every run draws the same examples: a failure seen once is seen again. More of them: --hypothesis-profile thorough.
settings.register_profile("framegrove", deadline=None, derandomize=True, max_examples=50)
settings.register_profile("thorough", settings.get_profile("framegrove"), max_examples=250)
settings.load_profile("framegrove")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden",
        type=Path,
        default=Path(__file__).parent / "parity" / "golden",
        help="folder of recorded reference tensors for tests/parity (default: the copy beside them)",
    )


# The files that take longest. They run first: one that began last would leave the other processes without work.
SLOW_FILES = (
    *("dividing", "evaluate_job", "tuning", "training", "prepare_job", "serving_lives", "serving_properties"),
    *("state_pairs", "two_workers", "diffusion", "engine"),
    *("readme", "train", "search", "serve", "serve_driver", "prepare", "nodes", "interrupt", "upgrade", "sweep"),
    *("improve", "endpoint_server", "cluster"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of tests/ray carry the ray marker and run last, so that quick failures show first."""
    folder = Path(__file__).parent / "ray"
    for item in items:
        if folder in item.path.parents:
            item.add_marker(pytest.mark.ray)
    ranks = {f"test_{name}": rank for rank, name in enumerate(SLOW_FILES)}
    items.sort(key=lambda item: (item.get_closest_marker("ray") is not None, ranks.get(item.path.stem, len(ranks))))


@pytest.fixture(scope="module", autouse=True)
def _settled() -> None:
    """Half a million objects of imported libraries, which Python's collector need not look through again and again.

    DeepSpeed alone asks it to several times an engine, for a third of a second each.
    """
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # or libraries complain of what is left at the end


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A local Ray cluster of 8 logical CPUs, started once for all tests that ask for it."""
    from framegrove.cluster.session import connect

    given = os.environ.pop("RAY_ADDRESS", None)
    try:
        with connect(num_cpus=8) as own:
            yield own
    finally:
        if given is not None:
            os.environ["RAY_ADDRESS"] = given


@pytest.fixture(scope="session")
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A process group of one, for all tests of a process: DeepSpeed keeps the first that it sees."""
    import torch.distributed as dist

    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}.items():
            patch.setenv(name, value)
        store = tmp_path_factory.mktemp("group") / "store"
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
        yield
        dist.destroy_process_group()
