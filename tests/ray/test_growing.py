"""cluster.yaml's groups at zero: what a job asks for brings up a machine of its role, and no other.

On Ray's own autoscaler, with its provider of pretended machines: raylets on this machine that say they have GPUs.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FakeMultiNodeProvider

ROOT = Path(__file__).resolve().parents[2]
HEAD = "ray.head.default"  # the provider of pretended machines knows the head by no other name
COMMANDS = ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands")
COMMANDS += ("head_start_ray_commands", "worker_start_ray_commands")

# `ray start --head`, without what this test has no use for.
START = """
import json, sys, time
from ray._private.node import Node
from ray._private.parameter import RayParams

port, resources, recipe = int(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3]
given = RayParams(gcs_server_port=port, num_cpus=0, resources=resources, autoscaling_config=recipe,
                  include_dashboard=False, dashboard_port=None, dashboard_agent_listen_port=None)
Node(given, head=True, shutdown_at_exit=False, spawn_reaper=False)
print("up", flush=True)
time.sleep(3600)
"""

# Room for a training run of eight workers, as actors/trainer.py asks for it; then for one more generator, which nobody
# wants any more, and for one that is wanted. What there is after each.
JOB = """
import asyncio, json
from framegrove.cluster.placement import Role, bundle, grows, has_gpus, has_room, machines, offered, require
from framegrove.cluster.session import connect
from framegrove.cluster.shares import gpu_shares

def came():
    return [[role for role in Role if role in machine] for machine in machines() if machine.get("GPU")]

with connect() as cluster:
    shares = gpu_shares(offered(), 4, grows=grows())
    before = {"came": came(), "grows": grows(), "gpus": has_gpus(), "generator": shares.generator}
    require(cluster, [*[bundle(Role.TRAIN, num_gpus=1)] * 8, {"CPU": 1.0}], purpose="a test", wait_seconds=300)
    after, generator = came(), [bundle(Role.GENERATE, num_gpus=1)]
    room = [asyncio.run(has_room(generator, 300, lambda: wanted)) for wanted in (False, True)]
    print(json.dumps({"before": before, "after": after, "room": room, "grown": came()}))
"""


def recipe_of(ours: dict[str, Any], gcs: str) -> dict[str, Any]:
    """cluster.yaml for pretended machines: its groups and limits, nothing of AWS, and one machine a group at most."""
    machines = {
        HEAD if name == "head" else name: {
            "resources": group["resources"],
            "node_config": {},
            "min_workers": 0,
            "max_workers": 0 if name == "head" else 1,
        }
        for name, group in ours["available_node_types"].items()
    }
    provider = f"{FakeMultiNodeProvider.__module__}.{FakeMultiNodeProvider.__name__}"
    return {
        **ours,
        "provider": {
            "type": "external",
            "module": provider,
            "launch_multiple": True,
            "head_node_id": FAKE_HEAD_NODE_ID,
            "gcs_address": gcs,
        },
        "head_node_type": HEAD,
        "available_node_types": machines,
        "auth": {},
        "docker": {},
        "file_mounts": {},
        **{name: [] for name in COMMANDS},
    }


def end_session(leader: int) -> None:
    """Kill whatever belongs to the session of a process: all that the head has started."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(ProcessLookupError):
                if os.getsid(int(entry.name)) == leader:
                    os.kill(int(entry.name), signal.SIGKILL)


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """A cluster of the head alone, with cluster.yaml's groups."""
    ours = yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8"))
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    address = f"{ray.util.get_node_ip_address()}:{port}"
    recipe = tmp_path / "cluster.json"
    recipe.write_text(json.dumps(recipe_of(ours, address)))
    offers = {key: value for key, value in ours["available_node_types"]["head"]["resources"].items() if key != "CPU"}
    environment = {
        **os.environ,
        "RAY_AUTH_MODE": "token",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
        "RAY_NODE_TYPE_NAME": HEAD,
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    }
    command = [sys.executable, "-c", START, str(port), json.dumps(offers), str(recipe)]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as started:
        try:
            assert started.stdout is not None
            assert any(line == "up\n" for line in started.stdout)
            yield address
        finally:
            end_session(started.pid)


@pytest.mark.long
def test_a_job_brings_up_a_machine_of_its_role_and_no_other(address: str) -> None:
    environment = {**os.environ, "RAY_ADDRESS": address, "RAY_AUTH_MODE": "token"}
    done = subprocess.run(
        [sys.executable, "-c", JOB], cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=500
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["before"] == {"came": [], "grows": True, "gpus": True, "generator": 1.0}
    assert said["after"] == [["framegrove_train"]]
    assert said["room"] == [False, True]
    assert sorted(said["grown"]) == [["framegrove_generate"], ["framegrove_train"]]
