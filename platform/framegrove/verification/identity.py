"""What decides a verifier's scores, so that a search is continued only with the verifiers it began with."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from typing import Any

from framegrove.config.verifier import VerifierConfig, model_folder, question_source
from framegrove.files import fingerprint
from framegrove.verification.questions import load_question_set

# Settings that change how fast and in how much memory a verifier answers, not what. The model is told by its files.
_MEMORY = {"gpu_memory", "cache_gib", "frame_cache_gib"}
_NOT_THE_ANSWERS = {"model", "max_questions", "block_size", "tensor_parallel", *_MEMORY}


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
    if config.kind == "vllm":
        model = model_folder(config.engine)
        facts["model"] = fingerprint(Path(model)) if Path(model).is_dir() else model
        facts["questions"] = load_question_set(question_source(config)).fingerprint
        facts["engine"] = config.engine.model_dump(mode="json", exclude=_NOT_THE_ANSWERS)
    if config.function is not None:
        facts["function"] = config.function
        facts["code"] = _code(config.function.partition(":")[0])
    return facts


def _code(module: str) -> str | None:
    """Fingerprint of a module's file; None where it cannot be found from here."""
    try:
        found = importlib.util.find_spec(module)
    except ImportError:
        return None
    if found is None or found.origin is None or not Path(found.origin).is_file():
        return None
    return hashlib.blake2b(Path(found.origin).read_bytes(), digest_size=12).hexdigest()
