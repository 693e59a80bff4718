"""Where actors go, and a sentence instead of a hang when there is no room for them."""

from __future__ import annotations

import asyncio
import enum
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from framegrove.cluster.errors import NoRoom
from framegrove.cluster.session import Cluster

logger = logging.getLogger(__name__)

Bundle = Mapping[str, float]


class Role(enum.StrEnum):
    """What a machine is for: cluster.yaml and deploy/kuberay give each group a custom resource of this name.

    Their heads have all of them too, without a CPU, so that no actor lands there: groups that are still at zero are
    known that way, and the autoscaler is asked for the right one.
    """

    TRAIN = "framegrove_train"
    GENERATE = "framegrove_generate"
    VERIFY = "framegrove_verify"


# Any number of actors may stand on a machine of their role: CPUs and GPUs are what limits them.
_MARK = 0.001

# A custom resource of the head: the machines that the cluster starts when work waits for room have GPUs.
AWAITED_GPU = "framegrove_gpu"


def bundle(role: Role, *, num_cpus: float = 1, num_gpus: float = 0) -> dict[str, float]:
    """The resources of one actor, bound to the machines of its role where the cluster knows roles."""
    wanted = {"CPU": float(num_cpus), "GPU": float(num_gpus)}
    if role.value in ray.cluster_resources():
        wanted[role.value] = _MARK
    return {name: amount for name, amount in wanted.items() if amount}


def placed(role: Role, *, num_cpus: float = 1, num_gpus: float = 0) -> dict[str, Any]:
    """The same as ``bundle``, as options of an actor: ``ray.remote(Class).options(**placed(Role.GENERATE))``."""
    marks = {role.value: _MARK} if role.value in ray.cluster_resources() else {}
    return {"num_cpus": num_cpus, "num_gpus": num_gpus, "resources": marks}


# How long room is waited for: until other work has ended, or until a machine has been bought, started and set up.
_PATIENCE_S, _PATIENCE_GROWING_S = 30.0, 30 * 60.0
_TELL_EVERY_S = 60.0
_LOOK_EVERY_S = 2.0


def require(cluster: Cluster, bundles: Sequence[Bundle], *, purpose: str, wait_seconds: float | None = None) -> None:
    """Return once all ``bundles`` could stand on the cluster together; raise NoRoom in one sentence when they cannot.

    Waits for other work to end or machines to join, half a minute, or half an hour where the cluster ``grows``; except
    on an own local cluster that is too small in any case.
    """
    large_enough, growing = fits(bundles, machines()), grows()
    if cluster.own and not large_enough:
        raise NoRoom(_too_small(bundles, purpose))
    patience = wait_seconds if wait_seconds is not None else _PATIENCE_GROWING_S if growing else _PATIENCE_S
    probe = placement_group([dict(each) for each in bundles], strategy="PACK")  # what a cluster that grows sees, too
    try:
        ready = _ready(probe, bundles, purpose, patience)
    finally:
        remove_placement_group(probe)
    if not ready and growing:
        raise NoRoom(_too_slow(bundles, purpose, patience))
    if not ready:
        raise NoRoom(_too_busy(bundles, purpose, patience) if large_enough else _too_small(bundles, purpose))


async def has_room(bundles: Sequence[Bundle], patience: float, wanted: Callable[[], bool] = lambda: True) -> bool:
    """Whether there is room for all ``bundles`` within so many seconds, as long as it is ``wanted``.

    A cluster that grows makes room meanwhile.
    """
    deadline = time.monotonic() + patience
    probe = placement_group([dict(each) for each in bundles])
    try:
        while (left := deadline - time.monotonic()) > 0 and wanted():
            if await asyncio.to_thread(probe.wait, min(left, _LOOK_EVERY_S)):
                return True
        return False
    finally:
        remove_placement_group(probe)


def machines() -> list[dict[str, float]]:
    """The resources of every machine of the cluster."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def offered() -> list[dict[str, float]]:
    """The machines of the cluster and, where its groups may still be at zero, a stand-in for those that will come."""
    awaited = {"GPU": 1.0, **{role.value: 1.0 for role in Role}}
    return [*machines(), *([awaited] if AWAITED_GPU in ray.cluster_resources() else [])]


def has_gpus() -> bool:
    """Whether the cluster's machines have GPUs, those included that it starts when work waits for room."""
    return any(machine.get("GPU", 0) for machine in offered())


def grows() -> bool:
    """Whether the cluster can get more machines when work waits for room.

    That is, whether a launcher has put its machines into groups: ``ray up`` and KubeRay do, and Ray shows it as a
    label. A cluster put together by hand, or a local one, has none.
    """
    return any("ray.io/node-group" in node["Labels"] for node in ray.nodes() if node["Alive"])


def fits(bundles: Iterable[Bundle], nodes: Iterable[Bundle]) -> bool:
    """Whether every bundle finds a node with room for it, larger bundles first."""
    rooms = [dict(node) for node in nodes]
    for each in sorted(bundles, key=lambda item: sum(item.values()), reverse=True):
        room = next((room for room in rooms if all(room.get(name, 0) >= amount for name, amount in each.items())), None)
        if room is None:
            return False
        for name, amount in each.items():
            room[name] -= amount
    return True


def _ready(probe: PlacementGroup, bundles: Sequence[Bundle], purpose: str, patience: float) -> bool:
    """Whether there was room in time; says now and then that it is waited for."""
    deadline = time.monotonic() + patience
    while True:
        left = deadline - time.monotonic()
        if probe.wait(max(0.0, min(_TELL_EVERY_S, left))):
            return True
        if left <= _TELL_EVERY_S:
            return False
        needed, free = _told(bundles), _told([ray.available_resources()], bundles)
        logger.warning(
            f"{purpose} needs {needed}, and {free} are free on {len(machines())} machines: waiting for work to end or "
            f"machines to join, {left - _TELL_EVERY_S:.0f} s more"
        )


def _too_small(bundles: Sequence[Bundle], purpose: str) -> str:
    nodes = machines()
    count = f"{len(nodes)} machine{'s' if len(nodes) != 1 else ''}"
    return (
        f"{purpose} needs {_told(bundles)}, and the cluster's {count} cannot hold that ({_told(nodes, bundles)} in "
        "all): ask for less, or give the cluster more (ray start --num-cpus may exceed the cores)"
    )


def _too_busy(bundles: Sequence[Bundle], purpose: str, waited: float) -> str:
    free = _told([ray.available_resources()], bundles)
    return (
        f"{purpose} needs {_told(bundles)}, and after {waited:.0f} s other work still holds the cluster ({free} free): "
        "stop that work, or wait for it and try again"
    )


def _too_slow(bundles: Sequence[Bundle], purpose: str, waited: float) -> str:
    free = _told([ray.available_resources()], bundles)
    return (
        f"{purpose} needs {_told(bundles)}, and after {waited:.0f} s the cluster has not grown to hold that ({free} "
        "free): ask for less, let its groups of machines grow further (max_workers in cluster.yaml), or try again later"
    )


def _told(bundles: Iterable[Bundle], like: Iterable[Bundle] | None = None) -> str:
    """Summed resources in words, "3 CPU and 1 GPU"; with ``like`` those that these bundles ask for."""
    total: dict[str, float] = {}
    for each in bundles:
        for name, amount in each.items():
            total[name] = total.get(name, 0) + amount
    names = list(dict.fromkeys(name for each in like for name in each)) if like is not None else list(total)
    return " and ".join(f"{total.get(name, 0):g} {name}" for name in names) or "nothing"
