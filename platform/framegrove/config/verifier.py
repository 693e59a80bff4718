"""Configuration of the verifiers that judge videos, and of a panel of them."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Collection, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from framegrove.config.base import Config, ConfigError, absolute, read_yaml, validated
from framegrove.config.endpoint import EndpointConfig
from framegrove.config.engine import EngineConfig, model_folder, shipped_folder
from framegrove.config.pool import PoolSize, Workers
from framegrove.config.scores import Pairwise, Reward, Score, YesNo, names_of
from framegrove.config.verifier_kinds import FramesConfig, LatentConfig
from framegrove.types import Assessment

# How a vision-language model that brings no settings of its own is served: one of the Qwen2.5-VL class, on a GPU.
_GENERAL_ENGINE: dict[str, Any] = {
    "dtype": "bfloat16",
    "max_model_len": 16384,
    "max_frames": 8,
    "max_questions": 128,
    "block_size": None,
    "frame_cache_gib": 4.0,
    "gpu_memory": 0.85,
    "instruction": " Answer with yes or no only.",
    "yes_words": ["Yes", "yes"],
    "no_words": ["No", "no"],
}
GENERAL_QUESTIONS = "general"
SETTINGS_FILE = "verifier.yaml"  # in a model folder: how that model wants to be served and what it can be asked

LIST_WEIGHTS = "weight.json"  # beside a published list of questions: the weight of each

Kind = Literal["vllm", "endpoint", "reward", "signals", "callable", "frames", "latent"]
# Which kinds a setting is for.
_FOR: dict[str, tuple[Kind, ...]] = {
    "questions": ("vllm", "endpoint", "reward"),
    "score": ("vllm", "endpoint", "reward"),
    "engine": ("vllm", "reward"),
    "endpoint": ("endpoint",),
    "function": ("callable",),
    "price": ("callable",),
    "frames": ("frames",),
    "latent": ("latent",),
}
_ARTICLES = {
    "questions": "questions",
    "score": "a score to be read",
    "engine": "an engine",
    "endpoint": "an endpoint",
    "function": "a function",
    "price": "a price",
    "frames": "a section frames",
    "latent": "a section latent",
}
_SIGNALS = ("sharpness", "flicker", "motion")
# Scores that are reported and, unless given a weight by name, not ranked: a good video may move little or much.
_NOT_RANKED: dict[Kind, frozenset[str]] = {"signals": frozenset({"motion"})}
# Between two frames at least, and at full resolution, is where signals mean something.
_DEFAULT_JUDGES: dict[Kind, tuple[Assessment, ...]] = {
    "signals": (Assessment.MOTION, Assessment.FINAL),
    "latent": (Assessment.IMAGE, Assessment.MOTION, Assessment.FINAL),  # drafts are smaller than what it knows
}
_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


class Calibration(Config):
    """Platt's calibration: from a verifier's scores to the probability that a branch is right.

    The log-odds of being right are ``bias`` plus the scores' log-odds, each times its ``slopes``; a score that has none
    says nothing. Fitted by ``python -m jobs.evaluate --calibrate``.
    """

    bias: float = 0.0
    slopes: dict[str, float] = Field(default={})

    def log_p(self, scores: Mapping[str, float]) -> float:
        """The logarithm of the probability of being right, from the scores by name."""
        odds = self.bias
        for name, slope in self.slopes.items():
            odds += slope * log_odds(scores.get(name, 0.5))
        return -math.log1p(math.exp(-odds)) if odds > -700 else odds


def log_odds(score: float) -> float:
    """The log-odds of a score in [0, 1], as if it lay at least 1e-6 from either end."""
    inside = min(max(score, 1e-6), 1 - 1e-6)
    return math.log(inside / (1 - inside))


class VerifierConfig(Config):
    """One verifier of a panel: what kind it is, what it judges and how much its scores count.

    ``vllm`` asks a vision-language model questions (``questions``, ``engine``) and reads its answers as ``score`` says
    (config/scores.py), ``endpoint`` does so over the network (``endpoint``), and ``reward`` runs a reward model with
    transformers, for which of ``engine`` its model, dtype and max_frames matter. ``signals`` measures flicker,
    sharpness and motion without any model, and ``callable`` calls ``function``, "module:function", which takes frames
    and prompt and returns a score or several scores by name, each in [0, 1]; ``price`` says what that costs. ``frames``
    runs a model of transformers on single frames, ``latent`` a small network on latents, which need no decoding.
    """

    name: str = "verifier"
    kind: Kind = "vllm"
    # Weight of each of its scores in the fused rank, or weights by score; 0 reports a score without ranking by it.
    weight: float | dict[str, float] = 1.0
    actors: Workers = PoolSize(1, 1)  # how many share its load, or the least and the most, as in "1:3"
    judges: tuple[Assessment, ...] | None = None  # None: everything; for signals, whatever has several frames
    # How its scores become the probability that a branch is right; an assessment without one: as their product.
    calibration: dict[Assessment, Calibration] = Field(default={})
    questions: str | None = None  # a shipped set such as "general", a YAML file, a list (.txt), or "module:attribute"
    score: Score = YesNo()
    engine: EngineConfig = EngineConfig()
    endpoint: EndpointConfig | None = None
    function: str | None = None
    price: float = Field(default=0.0, ge=0, allow_inf_nan=False)  # FLOPs a frame that a function's verdict counts
    frames: FramesConfig | None = None
    latent: LatentConfig | None = None

    @field_validator("name")
    @classmethod
    def _short_word(cls, name: str) -> str:
        if re.fullmatch(r"[A-Za-z0-9][\w.-]{0,39}", name) is None:
            raise ValueError("a verifier's name must be 1 to 40 letters, digits, dots, hyphens and underscores")
        return name

    @field_validator("weight", mode="before")
    @classmethod
    def _weighs(cls, weight: Any) -> Any:
        for each in weight.values() if isinstance(weight, dict) else [weight]:
            if isinstance(each, bool) or not isinstance(each, int | float) or not 0 <= each < math.inf:
                raise ValueError("a weight must be a finite number of at least 0, or such numbers by score")
        return weight

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Self:
        if self.judges is not None and not self.judges:
            raise ValueError(f"verifier {self.name} judges nothing: name assessments or leave judges out")
        given = {name for name in _FOR if getattr(self, name) != type(self).model_fields[name].default}
        for setting in sorted(given):
            if self.kind not in _FOR[setting]:
                *others, last = _FOR[setting]
                kinds = f"{', '.join(others)} and {last} take" if others else f"{last} takes"
                raise ValueError(f"verifier {self.name} is of kind {self.kind}: only {kinds} {_ARTICLES[setting]}")
        if self.kind == "endpoint" and self.endpoint is None:
            raise ValueError(f"verifier {self.name} needs an endpoint, with its url and model")
        if self.kind == "reward" and not isinstance(self.score, Reward):
            raise ValueError(f"verifier {self.name} is of kind reward and needs score: {{kind: reward, outputs: ..}}")
        if self.kind == "reward" and self.engine.tensor_parallel > 1:
            raise ValueError(f"verifier {self.name} is of kind reward and runs on one GPU: leave tensor_parallel out")
        if self.kind == "vllm" and isinstance(self.score, Reward) and any(o.token for o in self.score.outputs.values()):
            raise ValueError(
                f"verifier {self.name}: vLLM reads rewards at the last token: kind reward has outputs.token"
            )
        if self.kind == "endpoint" and isinstance(self.score, Reward):
            raise ValueError(f"verifier {self.name}: an endpoint tells no rewards: its score must be of another kind")
        if isinstance(self.score, Pairwise) and self.questions is not None:
            raise ValueError(f"verifier {self.name} compares: score.question is what it asks, leave questions out")
        if self.kind == "callable" and (self.function is None or _DOTTED.fullmatch(self.function) is None):
            raise ValueError(
                f"verifier {self.name} needs a function of the form module:function, not {self.function!r}"
            )
        if self.questions is not None and ":" in self.questions and _DOTTED.fullmatch(self.questions) is None:
            raise ValueError(f"verifier {self.name}: questions {self.questions!r} is not of the form module:attribute")
        for kind, section in (("frames", self.frames), ("latent", self.latent)):
            if self.kind == kind and section is None:
                raise ValueError(
                    f"verifier {self.name} is of kind {kind}: it needs a section {kind} that names its model"
                )
        if self.kind == "latent" and Assessment.POTENTIAL in self.assessments:
            raise ValueError(f"verifier {self.name} is of kind latent and judges no drafts: leave out potential")
        known = _SIGNALS if self.kind == "signals" else names_of(self.score)
        if known is not None and (wrong := self.weightless(known)) is not None:
            raise ValueError(wrong)
        return self

    def weightless(self, scores: Collection[str]) -> str | None:
        """What is wrong, in one sentence, where a weight is for none of the ``scores`` that the verifier gives."""
        weights = self.weight if isinstance(self.weight, dict) else {}
        wrong = next((name for name in weights if name not in scores), None)
        if wrong is None:
            return None
        return f"verifier {self.name} has a weight for {wrong!r}, but its scores are {', '.join(scores)}"

    @property
    def has_engine(self) -> bool:
        """Whether a model of its own answers it, which ``engine`` describes."""
        return self.kind in _FOR["engine"]

    @property
    def reads(self) -> Literal["frames", "latent"]:
        """What of a unit it is shown: decoded frames, or the latent."""
        return "latent" if self.kind == "latent" else "frames"

    @property
    def anchors(self) -> int:
        """With how many branches of its cohort a search has it compare each; 0: it scores each by itself."""
        return self.score.anchors if isinstance(self.score, Pairwise) else 0

    @property
    def gpus(self) -> int:
        """How many whole GPUs each of its actors takes where there are GPUs; 0: none at all."""
        if self.has_engine:
            return self.engine.tensor_parallel
        section = self.frames or self.latent
        return int(section is not None and section.device == "cuda")

    @property
    def assessments(self) -> tuple[Assessment, ...]:
        """What it judges."""
        return self.judges if self.judges is not None else _DEFAULT_JUDGES.get(self.kind, tuple(Assessment))

    def weight_of(self, score: str) -> float:
        """The weight of one of its scores in the fused rank; 0 for a score that is reported only."""
        if isinstance(self.weight, dict) and score in self.weight:
            return self.weight[score]
        if score in _NOT_RANKED.get(self.kind, ()):
            return 0.0
        return 1.0 if isinstance(self.weight, dict) else self.weight


class PanelConfig(Config):
    """The verifiers that judge a search's branches; the default is the shipped verifier alone."""

    verifiers: tuple[VerifierConfig, ...] = Field(default_factory=lambda: (_shipped(),), min_length=1)

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [verifier.name for verifier in self.verifiers]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"{names.count(name)} verifiers are called {name!r}: give each a name of its own")
        return self

    def judging(self, assessment: Assessment) -> tuple[VerifierConfig, ...]:
        """The verifiers that an assessment needs."""
        return tuple(verifier for verifier in self.verifiers if assessment in verifier.assessments)

    def check_absolute(self, wanted: str) -> None:
        """Raise ConfigError where a verifier compares and is to say what it cannot: what is ``wanted``."""
        for verifier in self.verifiers:
            if verifier.anchors:
                who = f"verifier {verifier.name}"
                raise ConfigError(f"{who} compares the branches of a cohort with each other and cannot say {wanted}")

    def at_absolute_paths(self) -> PanelConfig:
        """The same panel for processes that have another working folder."""
        return PanelConfig(verifiers=tuple(_absolute(verifier) for verifier in self.verifiers))

    def check_files(self) -> None:
        """Raise ConfigError, in one sentence, for a model folder, question file or shipped set that is missing."""
        for verifier in self.verifiers:
            if verifier.has_engine:
                model_folder(verifier.engine)
            if verifier.kind in _FOR["questions"]:
                _check_questions(verifier)
            for section in (verifier.frames, verifier.latent):
                if section is not None:
                    section.check_files(verifier.name)


