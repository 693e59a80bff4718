"""Which class a verifier of a kind is. Each becomes an actor by ``ray.remote(Class)`` and scores as its config says."""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import Any

from actors.verifier import VllmVerifier
from framegrove.cluster.priority import give_way
from framegrove.config.verifier import Kind, VerifierConfig, environment
from framegrove.verification.callables import CallableVerifier
from framegrove.verification.endpoint import EndpointVerifier
from framegrove.verification.frame_models import FramesVerifier
from framegrove.verification.identity import is_from_hub
from framegrove.verification.latents import LatentVerifier
from framegrove.verification.reward import RewardVerifier
from framegrove.verification.signals import SignalsVerifier

VerifierClass = (
    type[VllmVerifier]
    | type[EndpointVerifier]
    | type[RewardVerifier]
    | type[SignalsVerifier]
    | type[CallableVerifier]
    | type[FramesVerifier]
    | type[LatentVerifier]
)

_CLASSES: dict[Kind, VerifierClass] = {
    "vllm": VllmVerifier,
    "endpoint": EndpointVerifier,
    "reward": RewardVerifier,
    "signals": SignalsVerifier,
    "callable": CallableVerifier,
    "frames": FramesVerifier,
    "latent": LatentVerifier,
}


def verifier_class(kind: Kind) -> VerifierClass:
    """The class whose instances score as a verifier of this kind; all are made from a VerifierConfig alone."""
    return _CLASSES[kind]


def set_environment(configs: Collection[VerifierConfig]) -> None:
    """Set what verifiers read from the environment, for all that are to work in this process; nothing is started yet.

    The hub is left alone unless one of them has its model from there.
    """
    variables: dict[str, str] = {}
    for config in sorted(configs, key=lambda each: each.engine.cache_gib):  # the largest cache is for all
        variables |= environment(config)
    if any(map(is_from_hub, configs)):
        variables = {name: value for name, value in variables.items() if not name.endswith("_OFFLINE")}
    os.environ.update(variables)


def giving_way(worker: type[Any]) -> type[Any]:
    """The class of a verifier in a process of its own, which lets the others of its machine go first."""

    class GivesWay(worker):
        def __init__(self, config: VerifierConfig) -> None:
            give_way()  # before anything is started: what is inherits it, engines and threads alike
            super().__init__(config)

    GivesWay.__name__ = GivesWay.__qualname__ = worker.__name__
    return GivesWay
