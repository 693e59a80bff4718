"""The commands of README and its pages as written, in a fresh copy of the checkout, on one shared cluster.

But for fewer clips, and fewer and smaller steps in the configurations of the copy: `make demo` trains as they say.

Not run, but checked for their options (tests/unit/test_readme.py): what installs, what needs public checkpoints,
/shared or /var/lib, what starts clusters on fixed ports, on other machines or on Kubernetes, the evaluation of 64
prompts, which takes an hour, the calibration of a panel of the reader's own (done to a small one in
tests/unit/test_evaluate_job.py), judges, prompts and results of the reader's own (tests/unit/test_judging_job.py,
test_benchmarks_job.py), the user study, for which people are needed (tests/unit/test_user_study.py,
tests/browser/test_user_study.py), studies, which take hours (small ones in test_sweep.py), the searches that a
model or a judge learns from (small ones in test_collect.py, tests/unit/test_improve_job.py and
test_latent_judge.py), the papers' claims, which take minutes each (the counted ones in tests/unit/test_claims.py),
and the suite, which takes days. tests/unit/test_plan.py runs the plan.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from framegrove.cluster.session import Cluster
from tests import readme
from tests.processes import TAKING_INTERRUPTS
from tests.readme import ROOT, Block

ELSEWHERE = ("make ", "source ", "/shared/", "--model pyramid-flow", "--prompts 64", "--calibrate ", "--suite ")
ELSEWHERE += (
    "ray start ",
    "kubectl ",
    "--plan",
    "jobs.collect ",
    "--judges ",
    "--totals ",
    "--study ",
    "jobs.evidence ",
    "jobs.sweep ",
    "/var/lib/",
)
RUN = [block for block in readme.blocks() if not any(mark in block.text for mark in ELSEWHERE)]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a clone would have, with this environment in the place of the one that make installs."""
    copy = tmp_path_factory.mktemp("clone") / "framegrove"
    left = shutil.ignore_patterns(".git", ".venv", "runs", ".*_cache", ".hypothesis", "__pycache__")
    shutil.copytree(ROOT, copy, ignore=left)
    (copy / ".venv").symlink_to(sys.prefix)
    for name in ("digits_demo.yaml", "digits_lora.yaml"):
        config = copy / "jobs" / "configs" / name
        text = re.sub(r"batch: \d+", "batch: 4", re.sub(r"steps: \d+", "steps: 2", config.read_text()))
        config.write_text(text.replace("warmup: 5", "warmup: 1"))
    return copy


def environment(checkout: Path, cluster: Cluster) -> dict[str, str]:
    # Like the installation in a clone, the copy's own packages come first.
    own = {"PYTHONPATH": f"{checkout / 'platform'}:{checkout}", "RAY_ADDRESS": cluster.address}
    return {name: value for name, value in os.environ.items() if name != "RAY_AUTH_MODE"} | own


def run(block: Block, checkout: Path, cluster: Cluster, port: int = 8000) -> str:
    """Run a block in bash, as a user does after activating .venv; returns what it prints."""
    assert cluster.dashboard_url is not None
    text = block.text.replace("http://127.0.0.1:8265", cluster.dashboard_url).replace("8000", str(port))
    text = text.replace("--clips 200", "--clips 20")
    done = subprocess.run(
        ["bash", "-c", f"source .venv/bin/activate\nset -euo pipefail\n{text}"],
        cwd=checkout,
        env=environment(checkout, cluster),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def block_with(text: str) -> Block:
    (found,) = (block for block in RUN if text in block.text)
    return found


def test_a_search_and_its_tree(checkout: Path, cluster: Cluster) -> None:
    run(block_with("--seed 1"), checkout, cluster)
    for name in ("video.mp4", "tree.png", "tree.html", "slide.png", "report.json"):
        assert (checkout / "runs" / "green7" / name).is_file()
    tree = readme.blocks("python")[0]
    done = subprocess.run([sys.executable, "-c", tree.text], cwd=checkout, capture_output=True, text=True, check=True)
    assert " won " in done.stdout


@pytest.mark.long
@pytest.mark.timeout(1200)  # four minutes alone, three times as long beside others
def test_training_by_itself_and_as_a_submitted_job(checkout: Path, cluster: Cluster) -> None:
    run(block_with("jobs.prepare --clips"), checkout, cluster)
    assert (checkout / "runs" / "blue5" / "video.mp4").is_file()
    # Ray keeps what a job has uploaded for ten minutes, and skips the upload of what it still has: without this the
    # checkout could vanish under the job.
    for package in ("platform/framegrove", "jobs"):
        (checkout / package / "only_here.txt").write_text(str(time.time()))
    run(block_with("ray job submit"), checkout, cluster)
    assert (checkout / "runs" / "submitted" / "model" / "framegrove.json").is_file()
    run(block_with("--out runs/adapter"), checkout, cluster)
    assert (checkout / "runs" / "merged" / "framegrove.json").is_file()


def test_the_endpoint_in_two_terminals(checkout: Path, cluster: Cluster) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable if word == "python" else word for word in block_with("jobs.serve").commands[0]]
    with subprocess.Popen(
        [*TAKING_INTERRUPTS, *(str(port) if word == "8000" else word for word in command)],
        cwd=checkout,
        env=environment(checkout, cluster),
        stdout=subprocess.PIPE,
        text=True,
    ) as serving:
        try:
            assert serving.stdout is not None
            assert any("serving on" in line for line in serving.stdout)
            run(block_with("curl"), checkout, cluster, port)
            assert (checkout / "runs" / "video.mp4").stat().st_size > 1000
        finally:
            serving.send_signal(signal.SIGINT)
            serving.communicate()  # it still has something to say
    assert serving.returncode == 130


def test_no_block_is_forgotten() -> None:
    """A block that is new in README is run above, or is one of those that cannot be."""
    marks = ("--seed 1", "jobs.prepare --clips", "ray job submit", "--out runs/adapter", "jobs.serve", "curl")
    tested = [block_with(text) for text in marks]
    assert sorted(block.text for block in RUN) == sorted(block.text for block in tested)