def _shipped() -> VerifierConfig:
    """The shipped verifier, with what its folder says of it."""
    return VerifierConfig.model_validate(_completed({}))


def load_panel(verifier: str | None) -> PanelConfig:
    """The panel that ``--verifier`` names: a YAML file that lists verifiers, a model folder, or a hub id.

    ``None`` is the shipped verifier. Engine settings and questions that a file leaves out are those of the model
    folder's own verifier.yaml, or for a model without one those of a general vision-language model on a GPU. Paths come
    out absolute. Raises ConfigError, in one sentence. Whether the files are there is for ``check_files``.
    """
    if verifier is None:
        return PanelConfig()
    if not verifier.endswith((".yaml", ".yml")):
        entry = _completed({"engine": {"model": verifier}})
        return validated(PanelConfig, {"verifiers": [entry]}, f"--verifier {verifier}").at_absolute_paths()
    data = read_yaml(Path(verifier))
    entries = data.get("verifiers")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ConfigError(
            f"{verifier} has no list of verifiers: write `verifiers:` and below it one entry for each, "
            "as in jobs/configs/verifiers_example.yaml"
        )
    data["verifiers"] = [_completed(entry) for entry in entries]
    return validated(PanelConfig, data, verifier).at_absolute_paths()


def _completed(entry: dict[str, Any]) -> dict[str, Any]:
    """An entry of a panel with what its model folder says of itself filled in."""
    engine, score = entry.get("engine", {}), entry.get("score")
    if entry.get("kind", "vllm") not in _FOR["engine"] or not isinstance(engine, dict):
        return entry
    model = engine.get("model")
    if not isinstance(model, str | None):
        return entry
    own = own_settings(model)
    defaults = _GENERAL_ENGINE if own is None else own.engine.model_dump(exclude_unset=True)
    if isinstance(score, dict) and score.get("kind") == "pairwise":
        return entry | {"engine": defaults | engine}
    questions = entry.get("questions") or (own.questions if own else None) or GENERAL_QUESTIONS
    if score is None and own is not None and questions == own.questions:
        score = own.score.model_dump(mode="json")
    calibration = entry.get("calibration")
    if calibration is None and own is not None and questions == own.questions:
        calibration = own.model_dump(mode="json")["calibration"]  # fitted to these questions
    filled = {"questions": questions, "engine": defaults | engine, "calibration": calibration or {}}
    return entry | filled | ({} if score is None else {"score": score})


