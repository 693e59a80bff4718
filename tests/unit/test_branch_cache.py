"""Branches on the disk: whole or not there, from several processes at a time, and found by what decides them."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from framegrove.errors import UserError
from framegrove.evaluation.branch_cache import FILE, BranchCache, Ground
from framegrove.search.tree import Latent

FACTS = {"model": "m", "prompt": "a red 3 moves up and down", "seed": 7, "size": [64, 64]}

# Fills a cache with units whose every number is that of the branch, and says so line by line.
_FILL = """
import sys
from pathlib import Path
import numpy as np
import torch
from framegrove.evaluation.branch_cache import BranchCache
from framegrove.search.tree import Latent
from tests.unit.test_branch_cache import FACTS
first, last, step = map(int, sys.argv[2:5])
with BranchCache(Path(sys.argv[1])) as cache:
    ground, judge = cache.ground(FACTS), cache.judge({"kind": "test"})
    for number in range(first, last, step):
        pair = {Latent((number, child), 2): (torch.full((16, 1, 8, 8), float(number)),
                np.full((8, 64, 64, 3), number % 256, np.uint8)) for child in range(2)}
        ground.keep(pair)
        for branch in pair:
            ground.keep_verdict(branch, judge, "motion", {"scores": [["right", number]]})
        print(number, flush=True)
"""


def filling(folder: Path, first: int, last: int, step: int = 1) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _FILL, str(folder), str(first), str(last), str(step)]
    root = Path(__file__).resolve().parents[2]
    paths = os.pathsep.join([str(root), str(root / "platform")])
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": paths}, stdout=subprocess.PIPE, text=True)


def check(ground: Ground, number: int) -> None:
    """Both branches of a number are there, and whole."""
    for child in range(2):
        branch = Latent((number, child), 2)
        assert ground.has(branch)
        assert torch.equal(ground.latent(branch), torch.full((16, 1, 8, 8), float(number)))
        assert np.array_equal(ground.frames(branch), np.full((8, 64, 64, 3), number % 256, np.uint8))


def test_what_is_kept_is_found_to_the_bit(tmp_path: Path) -> None:
    latent = torch.randn(16, 1, 8, 8).transpose(2, 3)
    frames = np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), np.uint8)
    branch = Latent((2, 0, 11), 2)
    with BranchCache(tmp_path) as cache:
        ground = cache.ground(FACTS)
        assert not ground.has(branch)
        assert ground.note is None
        ground.keep({branch: (latent, frames)})
        ground.note = {"tokens": 8}
        assert cache.added["units"] == 1
    with BranchCache(tmp_path) as cache:
        ground = cache.ground(dict(reversed(FACTS.items())))
        assert ground.has(branch)
        assert torch.equal(ground.latent(branch), latent)
        assert np.array_equal(ground.frames(branch), frames)
        assert ground.note == {"tokens": 8}
        assert not ground.has(Latent((2, 0, 11), 1))
        with pytest.raises(KeyError, match=r"2-0\.stage2 is not in the cache"):
            ground.latent(Latent((2, 0), 2))


def test_another_judge_finds_the_branch_and_no_verdict(tmp_path: Path) -> None:
    branch = Latent((0,), 2)
    with BranchCache(tmp_path) as cache:
        ground, judge = cache.ground(FACTS), cache.judge({"questions": "old"})
        ground.keep({branch: (torch.zeros(1), np.zeros((1, 8, 8, 3), np.uint8))})
        ground.keep_verdict(branch, judge, "image", {"scores": [["alignment", 0.9]]})
    with BranchCache(tmp_path) as cache:
        ground, other = cache.ground(FACTS), cache.judge({"questions": "new"})
        assert ground.has(branch)
        assert ground.verdict(branch, other, "image") is None
        assert ground.verdict(branch, judge, "motion") is None
        assert ground.verdict(branch, cache.judge({"questions": "old"}), "image") == {"scores": [["alignment", 0.9]]}


@pytest.mark.parametrize("change", [{"model": "n"}, {"seed": 8}, {"size": [128, 64]}, {"prompt": "a red 4"}])
def test_what_decides_a_branch_is_its_ground(change: dict[str, object], tmp_path: Path) -> None:
    branch = Latent((0,), 2)
    with BranchCache(tmp_path) as cache:
        cache.ground(FACTS).keep({branch: (torch.zeros(1), np.zeros((1, 8, 8, 3), np.uint8))})
        assert cache.ground(FACTS).has(branch)
        assert not cache.ground({**FACTS, **change}).has(branch)


def test_what_was_computed_first_stays(tmp_path: Path) -> None:
    branch = Latent((0,), 2)
    with BranchCache(tmp_path) as one, BranchCache(tmp_path) as two:
        for cache, value in ((one, 1.0), (two, 2.0)):
            cache.ground(FACTS).keep({branch: (torch.full((3,), value), np.zeros((1, 8, 8, 3), np.uint8))})
        assert one.ground(FACTS).latent(branch).tolist() == two.ground(FACTS).latent(branch).tolist() == [1.0] * 3


def test_a_killed_process_leaves_whole_entries(tmp_path: Path) -> None:
    filler = filling(tmp_path, 0, 100_000)
    assert filler.stdout is not None
    for _ in range(5):
        assert filler.stdout.readline()
    time.sleep(0.05)
    os.kill(filler.pid, signal.SIGKILL)
    said = [*range(5), *(int(line) for line in filler.stdout.read().split())]
    filler.wait()
    filler.stdout.close()
    with BranchCache(tmp_path) as cache:
        ground, judge = cache.ground(FACTS), cache.judge({"kind": "test"})
        for number in said:
            check(ground, number)
            assert ground.verdict(Latent((number, 1), 2), judge, "motion") == {"scores": [["right", number]]}
        unsaid = said[-1] + 1  # perhaps there, but never half of the pair
        assert ground.has(Latent((unsaid, 0), 2)) == ground.has(Latent((unsaid, 1), 2))
    assert sqlite3.connect(tmp_path / FILE).execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_two_processes_fill_one_cache(tmp_path: Path) -> None:
    """One goes through the even numbers and both through the rest of them: nothing is lost, nothing locks."""
    fillers = [filling(tmp_path, 0, 60, 2), filling(tmp_path, 30, 90)]
    for filler in fillers:
        output, _ = filler.communicate(timeout=120)
        assert filler.returncode == 0, output
    with BranchCache(tmp_path) as cache:
        for number in (*range(0, 60, 2), *range(30, 90)):
            check(cache.ground(FACTS), number)


def test_what_cannot_be_a_cache_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("mine, and long enough to be looked at as a database of some kind or another" * 20)
    with pytest.raises(UserError, match="is no cache of branches"):
        BranchCache(tmp_path)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="no cache of branches can be made at"):
        BranchCache(tmp_path / "file")
    BranchCache(tmp_path / "newer").close()
    with sqlite3.connect(tmp_path / "newer" / FILE) as database:
        database.execute("PRAGMA user_version = 99")
    with pytest.raises(UserError, match="a cache of version 99"):
        BranchCache(tmp_path / "newer")
