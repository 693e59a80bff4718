"""The endpoint's replica in Ray Serve: a service with a search behind it. Its routes are framegrove.serving.web's."""

from __future__ import annotations

import ray
from fastapi import FastAPI
from ray import serve
from ray.util.placement_group import NODE_ID_LABEL_KEY

from actors.conductor import SearchRunner
from actors.model_files import ModelFiles
from framegrove.config.serve import ServeConfig
from framegrove.serving.service import ServedModel, VideoService
from framegrove.serving.store import VideoStore
from framegrove.serving.web import build_app


class Ingress:
    """One replica: it alone keeps the folder of videos. Another one that takes its place goes on where it was."""

    def __init__(self, config: ServeConfig) -> None:
        files = ModelFiles.read(config.model)
        model = ServedModel(files.name, files.recipe, files.check)
        runner = SearchRunner(config.model, generators=config.generators, verifier=config.verifier)
        self._service = VideoService(VideoStore(config.folder), runner, model, config)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return build_app(self._service)

    async def check_health(self) -> None:
        """What Ray Serve asks now and then; a replica that raises here is replaced."""
        self._service.check_health()


def application(config: ServeConfig) -> serve.Application:
    """What ``ray.serve.run`` takes. Paths in ``config`` must be absolute: a replica has a working folder of its own.

    The replica, and any that takes its place, stands on this process's machine, where the folder of videos is.
    """
    here = {NODE_ID_LABEL_KEY: ray.get_runtime_context().get_node_id()}
    options = {"num_cpus": 0, "label_selector": here}  # a head may have no CPUs to give, as that of cluster.yaml
    return serve.deployment(max_ongoing_requests=256, ray_actor_options=options)(serve.ingress()(Ingress)).bind(config)
