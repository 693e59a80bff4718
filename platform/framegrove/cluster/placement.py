"""Where actors go, and a sentence instead of a hang when there is no room for them."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import ray
from ray.util.placement_group import placement_group, remove_placement_group

from framegrove.cluster.errors import NoRoom
from framegrove.cluster.session import Cluster

Bundle = Mapping[str, float]


class Role(enum.StrEnum):
    """What a machine is for: cluster.yaml gives each group of machines a custom resource of this name."""

    TRAIN = "framegrove_train"
    GENERATE = "framegrove_generate"
    VERIFY = "framegrove_verify"


# Any number of actors may stand on a machine of their role: CPUs and GPUs are what limits them.
_MARK = 0.001


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


def require(cluster: Cluster, bundles: Sequence[Bundle], *, purpose: str, wait_seconds: float = 30.0) -> None:
    """Return once all ``bundles`` could stand on the cluster together; raise NoRoom in one sentence when they cannot.

    Waits for other work to end or machines to join, except on an own local cluster that is too small in any case.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    large_enough = fits(bundles, nodes)
    if cluster.own and not large_enough:
        raise NoRoom(_too_small(bundles, nodes, purpose))
    probe = placement_group([dict(each) for each in bundles], strategy="PACK")
    try:
        ready = probe.wait(wait_seconds)
    finally:
        remove_placement_group(probe)
    if not ready:
        raise NoRoom(_too_busy(bundles, purpose, wait_seconds) if large_enough else _too_small(bundles, nodes, purpose))


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


def _too_small(bundles: Sequence[Bundle], nodes: Sequence[Bundle], purpose: str) -> str:
    machines = f"{len(nodes)} machine{'s' if len(nodes) != 1 else ''}"
    return (
        f"{purpose} needs {_told(bundles)}, and the cluster's {machines} cannot hold that ({_told(nodes, bundles)} in "
        "all): ask for less, or give the cluster more (ray start --num-cpus may exceed the cores)"
    )


def _too_busy(bundles: Sequence[Bundle], purpose: str, waited: float) -> str:
    free = _told([ray.available_resources()], bundles)
    return (
        f"{purpose} needs {_told(bundles)}, and after {waited:.0f} s other work still holds the cluster ({free} free): "
        "stop that work, or wait for it and try again"
    )


def _told(bundles: Iterable[Bundle], like: Iterable[Bundle] | None = None) -> str:
    """Summed resources in words, "3 CPU and 1 GPU"; with ``like`` those that these bundles ask for."""
    total: dict[str, float] = {}
    for each in bundles:
        for name, amount in each.items():
            total[name] = total.get(name, 0) + amount
    names = list(dict.fromkeys(name for each in like for name in each)) if like is not None else list(total)
    return " and ".join(f"{total.get(name, 0):g} {name}" for name in names) or "nothing"
