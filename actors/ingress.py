"""The endpoint's replica in Ray Serve: the video service with a search behind it (routes: framegrove.serving.web)."""

from __future__ import annotations

import ray
from fastapi import FastAPI
from ray import serve
from ray.exceptions import ObjectLostError, RayActorError
from ray.util.placement_group import NODE_ID_LABEL_KEY

from actors.model_files import ModelFiles
from actors.searches import search_runner
from framegrove import logs
from framegrove.cluster.errors import ActorLost, NoCluster, NoRoom
from framegrove.cluster.metrics import Metrics
from framegrove.config.serve import ServeConfig
from framegrove.search import policies
from framegrove.serving.auth import KeyAuth
from framegrove.serving.keys import KeyRing
from framegrove.serving.service import ServedModel, VideoService
from framegrove.serving.store import VideoStore
from framegrove.serving.web import build_app

# What a cluster recovers from. An actor that keeps dying is given up as a CrashLoop, which is not among these.
PASSING = (NoCluster, NoRoom, ActorLost, RayActorError, ObjectLostError)


class Ingress:
    """The only replica of the endpoint: the folder of videos belongs to it.

    A replica that takes its place goes on with the videos that it left unfinished.
    """

    def __init__(self, config: ServeConfig) -> None:
        logs.set_up()
        files = ModelFiles.read(config.model)
        model = ServedModel(
            files.name,
            files.recipe,
            check=files.check,
            policies=policies.summaries(),
            judged=lambda policy: policies.find(policy).judged,
        )
        self._keys = config.keys
        self._metrics = Metrics()
        runner = search_runner(
            config.model, config.verifier, generators=config.generators, pack=config.pack, metrics=self._metrics
        )
        self._service = VideoService(
            VideoStore(config.folder),
            runner,
            model,
            config,
            passing=PASSING,
            on_queue=self._metrics.queue,
        )

    def __serve_build_asgi_app__(self) -> FastAPI:
        app = build_app(self._service)
        if self._keys is not None:
            app.add_middleware(KeyAuth, keys=KeyRing(self._keys))  # around everything else: nothing is read before
        return app

    async def check_health(self) -> None:
        """Called by Ray Serve at intervals: it replaces a replica that raises here."""
        self._service.check_health()


def application(config: ServeConfig) -> serve.Application:
    """What ``ray.serve.run`` takes. Paths in ``config`` must be absolute: a replica has its own working directory.

    The replica, and any that takes its place, runs on this process's machine, where the folder of videos is.
    """
    here = {NODE_ID_LABEL_KEY: ray.get_runtime_context().get_node_id()}
    options = {"num_cpus": 0, "label_selector": here}  # a head node may offer no CPUs, as that of cluster.yaml
    return serve.deployment(max_ongoing_requests=256, ray_actor_options=options)(serve.ingress()(Ingress)).bind(config)
