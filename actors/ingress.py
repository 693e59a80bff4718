"""The endpoint's replica in Ray Serve: the video service with a search behind it (routes: framegrove.serving.web)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Sequence
from typing import Any

import ray
from fastapi import FastAPI
from ray import serve
from ray.exceptions import ObjectLostError, RayActorError
from ray.util.placement_group import NODE_ID_LABEL_KEY

from actors.adapted import card_of
from actors.crew import Neighbours
from actors.model_files import Card
from actors.searches import SearchRunner, config_of, search_runner
from framegrove import logs
from framegrove.cluster.errors import ActorLost, NoCluster, NoRoom
from framegrove.cluster.health import within
from framegrove.cluster.metrics import Metrics
from framegrove.cluster.serving import is_stopping
from framegrove.config.base import validated
from framegrove.config.generator import AnySource
from framegrove.config.search import SearchConfig
from framegrove.config.serve import ServeConfig
from framegrove.config.verifier import PanelConfig
from framegrove.errors import UserError
from framegrove.evaluation import tree_page
from framegrove.files import InUse
from framegrove.search import policies
from framegrove.search.panel import unjudged
from framegrove.search.prices import Prices
from framegrove.serving.api import PolicyOffer, VerifierOffer
from framegrove.serving.backup import USAGE
from framegrove.serving.keys import KeyRing
from framegrove.serving.offers import ServedModel
from framegrove.serving.quotas import Quotas
from framegrove.serving.service import VideoService
from framegrove.serving.store import VideoStore
from framegrove.serving.web import build_app
from framegrove.types import Assessment, GenerationRequest

# What a cluster recovers from. An actor that keeps dying is given up as a CrashLoop, which is not among these.
PASSING = (NoCluster, NoRoom, ActorLost, RayActorError, ObjectLostError)

# Requests that the replica serves besides those whose bodies it reads. Ray Serve's proxy passes a request on as soon as
# its headers are there, and the replica holds it until it is answered: it must have room for questions about videos
# while all places for bodies are taken, and to turn away whoever finds no place.
#
# Slow headers do not come this far. They stay in the proxy's uvicorn, which has no deadline for them, nor does Ray give
# it one: keep_alive_timeout_s counts from an answer, request_timeout_s from the end of the headers. Such a connection
# costs the proxy a socket, and the replica nothing. That is why the endpoint listens on this machine alone by default;
# one that is open to strangers belongs behind a proxy that has this deadline (client_header_timeout in nginx, timeout
# http-request in HAProxy) and a limit of connections for each client.
OTHERS = 256


# Seconds that a replica which is replaced may take to finish what it is asked at that moment; then it is killed. It
# begins no more videos, and lets viewers go, as soon as it has noticed.
ENDING_S = 30.0
_LOOK_EVERY_S, _ANSWER_LIMIT_S = 2.0, 10.0
_LETTING_GO_S = 60.0


def served(card: Card, panel: PanelConfig) -> ServedModel:
    """What an endpoint offers that serves this model, judged by this panel."""

    def check(request: GenerationRequest) -> None:
        card.check(request)
        entry = policies.find(request.policy)
        policies.check_until(entry, request.until)
        config = config_of(request, SearchConfig())
        policies.options_of(config, entry)
        judging = [each for each in panel.verifiers if request.verifiers is None or each.name in request.verifiers]
        policies.check_comparing(config, [each.name for each in judging if each.anchors])
        if request.verifiers is not None:
            prices, given = Prices(card.costs(request).table), card.given(request)
            policy, _ = policies.make_policy(config, request.units, card.stages, prices, given=given)
            _check_judges(request.verifiers, policy.assessments, panel)

    def flops(request: GenerationRequest) -> float:
        return float(card.costs(request).unsearched(request.units, card.given(request)).all_flops)

    def offer(name: str, summary: str) -> PolicyOffer:
        options = policies.find(name).options
        described = {key: field.description or "" for key, field in options.model_fields.items()}
        return PolicyOffer(description=summary, options=described, defaults=options().model_dump(mode="json"))

    return ServedModel(
        card.name,
        card.native,
        check=check,
        policies={name: offer(name, summary) for name, summary in policies.summaries().items()},
        judged=lambda policy: policies.find(policy).judged,
        side=card.side,
        most_units=card.most_units,
        flops=flops,
        verifiers={each.name: VerifierOffer(kind=each.kind, judges=list(each.assessments)) for each in panel.verifiers},
    )


def _check_judges(chosen: Collection[str], assessments: Collection[Assessment], panel: PanelConfig) -> None:
    """Raise UserError where a search asks for an assessment that none of the chosen verifiers makes."""
    for assessment in unjudged(assessments, [each.assessments for each in panel.verifiers if each.name in chosen]):
        able = [each.name for each in panel.judging(assessment)]
        others = f"add {' or '.join(able)}" if able else "choose another policy"
        raise UserError(
            f"search.verifiers: none of {', '.join(chosen)} makes the {assessment} assessment, which this search "
            f"asks for: {others}"
        )


class Ingress:
    """The only replica of the endpoint: the folder of videos belongs to it.

    A replica that takes its place continues the videos that it left unfinished.
    """

    def __init__(self, config: ServeConfig) -> None:
        logs.set_up()
        metrics = Metrics()
        self._config = config
        self._service = VideoService(
            _opened(config),
            _with_runners(config),
            config,
            passing=PASSING,
            on_queue=metrics.queue,
            quotas=Quotas(config.folder / USAGE, KeyRing(config.keys)) if config.keys is not None else None,
        )

    def __serve_build_asgi_app__(self) -> FastAPI:
        scripts = [tree_page.script_hash()]
        return build_app(self._service, self._config, scripts=scripts, ending=_told_to_stop)

    async def check_health(self) -> None:
        """Called by Ray Serve at intervals: it replaces a replica that raises here."""
        self._service.check_health()


def _opened(config: ServeConfig) -> VideoStore:
    """The record of videos, once the replica whose place this one takes has let go of it. Raises UserError."""
    deadline = time.monotonic() + _LETTING_GO_S
    while True:
        try:
            return VideoStore(config.folder, database=config.database, storage=config.storage)
        except InUse:
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.5)


async def _told_to_stop() -> None:
    """Return when Ray Serve has told this replica to stop. It tells the replica nothing that one could wait for."""
    me = serve.get_replica_context()

    def stopping() -> bool | None:
        return within(_ANSWER_LIMIT_S, lambda: is_stopping(me.app_name, me.replica_id.unique_id))

    while not await asyncio.to_thread(stopping):  # noqa: ASYNC110 - the event is in another process
        await asyncio.sleep(_LOOK_EVERY_S)


def read_models(sources: Sequence[AnySource]) -> list[Card]:
    """The configurations of models that are to be served together. Raises UserError for two of the same name."""
    cards = [card_of(source) for source in sources]
    names = [each.name for each in cards]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"two models are called {twice}, and requests choose by name: rename one of their folders")
    return cards


def _with_runners(config: ServeConfig) -> list[tuple[ServedModel, SearchRunner]]:
    """The models, each with actors of its own."""
    cards, neighbours = read_models(config.models), Neighbours()
    return [
        (
            served(each, config.verifier),
            search_runner(
                each.source,
                config.verifier,
                generators=config.generators,
                pack=config.pack,
                metrics=Metrics(each.name if len(cards) > 1 else ""),
                neighbours=neighbours,
            ),
        )
        for each in cards
    ]


def application(config: ServeConfig) -> serve.Application:
    """What ``ray.serve.run`` takes. Paths in ``config`` must be absolute: a replica has its own working directory.

    The replica, and any that takes its place, runs on this process's machine, where the folder of videos is.
    """
    return _bound(config, label_selector={NODE_ID_LABEL_KEY: ray.get_runtime_context().get_node_id()})


def from_manifest(settings: dict[str, Any]) -> serve.Application:
    """The same for a manifest, such as deploy/kuberay/rayservice.yaml, whose ``args`` are those of ServeConfig.

    The replica runs on any machine of the cluster, all of which must see the folder of videos at the same path. Raises
    UserError.
    """
    config = validated(ServeConfig, settings, "the arguments of the application")
    for name, path in (("folder", config.folder), ("keys", config.keys)):
        if path is not None and not path.is_absolute():
            raise UserError(f"{name} is {path}, and must be an absolute path that every machine of the cluster has")
    read_models(config.models)  # what is wrong is told while the old replica still runs
    config.verifier.check_files()
    return _bound(config)


def _bound(config: ServeConfig, **options: Any) -> serve.Application:
    options["num_cpus"] = 0  # a head node may offer no CPUs, as that of cluster.yaml
    deployment = serve.deployment(
        max_ongoing_requests=config.reading + OTHERS, ray_actor_options=options, graceful_shutdown_timeout_s=ENDING_S
    )
    return deployment(serve.ingress()(Ingress)).bind(config)
