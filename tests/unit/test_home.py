"""A working folder that is replaced under a process: what that does to PyTorch, and what is done about it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from framegrove.cluster import home

REPLACED = """
import os, shutil
from framegrove.cluster import home
here = os.getcwd()
shutil.rmtree(here)
os.mkdir(here)
{then}
import torch
assert os.getcwd() == here
print("loaded")
"""


def run(folder: Path, then: str) -> subprocess.CompletedProcess[str]:
    folder.mkdir()
    return subprocess.run(
        [sys.executable, "-c", REPLACED.format(then=then)], cwd=folder, capture_output=True, text=True, check=False
    )


def test_pytorch_loads_where_the_folder_was_replaced(tmp_path: Path) -> None:
    done = run(tmp_path / "a folder", "home.stay()")
    assert (done.returncode, done.stdout) == (0, "loaded\n"), done.stderr


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="the fault is MKL's")
def test_pytorch_does_not_by_itself(tmp_path: Path) -> None:
    """Once this fails, framegrove.cluster.home is no longer needed."""
    done = run(tmp_path / "folder", "")
    assert done.returncode == 2
    assert "oneMKL FATAL ERROR: Cannot load" in done.stderr


def test_a_folder_that_is_still_being_unpacked_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    monkeypatch.chdir(folder)
    shutil.rmtree(folder)
    with pytest.raises(FileNotFoundError):
        home.stay(patience=0.2)

    def unpack() -> None:
        time.sleep(0.2)
        folder.mkdir()

    unpacking = threading.Thread(target=unpack)
    unpacking.start()
    home.stay(patience=10)
    unpacking.join()
    assert Path.cwd() == folder


def test_nothing_happens_where_all_is_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    home.stay()
    assert Path.cwd() == tmp_path
