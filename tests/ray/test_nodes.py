"""A run on two machines: one of them dies, and another one joins."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from framegrove.config.train import CHECKPOINTS
from framegrove.training.checkpoint import newest
from framegrove.training.resume import HISTORY
from framegrove.training.run import run
from tests.tiny_training import losses_of, make_config, make_world

ROOT = Path(__file__).resolve().parents[2]

# In a process of its own, as the tests beside this one are connected to another cluster.
SCRIPT = """
import os, signal, sys, threading, time
from pathlib import Path

import ray
from ray.cluster_utils import Cluster as Machines

from actors.trainer import fit
from framegrove.cluster.session import Cluster
from framegrove.config.train import TrainConfig

out = Path(sys.argv[2])
config = TrainConfig.model_validate_json(Path(sys.argv[1]).read_text())
machines = Machines(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
second = machines.add_node(num_cpus=1)

def wait_for(told):
    while not (history := out / "history.jsonl").exists() or told not in history.read_text():
        assert training.is_alive()
        time.sleep(0.1)

def train():
    fit(config, out, Cluster(machines.address, None, own=False), workers=(1, 2))

ray.init(address=machines.address, log_to_driver=False)
training = threading.Thread(target=train, daemon=True)  # machines can be added by the main thread alone
training.start()
while not (out / "checkpoints/step-0000020").exists():
    assert training.is_alive()
    time.sleep(0.1)
os.kill(second.all_processes["raylet"][0].process.pid, signal.SIGKILL)
wait_for("workers 2 became 1")
machines.add_node(num_cpus=1)
wait_for("workers 1 became 2")
# The run has long to go, and a driver whose cluster ends under it may be ended by Ray, with a status of its own.
print("done", flush=True)
ray.shutdown()
machines.shutdown()
os._exit(0)
"""


@pytest.mark.long
@pytest.mark.timeout(1200)  # a busy machine starts processes slowly, and each change of workers starts some
def test_a_machine_that_dies_costs_the_steps_since_the_last_checkpoint_and_one_that_joins_is_used(
    tmp_path: Path,
) -> None:
    world, out, file = make_world(tmp_path), tmp_path / "out", tmp_path / "config.json"
    phases = [phase.model_dump(mode="json") for phase in make_config(world).phases]
    phases[2] |= {"steps": 100_000, "decay": 0.0}  # so many that a machine can join while they are made
    config = make_config(world, zero=1, phases=phases, checkpoint_every=20, precision="fp32")
    file.write_text(config.model_dump_json())
    waits = {"RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "60", "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30"}
    env = {**os.environ, **waits, "RAY_health_check_period_ms": "500"}
    env.pop("RAY_ADDRESS", None)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(file), str(out)],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=1000,
        check=False,
    )
    assert "done" in done.stdout.splitlines(), done.stderr[-3000:]
    events = [json.loads(line) for line in (out / HISTORY).read_text().splitlines()]
    workers = [
        event["configuration"]["workers"] if event["event"] == "started" else event["changes"].get("workers")
        for event in events
    ]
    assert workers == [2, [2, 1], [1, 2]]
    reached = newest(out / CHECKPOINTS)
    assert reached is not None
    left = reached.about.step - sum(phase.steps for phase in config.phases[:2]) + 5
    fewer = (*config.phases[:2], config.phases[2].model_copy(update={"steps": left}))
    config = config.model_copy(update={"phases": fewer})
    run(config, out)
    assert [step for step, _ in losses_of(out)][-1] == config.steps
    whole = tmp_path / "whole"
    run(
        config.model_copy(update={"phases": (*config.phases[:2], config.phases[2].model_copy(update={"steps": 92}))}),
        whole,
    )
    for (step, ours), (same, theirs) in zip(losses_of(out), losses_of(whole), strict=False):
        assert step == same
        assert ours == pytest.approx(theirs, rel=1e-3), "any number of workers draws the same samples"
    assert (out / "model" / "framegrove.json").exists()
