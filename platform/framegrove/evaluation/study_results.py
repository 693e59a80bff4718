"""Results of a study: what each trial tried, how it ended, what was measured of every video; as one parquet file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from framegrove.config.base import validated
from framegrove.config.study import StudyConfig, label_of
from framegrove.errors import UserError
from framegrove.evaluation.curves import Interval, bootstrap
from framegrove.files import replacing

VERSION = 1  # of the parquet file and of a study's notes; to be raised when a column changes its meaning

State = Literal["finished", "stopped", "failed"]
Numbers = npt.NDArray[np.float64]

_KEY = b"framegrove.study"
PARTS = ("sampling", "decoding", "judging", "wasted")  # of a video's FLOPs


@dataclass(frozen=True)
class Video:
    """What was measured of one video.

    ``score`` is the share of what ``text`` asks for that it shows and ``right`` whether it shows all, both by the
    oracle. ``travel`` says how far its objects move between two frames, in px, and ``motion`` how much that is of what
    they do in real clips, at most 1. ``sampling`` to ``wasted`` are FLOPs.
    """

    prompt: int
    text: str
    score: float
    right: bool
    motion: float
    travel: float
    sampling: float
    decoding: float
    judging: float
    wasted: float
    seconds: float

    @property
    def flops(self) -> float:
        """All of it."""
        return self.sampling + self.decoding + self.judging + self.wasted

    def as_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    @property
    def key(self) -> tuple[int, str]:
        """Its place in a ledger."""
        return self.prompt, ""

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """The inverse of ``as_json``."""
        return cls(**value)


@dataclass(frozen=True)
class Trial:
    """One trial: what was tried, and how it ended.

    ``finished`` trials have a video for every prompt. ``stopped`` ones were training and fell behind; ``failed`` ones
    say ``why``. ``training_flops``, ``training_seconds`` and the last ``loss`` are those of a trial that trains.
    """

    number: int
    params: Mapping[str, Any]
    state: State
    why: str = ""
    videos: tuple[Video, ...] = ()
    training_flops: float = 0.0
    training_seconds: float = 0.0
    loss: float | None = None

    @property
    def name(self) -> str:
        """What it is called in tables and pictures."""
        return f"trial {self.number}"

    def each(self, objective: str) -> Numbers:
        """An objective, video by video."""
        return np.array([float(getattr(video, objective)) for video in self.videos])

    def mean(self, objective: str) -> Interval:
        """An objective's mean over all videos, with its bootstrap interval."""
        return bootstrap(self.each(objective))

    def share(self, part: str) -> float:
        """Mean FLOPs of a part of the cost."""
        return float(np.mean([getattr(video, part) for video in self.videos]))


def write_parquet(config: StudyConfig, trials: Sequence[Trial], path: Path) -> None:
    """A row for every trial; what was measured of its videos as lists, in the order of the prompts.

    Means are null unless the trial has finished: others have videos for some of the prompts, and prompts differ. Files
    from before that have means there, which nobody reads back, so that it is the same version of the schema.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, Any] = {
        "trial": pa.array([trial.number for trial in trials], pa.int64()),
        "state": pa.array([trial.state for trial in trials], pa.string()),
        "why": pa.array([trial.why for trial in trials], pa.string()),
        "params": pa.array([json.dumps(dict(trial.params)) for trial in trials], pa.string()),
    }
    for name in config.names:
        columns[f"space/{name}"] = _column(config, name, trials)
    for objective in config.objectives:
        means = [trial.mean(objective) if trial.state == "finished" else None for trial in trials]
        for part in ("mean", "low", "high"):
            values = [getattr(each, part) if each else None for each in means]
            columns[f"{objective}/{part}"] = pa.array(values, pa.float64())
    kinds = {"prompt": pa.int64(), "text": pa.string(), "right": pa.bool_()}
    for field in fields(Video):
        values = [[getattr(video, field.name) for video in trial.videos] for trial in trials]
        columns[f"videos/{field.name}"] = pa.array(values, pa.list_(kinds.get(field.name, pa.float64())))
    for name in ("training_flops", "training_seconds", "loss"):
        columns[name] = pa.array([getattr(trial, name) for trial in trials], pa.float64())
    facts = {"version": VERSION, "study": config.model_dump(mode="json")}
    table = pa.table(columns).replace_schema_metadata({_KEY: json.dumps(facts).encode()})
    with replacing(path) as partial:
        pq.write_table(table, partial)


def read_parquet(path: Path) -> tuple[StudyConfig, list[Trial]]:
    """A study and its trials. Raises UserError for a file of another version, and for one that is no study's."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{path} cannot be read as a study's results: {' '.join(str(error).split())}") from None
    found = (table.schema.metadata or {}).get(_KEY)
    if found is None:
        raise UserError(f"{path} is not the results of a study: give a results.parquet that jobs.sweep has written")
    facts = json.loads(found)
    check_version(facts.get("version"), str(path))
    config = validated(StudyConfig, facts["study"], str(path))
    return config, [_trial(row) for row in table.to_pylist()]


def check_version(found: Any, where: str) -> None:
    """Raise UserError where a study was kept by another version of the schema."""
    if found != VERSION:
        raise UserError(
            f"{where} holds a study in version {found} of the schema, and this is version {VERSION}: continue it in "
            "the release that it was begun in, or give another --out"
        )


def _column(config: StudyConfig, name: str, trials: Sequence[Trial]) -> Any:
    """The values of a parameter, null where it does not apply: numbers where all that it may be are, text otherwise."""
    import pyarrow as pa

    given = [trial.params.get(name) for trial in trials]
    parameter = config.space[name]
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in parameter.examples):
        return pa.array([None if value is None else float(value) for value in given], pa.float64())
    texts = [label_of(trial.params[name]) if name in trial.params else None for trial in trials]
    return pa.array(texts, pa.string())


def _trial(row: Mapping[str, Any]) -> Trial:
    names = [field.name for field in fields(Video)]
    lists = zip(*(row[f"videos/{name}"] for name in names), strict=True)
    videos = tuple(Video(**dict(zip(names, each, strict=True))) for each in lists)
    return Trial(
        row["trial"],
        json.loads(row["params"]),
        row["state"],
        row["why"],
        videos,
        row["training_flops"],
        row["training_seconds"],
        row["loss"],
    )