def _absolute(config: VerifierConfig) -> VerifierConfig:
    engine = config.engine.model_copy(update={"model": absolute(config.engine.model)})
    update = {
        "engine": engine,
        "questions": absolute(config.questions),
        "frames": config.frames and config.frames.at_absolute_paths(),
        "latent": config.latent and config.latent.at_absolute_paths(),
    }
    return config.model_copy(update=update)


class ModelSettings(Config):
    """A model folder's verifier.yaml: how vLLM serves the model, and what it is asked by default."""

    kind: Literal["vllm"] = "vllm"
    questions: str | None = None
    score: Score = YesNo()
    engine: EngineConfig = EngineConfig()
    calibration: dict[Assessment, Calibration] = Field(default={})


def own_settings(model: str | None) -> ModelSettings | None:
    """What a model folder says of itself; None where it says nothing or is not on this machine.

    Raises ConfigError for questions outside the framegrove package and the folder: a folder that somebody downloaded
    must not name code to run.
    """
    file = (shipped_folder() if model is None else Path(model)) / SETTINGS_FILE
    if not file.is_file():
        return None
    settings = validated(ModelSettings, read_yaml(file), str(file))
    asked = settings.questions
    if settings.engine.model is not None:
        raise ConfigError(f"{file}: engine.model is {settings.engine.model!r}, and must be left out: it is this folder")
    if asked is not None and ":" in asked and not asked.startswith("framegrove."):
        raise ConfigError(
            f"{file}: questions {asked!r} is code outside the framegrove package, which a model folder must not name: "
            "name it in a YAML file of your own and give that as --verifier"
        )
    if asked is not None and asked.endswith((".yaml", ".yml")):
        if Path(asked).name != asked:
            raise ConfigError(f"{file}: questions {asked!r} must be a file beside it")
        return settings.model_copy(update={"questions": str(file.with_name(asked).absolute())})
    return settings


