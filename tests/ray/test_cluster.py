"""A real local cluster: coming and going, room, actors that die."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from actors.clients import RemoteVerifier, UnitRef, ask, lost_of, recovered
from framegrove.cluster.errors import ActorLost, CrashLoop, NoCluster, NoRoom
from framegrove.cluster.local import local_cluster
from framegrove.cluster.placement import Role, bundle, fits, grows, placed, require
from framegrove.cluster.session import Cluster, connect
from framegrove.cluster.supervise import ActorGroup, Limit
from framegrove.config.search import SearchConfig
from framegrove.errors import UserError
from framegrove.search.protocols import UnitsLost, WorkFailed
from framegrove.types import Assessment, Cost, Scored, ScoreWork
from tests.processes import TAKING_INTERRUPTS

ROOT = Path(__file__).resolve().parents[2]


@ray.remote(num_cpus=0)
class Worker:
    def __init__(self, index: int, ill: bool = False) -> None:
        if ill:
            raise RuntimeError("no such device")
        self.index = index

    def ready(self) -> bool:
        return True

    def pid(self) -> int:
        return os.getpid()

    def fail(self) -> None:
        raise ValueError("cannot do that")

    def die(self) -> None:
        os._exit(1)

    def late(self) -> None:
        raise TimeoutError("its own")

    def put(self, size: int) -> list[Any]:
        return [ray.put(np.zeros(size, np.uint8))]  # a reference that dies with this actor

    def score(self, work: ScoreWork, prompt: Any, *units: Any) -> Scored:
        return Scored(work, (("size", float(len(units))),), Cost())

    async def long(self) -> int:
        await asyncio.sleep(60)
        return self.index


def create(index: int) -> Any:
    return Worker.remote(index)


def test_connecting_twice_is_connecting_once(cluster: Cluster) -> None:
    with connect() as again:
        assert again == cluster
    assert ray.is_initialized()


def test_room_for_what_fits_and_a_sentence_for_what_does_not(cluster: Cluster) -> None:
    require(cluster, [{"CPU": 2}, {"CPU": 1}], purpose="a test")
    with pytest.raises(NoRoom, match=r"a test needs 10000 CPU and 1 GPU.* cannot hold that \(\d+ CPU and 0 GPU in all"):
        require(cluster, [{"CPU": 10000}, {"GPU": 1}], purpose="a test")


def test_a_full_cluster_is_told_rather_than_waited_for(cluster: Cluster) -> None:
    everything = int(ray.cluster_resources()["CPU"])
    hog = Worker.options(num_cpus=everything).remote(0)
    ray.get(hog.pid.remote())
    with pytest.raises(NoRoom, match=r"a test needs 1 CPU, and after 1 s other work still holds .*\(0 CPU free\)"):
        require(cluster, [{"CPU": 1}], purpose="a test", wait_seconds=1)
    ray.kill(hog)
    require(cluster, [{"CPU": everything}], purpose="a test")


def test_roles_bind_actors_only_where_the_cluster_knows_them(cluster: Cluster) -> None:
    assert placed(Role.GENERATE, num_cpus=2) == {"num_cpus": 2, "num_gpus": 0, "resources": {}}
    assert bundle(Role.GENERATE, num_cpus=2) == {"CPU": 2.0}
    assert not grows()


def test_fitting_places_each_bundle_on_one_machine() -> None:
    assert fits([{"CPU": 2}, {"CPU": 2}], [{"CPU": 2}, {"CPU": 3}])
    assert not fits([{"CPU": 4}], [{"CPU": 2}, {"CPU": 3}])
    assert fits([{"CPU": 1}, {"CPU": 4}], [{"CPU": 1}, {"CPU": 4}])
    assert not fits([{"GPU": 1}], [{"CPU": 2}])


def test_a_killed_actor_is_replaced_and_the_call_can_be_made_again(cluster: Cluster) -> None:
    group = ActorGroup(create, 1)

    async def scene() -> None:
        first = await group.call(0, lambda actor: actor.pid.remote())
        waiting = [asyncio.create_task(group.call(0, lambda actor: actor.long.remote())) for _ in range(3)]
        await asyncio.sleep(0.5)
        os.kill(first, signal.SIGKILL)
        lost = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(each, ActorLost) for each in lost), lost
        assert await group.call(0, lambda actor: actor.pid.remote()) != first
        with pytest.raises(ValueError, match="cannot do that"):
            await group.call(0, lambda actor: actor.fail.remote())

    asyncio.run(scene())
    group.close()


def test_an_actor_that_keeps_dying_is_given_up(cluster: Cluster) -> None:
    mortal = ActorGroup(create, 1, failures_in_a_row=2)
    lively = ActorGroup(create, 1, failures_in_a_row=2)
    still_born = ActorGroup(lambda index: Worker.remote(index, ill=True), 1, failures_in_a_row=1)

    async def scene() -> None:
        with pytest.raises(ActorLost):
            await mortal.call(0, lambda actor: actor.die.remote())
        await mortal.call(0, lambda actor: actor.pid.remote())  # a call that comes back clears the record
        with pytest.raises(ActorLost):
            await mortal.call(0, lambda actor: actor.die.remote())
        with pytest.raises(CrashLoop, match="died 2 times in a row"):
            await mortal.call(0, lambda actor: actor.die.remote())
        with pytest.raises(CrashLoop):
            await mortal.call(0, lambda actor: actor.pid.remote())
        with pytest.raises(CrashLoop, match=r"died once without finishing anything: .*no such device"):
            await still_born.call(0, lambda actor: actor.pid.remote())

        with pytest.raises(ActorLost):
            await lively.call(0, lambda actor: actor.die.remote())
        await recovered(lively, 0)  # alive again, which is not yet of use
        with pytest.raises(CrashLoop, match="died 2 times in a row"):
            await lively.call(0, lambda actor: actor.die.remote())
        with pytest.raises(WorkFailed, match="died 2 times in a row"):
            await recovered(lively, 0)

    asyncio.run(scene())
    for group in (mortal, still_born, lively):
        group.close()


def test_an_actor_that_does_not_answer_in_time_is_replaced(cluster: Cluster) -> None:
    group = ActorGroup(create, 1, failures_in_a_row=2)

    async def scene() -> None:
        first = await group.call(0, lambda actor: actor.pid.remote())
        with pytest.raises(WorkFailed, match=r"died and has been replaced \(it was still sampling after 0.5 s\)"):
            await ask(group, 0, lambda actor: actor.long.remote(), Limit(0.5, "sampling"))
        assert await group.call(0, lambda actor: actor.pid.remote()) != first
        assert not alive(first)
        with pytest.raises(TimeoutError, match="its own"):  # the method's, which is no reason to replace an actor
            await ask(group, 0, lambda actor: actor.late.remote(), Limit(60, "sampling"))

    asyncio.run(scene())
    group.close()


def test_an_actor_that_finds_no_room_is_given_up(cluster: Cluster) -> None:
    pending = ActorGroup(lambda index: Worker.options(num_cpus=10000).remote(index), 1, failures_in_a_row=2)
    says = "died 2 times in a row without finishing anything: it was still starting after 0.3 s"
    with pytest.raises(WorkFailed, match=says):
        asyncio.run(recovered(pending, 0, SearchConfig(start_limit=0.3)))
    pending.close()


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0]
    except OSError:
        return False


def test_a_unit_that_is_lost_is_told_by_its_branch(cluster: Cluster) -> None:
    group, mortal = ActorGroup(create, 1), create(0)
    work = ScoreWork((0, 1), Assessment.FINAL)
    verifier = RemoteVerifier(group, 0, "a red 3 moves left and right")

    async def scene() -> None:
        ours = [ray.put(np.zeros(10**6, np.uint8)) for _ in range(3)]
        (theirs,) = await mortal.put.remote(10**6)
        units = {(0,): UnitRef(2, ours[0], ours[1], None), (0, 1): UnitRef(2, ours[2], theirs, None)}
        assert (await verifier.score(work, units)).work == work
        assert await lost_of(units) == []
        ray.kill(mortal)
        await asyncio.sleep(1)  # until everybody knows
        assert await lost_of(units) == [(0, 1)]
        with pytest.raises(UnitsLost) as caught:
            await verifier.score(work, units)
        assert caught.value.paths == {(0, 1)}

    asyncio.run(scene())
    group.close()


def test_the_checkout_travels_to_a_cluster_and_so_do_jobs(cluster: Cluster) -> None:
    """A second driver, and a submitted job, find the three packages in what was sent, not in the checkout."""
    where = "import framegrove, actors, jobs; print(*{m.__file__ for m in (framegrove, actors, jobs)}, sep='\\n')"
    assert cluster.dashboard_url
    submit = ["ray", "job", "submit", "--address", cluster.dashboard_url, "--log-style", "record"]
    recipe = ["--runtime-env", "jobs/runtime_env.yaml", "--working-dir", "."]
    job = subprocess.run(
        [*submit, *recipe, "--", "python", "-c", where], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert job.returncode == 0, job.stdout + job.stderr
    found = [line for line in job.stdout.splitlines() if line.endswith("__init__.py")]
    assert len(found) == 3, job.stdout
    assert all("runtime_resources" in line for line in found)

    driver = (
        "import ray\nfrom framegrove.cluster.session import connect\n"
        "with connect() as found:\n"
        "    assert not found.own\n"
        "    f = ray.remote(lambda: __import__('actors').__file__)\n"
        "    print(ray.get(f.remote()))\n"
    )
    environment = {**os.environ, "RAY_ADDRESS": cluster.address}
    joined = subprocess.run(
        [sys.executable, "-c", driver], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert joined.returncode == 0, joined.stderr
    assert "runtime_resources" in joined.stdout


def test_a_submitted_job_joins_the_cluster_that_it_was_submitted_to(cluster: Cluster) -> None:
    """Whatever RAY_ADDRESS says there: with two clusters on a machine, Ray tells a job about any of them."""
    join = "import framegrove.cluster.session as s, ray; c = s.connect(); print('joined', c.__enter__().address)"
    assert cluster.dashboard_url
    submit = ["ray", "job", "submit", "--address", cluster.dashboard_url, "--log-style", "record"]
    recipe = ["--runtime-env", "jobs/runtime_env.yaml", "--working-dir", "."]
    with local_cluster(1) as other:
        entry = ["env", f"RAY_ADDRESS={other}", "python", "-c", join]
        job = subprocess.run([*submit, *recipe, "--", *entry], cwd=ROOT, capture_output=True, text=True, check=False)
    assert f"joined {cluster.address}" in job.stdout, job.stdout + job.stderr


def test_a_cluster_that_is_not_there_is_told() -> None:
    probe = (
        "from framegrove.cluster.session import connect\n"
        "from framegrove.cluster.errors import NoCluster\n"
        "for address in ('127.0.0.1:1', 'http://127.0.0.1:1'):\n"
        "    try:\n"
        "        with connect(address): pass\n"
        "    except NoCluster as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, timeout=120)
    first, second = done.stdout.splitlines()
    assert first.startswith("no Ray cluster answers at 127.0.0.1:1")
    assert "takes submitted jobs only" in second
    assert issubclass(NoCluster, UserError)


def test_a_cluster_without_tokens_is_told_where_this_machine_has_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # that of the cluster which this process starts
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("0" * 64)
    probe = (
        "from framegrove.cluster.session import connect\n"
        "from framegrove.cluster.errors import NoCluster\n"
        "try:\n"
        "    with connect(): pass\n"
        "except NoCluster as error: print(error)\n"
    )
    with local_cluster(1) as address:
        environment = {**os.environ, "RAY_ADDRESS": address, "HOME": str(tmp_path)}
        del environment["RAY_AUTH_MODE"]
        done = subprocess.run(
            [sys.executable, "-c", probe], env=environment, capture_output=True, text=True, check=True, timeout=120
        )
    assert "takes no tokens" in done.stdout


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL])
def test_an_own_cluster_ends_with_its_driver(cluster: Cluster, ending: signal.Signals) -> None:
    """Interrupted or killed, a driver takes its own cluster along, and no other one."""
    driver = (
        "import time\nfrom framegrove.cluster.session import connect\n"
        "with connect(num_cpus=1) as own:\n"
        "    print(own.address, flush=True)\n"
        "    time.sleep(100)\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with subprocess.Popen(
        [*TAKING_INTERRUPTS, sys.executable, "-c", driver],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        address = process.stdout.readline().strip()
        assert daemons(address)
        process.send_signal(ending)
        process.wait(timeout=60)
    deadline = time.monotonic() + 30
    while daemons(address) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not daemons(address)
    assert address != cluster.address
    assert [node["Alive"] for node in ray.nodes()] == [True]


def daemons(address: str) -> list[int]:
    """Processes that serve the cluster at ``address``."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            command = (entry / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if address in command and ("raylet" in command or "gcs" in command or "dashboard" in command):
            found.append(int(entry.name))
    return found


def test_a_group_that_was_closed_brings_nobody_back(cluster: Cluster) -> None:
    created: list[int] = []

    def counted(index: int) -> Any:
        created.append(index)
        return create(index)

    group = ActorGroup(counted, 1)

    async def closed_meanwhile() -> None:
        waiting = asyncio.create_task(group.call(0, lambda actor: actor.long.remote()))
        await asyncio.sleep(0.5)
        group.close()
        with pytest.raises(CrashLoop, match="was closed"):
            await waiting

    asyncio.run(closed_meanwhile())
    assert created == [0]
