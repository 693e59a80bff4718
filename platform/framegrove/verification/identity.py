"""What decides a verifier's scores, so that a search is continued only with the verifiers it began with."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from typing import Any

from framegrove.config.engine import model_folder
from framegrove.config.scores import Pairwise, YesNo
from framegrove.config.verifier import VerifierConfig, question_source
from framegrove.files import fingerprint
from framegrove.verification.questions import load_question_set

# Settings that change how fast and in how much memory a verifier answers, not what. The model is told by its files.
_MEMORY = {"gpu_memory", "cache_gib", "frame_cache_gib"}
_NOT_THE_ANSWERS = {"model", "max_questions", "block_size", "tensor_parallel", *_MEMORY}
# Of an endpoint, its address and the name of its model stand for the model, and the price for what a budget buys.
_NOT_WHAT_IT_SAYS = {"key", "at_a_time", "timeout", "retries"}


def verifier_identity(config: VerifierConfig) -> dict[str, Any]:
    """What decides a verifier's scores and how they count, as JSON values. Not how many actors share the work.

    Raises UserError where its model folder or its questions are missing. Reads files: keep it off the event loop.
    """
    facts: dict[str, Any] = {
        "name": config.name,
        "kind": config.kind,
        "weight": config.weight,
        "judges": [assessment.value for assessment in config.assessments],
        "calibration": {assessment.value: each.model_dump() for assessment, each in config.calibration.items()},
    }
    model = model_of(config)
    if model is not None:
        facts["model"] = fingerprint(Path(model)) if Path(model).is_dir() else model
    if config.frames is not None:
        facts["frames"] = config.frames.model_dump(mode="json", exclude={"model", "head", "device"})
        if config.frames.head is not None:
            facts["head"] = hashlib.blake2b(Path(config.frames.head).read_bytes(), digest_size=12).hexdigest()
    if config.has_engine:
        facts["engine"] = config.engine.model_dump(mode="json", exclude=_NOT_THE_ANSWERS)
    if config.endpoint is not None:
        facts["endpoint"] = config.endpoint.model_dump(mode="json", exclude=_NOT_WHAT_IT_SAYS)
    if (config.has_engine or config.endpoint is not None) and not isinstance(config.score, Pairwise):
        facts["questions"] = load_question_set(question_source(config)).fingerprint
    if config.score != YesNo():  # the usual one is not named, as in searches from before there were others
        facts["score"] = config.score.model_dump(mode="json")
    if config.function is not None:
        facts["function"] = config.function
        facts["code"] = _code(config.function.partition(":")[0])
    if config.price:
        facts["price"] = config.price
    return facts


def model_of(config: VerifierConfig) -> str | None:
    """The folder or the hub id of a verifier's model, None where it has none. Raises ConfigError as model_folder."""
    if config.has_engine:
        return model_folder(config.engine)
    section = config.frames or config.latent
    return section.model if section is not None else None


def is_from_hub(config: VerifierConfig) -> bool:
    """Whether a verifier's model is named by a hub id."""
    section = config.engine if config.has_engine else config.frames
    return section is not None and section.model is not None and not Path(section.model).exists()


def _code(module: str) -> str | None:
    """Fingerprint of a module's file; None where it cannot be found from here."""
    try:
        found = importlib.util.find_spec(module)
    except ImportError:
        return None
    if found is None or found.origin is None or not Path(found.origin).is_file():
        return None
    return hashlib.blake2b(Path(found.origin).read_bytes(), digest_size=12).hexdigest()