def question_source(config: VerifierConfig) -> str:
    """Where a verifier's questions come from: as configured, as its model folder says, or the general set."""
    if config.questions is not None:
        return config.questions
    own = own_settings(config.engine.model) if config.has_engine else None
    return own.questions if own is not None and own.questions is not None else GENERAL_QUESTIONS


def shipped_sets() -> tuple[str, ...]:
    """Names of the question sets that come with the package."""
    folder = resources.files("framegrove") / "verification" / "sets"
    return tuple(sorted(Path(file.name).stem for file in folder.iterdir() if file.name.endswith(".yaml")))


def _check_questions(config: VerifierConfig) -> None:
    source = question_source(config)
    if ":" in source:
        return
    if source.endswith((".yaml", ".yml", ".txt")):
        if not Path(source).is_file():
            raise ConfigError(f"verifier {config.name}: there is no file of questions at {source}")
        if source.endswith(".txt") and not Path(source).with_name(LIST_WEIGHTS).is_file():
            raise ConfigError(f"verifier {config.name}: there is no {LIST_WEIGHTS} beside the questions {source}")
    elif source not in shipped_sets():
        raise ConfigError(
            f"verifier {config.name}: there are no questions called {source!r}: name one of the shipped sets "
            f"({', '.join(shipped_sets())}), a YAML file, a list (.txt), or module:attribute"
        )


def environment(config: VerifierConfig) -> dict[str, str]:
    """Environment variables for the runtime_env of the verifier's actors: vLLM reads them when it is imported."""
    if not config.has_engine:
        return {}
    variables = {
        "VLLM_CPU_KVCACHE_SPACE": str(config.engine.cache_gib),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        # Their warnings at every start, of a CPU without Triton and the like, would bury what a search says.
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "ERROR"),
        "TRANSFORMERS_VERBOSITY": os.environ.get("TRANSFORMERS_VERBOSITY", "error"),
        "VLLM_NO_USAGE_STATS": "1",
        # On a CPU this keeps the model in the engine's own process, rather than in a third one that starts as slowly.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        # One helper of vLLM's sampler would be compiled at the first question, by a C++ compiler, which takes half a
        # minute and fails in a path with a space.
        "TORCHDYNAMO_DISABLE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if config.engine.model is None or Path(config.engine.model).exists():
        variables |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    return variables
