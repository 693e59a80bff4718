"""Ctrl-C, as a terminal sends it: SIGINT to every process of the job's group, at several moments of its life."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from framegrove.digits.clips import digits_clips
from framegrove.models.pretrained import VAE, embedded_model
from framegrove.models.vae_files import load_vae
from framegrove.training.encode import vae_digest, write_clips
from jobs.demo import CLIPS
from tests.processes import TAKING_INTERRUPTS, marked

ROOT = Path(__file__).resolve().parents[2]
PROMPT = ("--prompt", "a red 3 moves left and right")
MARK = "FRAMEGROVE_INTERRUPTED"  # in the environment of the job, and so of everything that it starts
LIMIT = 20.0  # seconds from Ctrl-C to the end


@pytest.fixture
def mark() -> Iterator[str]:
    name = uuid.uuid4().hex
    yield name
    for pid in marked(MARK, name):  # after a failure
        os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the demo finds its clips, fewer than it would make."""
    folder = tmp_path_factory.mktemp("demo")
    vae, _ = load_vae(embedded_model() / VAE)
    digest = vae_digest(vae)
    write_clips(digits_clips(vae, 32), digest, folder / f"clips-{digest[:8]}-{CLIPS}")
    return folder


@pytest.mark.parametrize(
    ("command", "moment"),
    [
        (("jobs.demo",), "connecting to Ray"),
        (("jobs.demo",), "  waiting for 1 worker"),  # said by the submitted job
        (("jobs.generate", *PROMPT), "starting generators"),
        (("jobs.generate", *PROMPT, "--policy", "linear", "--budget", "64x"), "searching"),
    ],
    ids=["connecting", "training", "starting", "searching"],
)
def test_an_interrupted_job_ends_soon_and_leaves_nothing(
    command: tuple[str, ...], moment: str, out: Path, mark: str
) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {MARK: mark}
    with subprocess.Popen(
        [*TAKING_INTERRUPTS, sys.executable, "-m", *command, "--out", str(out)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        process_group=0,
    ) as job:
        assert job.stdout is not None
        said = ""
        for line in job.stdout:
            said += line
            if line.startswith(moment):
                break
        time.sleep(2)  # into the middle of it
        began = time.monotonic()
        os.killpg(job.pid, signal.SIGINT)
        rest = job.stdout.read()
        status = job.wait()
        took = time.monotonic() - began
    assert status == 130, said + rest
    assert "Traceback" not in rest
    print(f"{took:.1f} s from Ctrl-C to the end")
    assert took < LIMIT
    assert not marked(MARK, mark)
