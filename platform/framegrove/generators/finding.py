"""Which adapter a source is used through, and which models are known for a system's without a file that says so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from framegrove.config.base import ConfigError, absolute, imported
from framegrove.config.generator import AdaptedSource
from framegrove.generators.places import INDEX, Place
from framegrove.generators.protocol import Adapter

# The adapters that come with the package, by their kinds.
OURS = {
    "causal": "framegrove.generators.causal:Causal",
    "diffusers": "framegrove.generators.diffusion:Diffusion",
    "nova": "framegrove.generators.nova:Nova",
    "remote": "framegrove.generators.remote:Remote",
}


def adapter_of(source: AdaptedSource) -> Adapter:
    """The adapter of a source, without its weights. Raises UserError, in one sentence, for one that cannot be used."""
    adapter = OURS.get(source.kind, source.where)
    made = imported(adapter, source.called, "class")
    try:
        found: Adapter = made(source.where, **source.options)
    except TypeError as error:
        raise ConfigError(f"{source.called}: {adapter} cannot be made with these options ({error})") from error
    missing = [name for name in ("form", "identity", "price", "load", "sample", "decode") if not hasattr(found, name)]
    if missing:
        raise ConfigError(f"{source.called}: {adapter} has no {' and no '.join(missing)}, see Adapter")
    return found


def pipeline_at(name: str, options: Mapping[str, Any]) -> AdaptedSource | None:
    """The source of a folder or a hub id that holds a pipeline of diffusers, used with ``options``; None of any other.

    Of a repository one small file is fetched. Stable Diffusion 3 makes pictures, and is a model to train from.
    """
    place = Place.find(name)
    if place is None or not place.has(INDEX) or place.json(INDEX).get("_class_name") == "StableDiffusion3Pipeline":
        return None
    return AdaptedSource(kind="diffusers", where=absolute(name) or name, options=dict(options))
